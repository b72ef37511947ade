"""The text of HTML between its tags, which stay as they are, character for character.

The parser of the standard library takes quadratic time for broken markup, so tags are found by an expression that reads
every character once: like browsers, it lets a tag without an end go on to the end of the text.
"""

import re
from collections.abc import Iterable, Iterator
from html import unescape
from itertools import groupby
from typing import NamedTuple

from mlx_transformer.documents.content import ATOMS, INLINE_TAGS, Closing, Content, Inline, Opening, has_letters, nest

MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<[!?][^>]*(?:>|\Z)"
    r"|<(?P<slash>/?)(?P<name>[A-Za-z][^\s/>=]*)"
    r"""(?P<attributes>(?:[^>=]+|=\s*(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z))|=)*)(?:>|\Z)""",
    re.DOTALL,
)
ATTRIBUTE = re.compile(r"""(?<![^\s"'/])([^\s"'>/=]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
RAW_TEXT = {"script", "style", "textarea"}  # elements whose text has no tags
UNTRANSLATED = RAW_TEXT | ATOMS | {"pre", "template", "iframe", "object"}
FOREIGN = {"svg", "math"}  # elements that may be empty in HTML, too, as in XML
NOT_NESTED = {"p", "option", "dt", "dd"}  # elements that end where the next one begins
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SPACES = " \t\n\r\f"
WHITE_SPACE = re.compile(f"[{SPACES}]+")


class HtmlPiece(NamedTuple):
    """A part of HTML.

    Attributes:
        text: The part.
        name: The name of its tag, in lower case, or of the untranslated element that it belongs to; empty for other
            text, comments and the like.
        is_text: Whether it is text to translate.
        is_closing: Whether it is a closing tag.
        is_untranslated: Whether it belongs to an untranslated element.
        shows_attributes: Whether it is an opening tag whose attributes may be translated.
    """

    text: str
    name: str = ""
    is_text: bool = False
    is_closing: bool = False
    is_untranslated: bool = False
    shows_attributes: bool = False

    @property
    def has_letters(self) -> bool:
        """Whether it is text with something to translate."""
        return self.is_text and has_letters(unescape(self.text))

    @property
    def is_word(self) -> bool:
        """Whether it is text that is not blank, or copied like a word."""
        return self.is_untranslated or (self.is_text and bool(self.text.strip(SPACES)))

    @property
    def is_inline(self) -> bool:
        """Whether it is part of a sentence: text, a whole comment, or an inline tag."""
        if self.is_text or self.is_untranslated:
            return self.is_text or self.name in ATOMS | INLINE_TAGS
        is_whole = self.text.endswith("-->" if self.text.startswith("<!--") else ">")
        return is_whole and (self.name in INLINE_TAGS or self.text.startswith("<!--"))

    @property
    def is_break(self) -> bool:
        """Whether it ends a line."""
        return self.name == "br" and not self.is_untranslated


def split_html(text: str, is_xml: bool = False) -> list[HtmlPiece]:
    """Split HTML, or XHTML, into pieces; joined, they are the HTML.

    Text of UNTRANSLATED elements, and of elements with translate="no" or the class notranslate, is not translated.
    """
    pieces: list[HtmlPiece] = []
    skipped, depth, first = "", 0, 0  # the untranslated element, how many of its name are open, its first piece
    end = 0  # of the last markup
    while match := MARKUP.search(text, end):
        pieces.append(_make_piece(text[end : match.start()], skipped if depth else ""))
        end, outer = match.end(), skipped if depth else ""
        name, is_opening = (match["name"] or "").lower(), bool(match["name"]) and not match["slash"]
        is_empty = is_opening and match["attributes"].endswith("/")
        is_nested = depth > 0 and name == skipped and not (is_empty and (is_xml or name in FOREIGN))
        opts_out = is_opening and _opts_out(match["attributes"])
        if is_nested and name in NOT_NESTED and is_opening:
            depth = 0  # its end tag is left out
        elif is_nested:
            depth += 1 if is_opening else -1
        if not depth and is_opening and not is_empty and name not in VOID and (opts_out or name in UNTRANSLATED):
            skipped, depth, first = name, 1, len(pieces)
        element = skipped if depth else outer
        pieces.append(
            HtmlPiece(
                match[0],
                element or name,
                is_closing=bool(match["slash"]),
                is_untranslated=bool(element),
                shows_attributes=is_opening and not outer and not opts_out and not (element and name in ATOMS),
            )
        )
        if is_opening and name in RAW_TEXT and not (is_xml and is_empty):
            closing = re.compile(f"</{name}", re.IGNORECASE).search(text, end)
            start, end = end, closing.start() if closing else len(text)
            pieces.append(_make_piece(text[start:end], element or name))
    pieces.append(_make_piece(text[end:], skipped if depth else ""))
    if depth:  # what has no end cannot be moved
        pieces[first:] = [piece._replace(name="") for piece in pieces[first:]]
    return [piece for piece in pieces if piece.text]


def _make_piece(text: str, element: str) -> HtmlPiece:
    """Return text, which belongs to an untranslated element unless its name is empty."""
    return HtmlPiece(text, element, is_text=not element, is_untranslated=bool(element))


def _opts_out(attributes: str) -> bool:
    """Whether the text of an element with these attributes stays as it is."""
    values = {key.lower(): unescape("".join(value)) for key, *value in ATTRIBUTE.findall(attributes)}
    return values.get("translate", "").lower() == "no" or "notranslate" in values.get("class", "").split()


def read_run(run: Iterable[HtmlPiece]) -> Content:
    """Return inline pieces and line breaks as a content; white space around the text of each line is markup."""
    return nest(_read_lines(run))


def _read_lines(run: Iterable[HtmlPiece]) -> Iterator[str | Inline | Opening | Closing]:
    for is_break, group in groupby(run, lambda piece: piece.is_break):
        line = list(group)
        if is_break:
            yield from (Inline((piece.text, ""), is_break=True) for piece in line)
            continue
        words = [i for i, piece in enumerate(line) if piece.is_word]
        first, last = (words[0], words[-1]) if words else (len(line), -1)
        for is_untranslated, part in groupby(enumerate(line), lambda each: each[1].is_untranslated):
            if is_untranslated:
                yield Inline(("".join(piece.text for _, piece in part), ""), is_atom=True)
            else:
                for i, piece in part:
                    yield from _read_piece(piece, i <= first, i >= last)


def _read_piece(piece: HtmlPiece, begins_line: bool, ends_line: bool) -> Iterator[str | Inline | Opening | Closing]:
    """Yield a tag, or a text, without the white space at the beginning and the end of its line."""
    if piece.is_text:
        text = piece.text.lstrip(SPACES) if begins_line else piece.text
        core = text.rstrip(SPACES) if ends_line else text
        before, after = piece.text[: len(piece.text) - len(text)], text[len(core) :]
        yield from (Inline((before, "")),) if before else ()
        yield WHITE_SPACE.sub(" ", unescape(core))
        yield from (Inline((after, "")),) if after else ()
    elif piece.name in VOID or not piece.name or piece.text.endswith("/>"):
        yield Inline((piece.text, ""))
    else:
        yield (Closing if piece.is_closing else Opening)(piece.name, piece.text)
