"""Text with inline markup, as all formats hand it to the translator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Tags of HTML inside a sentence.
INLINE_TAGS = frozenset(
    "a abbr acronym b bdi bdo big cite data del dfn em font i img ins label mark q s small span strike strong sub sup "
    "time tt u wbr".split()
)
ATOMS = frozenset("code kbd math samp svg var".split())  # inside a sentence they are copied as a word
MAX_NESTING = 100  # inline markup in inline markup; deeper tags are placed one by one


class Inline(NamedTuple):
    """Markup in a text.

    Attributes:
        key: What the format needs to write it.
        content: The text in it, with further markup; empty for markup without text.
        is_atom: Whether it is a word of its sentence that is copied, such as code; its content is in the key.
    """

    key: Any
    content: tuple[str | Inline, ...] = ()
    is_atom: bool = False


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


def has_letters(text: str) -> bool:
    """Whether a text has something to translate."""
    return any(map(str.isalpha, text))


def nest(pieces: Iterable[str | Inline | Opening | Closing]) -> Content:
    """Pair opening and closing tags; a tag without a partner becomes markup without content.

    Returns:
        The content; the keys of pairs are their two tags.
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
            stack[-1][1].append(Inline((opening.markup if opening else "", piece.markup), tuple(inner)))
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
