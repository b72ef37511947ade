"""HTML and XHTML: the text of each block is translated with its inline tags; all else stays as it was written."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby

from mlx_transformer.documents.content import Content, Inline, has_letters, plain_text, write
from mlx_transformer.documents.html_text import ATTRIBUTE, HtmlPiece, read_run, split_html
from mlx_transformer.documents.translator import Translator

ATTRIBUTES = ("alt", "title", "placeholder", "aria-label")
BUTTON = re.compile("submit|button|reset", re.IGNORECASE)  # types of input whose value is shown on them
DTD = re.compile(r"<!DOCTYPE[^>\[]*\[|<!ENTITY", re.IGNORECASE)


def translate_html(text: str, name: str, translator: Translator) -> str:
    """Translate a page; its lang attribute becomes the target language if that is known."""
    return translate_fragments([split_html(text)], translator)[0]


def translate_xhtml(text: str, name: str, translator: Translator) -> str:
    """Translate a page that is XML."""
    if DTD.search(text):
        raise ValueError(f"{name} must have no DTD of its own, which may hide entities without end: remove it.")
    return translate_fragments([split_html(text, is_xml=True)], translator)[0]


def translate_fragments(fragments: Sequence[list[HtmlPiece]], translator: Translator) -> list[str]:
    """Translate parts of pages, all of them at once."""
    divided = [
        [list(run) for _, run in groupby(pieces, lambda piece: piece.is_inline or piece.is_break)]
        for pieces in fragments
    ]
    runs, pieces = list(chain.from_iterable(divided)), list(chain.from_iterable(fragments))
    written = _translate_runs(runs, pieces, translator)
    return ["".join(next(written) for _ in each) for each in divided]


def _translate_runs(runs: list[list[HtmlPiece]], pieces: list[HtmlPiece], translator: Translator) -> Iterator[str]:
    """Yield the text of each run; the pieces are those of all runs."""
    contents = [read_run(run) if any(piece.has_letters for piece in run) else () for run in runs]
    values = list(dict.fromkeys(value for piece in pieces for value in _shown_values(piece)))
    texts = translator.translate_contents([*contents, *((value,) for value in values)])
    targets, new_values = texts[: len(runs)], map(plain_text, texts[len(runs) :])
    tags = _translate_tags(pieces, dict(zip(values, new_values, strict=True)), translator.language)
    for run, old, new in zip(runs, contents, targets, strict=True):
        if new == old:
            yield "".join(tags.get(each.text, each.text) if each.shows_attributes else each.text for each in run)
        else:
            yield write(_replace_tags(new, tags), partial(html.escape, quote=False))


def _shown_names(piece: HtmlPiece) -> tuple[str, ...]:
    """Return the names of attributes of a piece that readers see."""
    if not piece.shows_attributes:
        return ()
    kinds = [_value(match) for match in ATTRIBUTE.finditer(piece.text) if match[1].lower() == "type"]
    return (*ATTRIBUTES, "value") if piece.name == "input" and BUTTON.fullmatch("".join(kinds[:1])) else ATTRIBUTES


def _shown_values(piece: HtmlPiece) -> Iterator[str]:
    """Yield the values of a tag that readers see, if they have letters."""
    names = _shown_names(piece)
    values = (_value(match) for match in ATTRIBUTE.finditer(piece.text if names else "") if match[1].lower() in names)
    return filter(has_letters, values)


def _value(match: re.Match[str]) -> str:
    """Return the value of a match of ATTRIBUTE."""
    return html.unescape(match[2] or match[3] or match[4] or "")


def _translate_tags(pieces: list[HtmlPiece], values: Mapping[str, str], language: str | None) -> dict[str, str]:
    """Return the new text of each tag that readers see something of, or that names the language of the page."""
    tags: dict[str, str] = {}
    for piece in pieces:
        names = _shown_names(piece)
        if names and piece.text not in tags:
            tags[piece.text] = ATTRIBUTE.sub(partial(_translate_attribute, names, values), piece.text)
    page = next((piece.text for piece in pieces if piece.name == "html" and piece.shows_attributes), None)
    if page and language:
        tags[page] = _set_language(tags[page], language)
    return tags


def _translate_attribute(names: tuple[str, ...], values: Mapping[str, str], match: re.Match[str]) -> str:
    value = _value(match)
    is_shown = match[1].lower() in names and values.get(value, value) != value
    return _replace_value(match, values[value]) if is_shown else match[0]


def _replace_value(match: re.Match[str], value: str) -> str:
    """Return an attribute with another value, in the same quotation marks."""
    quote = match[0][-1] if match[4] is None else '"'
    name, _, old = match[0].partition("=")
    space = old[: len(old) - len(old.lstrip())]
    value = html.escape(value, quote=False).replace(quote, html.escape(quote))
    value = value.replace("\n", "&#10;").replace("\r", "&#13;")  # lines of a page stay lines
    return f"{name}={space}{quote}{value}{quote}"


def _set_language(tag: str, language: str) -> str:
    """Return the tag of a page with a language."""

    def replace(match: re.Match[str]) -> str:
        return _replace_value(match, language) if match[1].lower() in ("lang", "xml:lang") else match[0]

    has_language = any(match[1].lower() == "lang" for match in ATTRIBUTE.finditer(tag))
    end = "" if has_language else f' lang="{language}"'
    return ATTRIBUTE.sub(replace, tag).removesuffix(">") + end + ">"


def _replace_tags(content: Content, tags: Mapping[str, str]) -> Content:
    """Return a content with the new texts of its tags."""
    return tuple(part if isinstance(part, str) else _replace_tag(part, tags) for part in content)


def _replace_tag(inline: Inline, tags: Mapping[str, str]) -> Inline:
    opening, closing = inline.key
    return inline._replace(key=(tags.get(opening, opening), closing), content=_replace_tags(inline.content, tags))
