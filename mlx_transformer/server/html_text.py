"""The text of HTML between its tags, which stay as they are, character for character.

The parser of the standard library takes quadratic time for broken markup, so tags are found by an expression that reads
every character once: like browsers, it lets a tag without an end go on to the end of the text.
"""

import re
from html import unescape
from typing import NamedTuple

MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<[!?][^>]*(?:>|\Z)"
    r"|<(?P<slash>/?)(?P<name>[A-Za-z][^\s/>=]*)"
    r"""(?P<attributes>(?:[^>=]+|=\s*(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z))|=)*)(?:>|\Z)""",
    re.DOTALL,
)
ATTRIBUTE = re.compile(r"""(?<![^\s"'/])([^\s"'>/=]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
RAW_TEXT = {"script", "style", "textarea"}  # elements whose text has no tags
UNTRANSLATED = RAW_TEXT | {"code", "pre", "kbd", "samp", "svg", "math", "template"}
NOT_NESTED = {"p", "option", "dt", "dd"}  # elements that end where the next one begins
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class HtmlPiece(NamedTuple):
    """A part of HTML.

    Attributes:
        text: The part.
        name: The name of its tag, in lower case, or of the untranslated element that it belongs to; empty for other
            text, comments and the like.
        is_text: Whether it is text to translate.
        is_closing: Whether it is a closing tag.
        is_untranslated: Whether it belongs to an untranslated element.
    """

    text: str
    name: str = ""
    is_text: bool = False
    is_closing: bool = False
    is_untranslated: bool = False


def split_html(text: str) -> list[HtmlPiece]:
    """Split HTML into pieces; joined, they are the HTML.

    Text of UNTRANSLATED elements, and of elements with translate="no" or the class notranslate, is not translated.
    """
    pieces: list[HtmlPiece] = []
    skipped, depth, end = "", 0, 0  # the untranslated element, how many of its name are open, where markup ended
    while match := MARKUP.search(text, end):
        pieces.append(_make_piece(text[end : match.start()], skipped if depth else ""))
        end, outer = match.end(), skipped if depth else ""
        if name := (match["name"] or "").lower():
            if depth and name == skipped and name in NOT_NESTED and not match["slash"]:
                depth = 0  # its end tag is left out
            if depth and name == skipped:
                depth += -1 if match["slash"] else 1
            elif not depth and not match["slash"] and _is_untranslated(name, match["attributes"]):
                skipped, depth = name, 1
            if not match["slash"] and name in RAW_TEXT:
                closing = re.compile(f"</{name}", re.IGNORECASE).search(text, end)
                end = closing.start() if closing else len(text)
        element = skipped if depth else outer
        pieces.append(
            HtmlPiece(
                text[match.start() : end],
                element or name,
                is_closing=bool(match["slash"]),
                is_untranslated=bool(element),
            )
        )
    pieces.append(_make_piece(text[end:], skipped if depth else ""))
    return [piece for piece in pieces if piece.text]


def _make_piece(text: str, element: str) -> HtmlPiece:
    """Return text, which belongs to an untranslated element unless its name is empty."""
    return HtmlPiece(text, element, is_text=not element, is_untranslated=bool(element))


def _is_untranslated(name: str, attributes: str) -> bool:
    """Whether the text of an element stays as it is."""
    if name in VOID or attributes.endswith("/"):
        return False
    values = {key.lower(): unescape("".join(value)) for key, *value in ATTRIBUTE.findall(attributes)}
    opts_out = values.get("translate", "").lower() == "no" or "notranslate" in values.get("class", "").split()
    return name in UNTRANSLATED or opts_out
