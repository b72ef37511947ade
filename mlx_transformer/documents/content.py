"""Text with inline markup, as all formats hand it to the translator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

# Tags of HTML inside a sentence.
INLINE_TAGS = frozenset(
    "a abbr acronym b bdi bdo big cite data del dfn em font i img ins label mark q s small span strike strong sub sup "
    "time tt u wbr".split()
)
ATOMS = frozenset("code kbd math samp svg var".split())  # inside a sentence they are copied as a word
LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
MARKS = r"[\s\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]+"  # white space, and marks of direction
EDGES = re.compile(rf"\A{MARKS}|(?<!{MARKS[:-1]}){MARKS}\Z")
MAX_NESTING = 100  # inline markup in inline markup; deeper tags are placed one by one


class Inline(NamedTuple):
    """Markup in a text.

    Attributes:
        key: What the format needs to write it.
        content: The text in it, with further markup; empty for markup without text.
        is_atom: Whether it is a word of its sentence that is copied, such as code.
        is_break: Whether it ends a line, so that the texts before and behind it are translated apart.
    """

    key: Any
    content: tuple[str | Inline, ...] = ()
    is_atom: bool = False
    is_break: bool = False


Content = tuple[str | Inline, ...]


class Opening(NamedTuple):
    """An opening tag, to be paired with a closing tag of its name."""

    name: str
    markup: str


class Closing(NamedTuple):
    """A closing tag."""

    name: str
    markup: str


def plain_text(content: Content) -> str:
    """Return the text of a content without its markup."""
    return "".join(part if isinstance(part, str) else plain_text(part.content) for part in content)


def strip_edges(text: str) -> str:
    """Return a text without the white space and the marks of direction around it."""
    return EDGES.sub("", text)


def without_soft_hyphens(content: Content) -> Content:
    """Return a content without the marks of where its words may be divided."""
    return tuple(
        part.replace("\xad", "") if isinstance(part, str) else part._replace(content=without_soft_hyphens(part.content))
        for part in content
    )


def has_letters(text: str) -> bool:
    """Whether a text has something to translate."""
    return any(map(str.isalpha, text))


def find_texts(content: Content) -> Iterator[Content]:
    """Yield the texts of a content, which are separated by line breaks, also in markup."""
    for is_text, parts in groupby(content, _is_text):
        if is_text:
            yield tuple(parts)
        else:
            for part in parts:
                yield from find_texts(part.content if isinstance(part, Inline) else ())


def replace_texts(content: Content, texts: Iterator[Content]) -> Content:
    """Return a content with the next ones of other texts in the place of its own."""
    new: list[str | Inline] = []
    for is_text, parts in groupby(content, _is_text):
        if is_text:
            new += next(texts)
        else:
            new += (
                part._replace(content=replace_texts(part.content, texts)) for part in parts if isinstance(part, Inline)
            )
    return tuple(new)


def _is_text(part: str | Inline) -> bool:
    """Whether a part has no line break."""
    return isinstance(part, str) or part.is_atom or (not part.is_break and all(map(_is_text, part.content)))


def nest(pieces: Iterable[str | Inline | Opening | Closing]) -> Content:
    """Pair opening and closing tags; a tag without a partner becomes markup without content.

    Returns:
        The content; the keys of pairs are their two tags. Elements in ATOMS are atoms.
    """
    stack: list[tuple[Opening | None, list[str | Inline]]] = [(None, [])]
    for piece in pieces:
        content = stack[-1][1]
        if isinstance(piece, Opening):
            if len(stack) > MAX_NESTING:
                content.append(Inline((piece.markup, "")))
            else:
                stack.append((piece, []))
        elif not isinstance(piece, Closing):
            content.append(piece)
        elif any(opening is not None and opening.name == piece.name for opening, _ in stack):
            while stack[-1][0] is not None and stack[-1][0].name != piece.name:
                _unpair(stack)
            opening, inner = stack.pop()
            is_atom = piece.name.lower() in ATOMS
            stack[-1][1].append(Inline((opening.markup if opening else "", piece.markup), tuple(inner), is_atom))
        else:
            content.append(Inline((piece.markup, "")))
    while len(stack) > 1:
        _unpair(stack)
    return tuple(stack[0][1])


def _unpair(stack: list[tuple[Opening | None, list[str | Inline]]]) -> None:
    """Make markup without content of the innermost opening tag."""
    opening, inner = stack.pop()
    stack[-1][1].extend([Inline((opening.markup if opening else "", "")), *inner])


def write(content: Content, escape: Callable[[str], str] = str) -> str:
    """Return a content as text, with keys that are pairs of tags; `escape` is applied to all other text."""
    return "".join(
        escape(part) if isinstance(part, str) else part.key[0] + write(part.content, escape) + part.key[1]
        for part in content
    )
