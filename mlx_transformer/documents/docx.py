"""Word documents, .docx: the text of each paragraph is translated, and its runs keep their formatting.

Only the parts with text are rewritten. All other entries of the archive, such as pictures, embedded objects and macros,
are copied.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from lxml import etree

from mlx_transformer.documents.archives import rewrite_archive
from mlx_transformer.documents.content import Content, Inline, has_letters, plain_text
from mlx_transformer.documents.translator import Translator

PARTS = re.compile(r"word/(?:document|header|footer|footnotes|endnotes|comments)\d*\.xml")
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
STRICT = b"http://purl.oclc.org/ooxml/wordprocessingml/main"  # the same elements in "Strict Open XML Document"
WRAPPERS = tuple(f"{W}{name}" for name in ("hyperlink", "ins", "moveTo", "smartTag", "customXml", "dir", "bdo"))
DELETED = (f"{W}del", f"{W}moveFrom")
HYPHENS = {f"{W}noBreakHyphen": "\u2011", f"{W}softHyphen": "\xad"}
LINK = re.compile(r"\s*HYPERLINK\b", re.IGNORECASE)  # the code of a field whose result is text
IGNORED = (f"{W}proofErr", f"{W}lastRenderedPageBreak")
BREAKS = (f"{W}tab", f"{W}br", f"{W}cr", f"{W}ptab")  # end a text
PARSER: dict[str, Any] = {"resolve_entities": False, "no_network": True, "huge_tree": False, "strip_cdata": False}
CONTROLS = re.compile("[\x00-\x1f]")  # cannot stand in XML


class Run(NamedTuple):
    """A text with its formatting, w:rPr or None."""

    text: str
    format: Any


class Formatted(NamedTuple):
    """The key of text in another format than the rest; with a wrapper such as a link, in this."""

    format: Any
    wrapper: Any = None


class LinkField(NamedTuple):
    """The key of the text of a link that is a field: its format, and the elements before and behind it."""

    format: Any
    before: list[Any]
    after: list[Any]


class Segment(NamedTuple):
    """A text of a paragraph, and the format of what is not in markup."""

    content: Content
    format: Any


def translate_docx(data: bytes, name: str, translator: Translator) -> bytes:
    """Translate a document."""

    def rewrite(part: str, content: bytes) -> bytes:
        if not PARTS.fullmatch(part):
            return content
        usual = W.strip("{}").encode()
        result = _translate_part(content.replace(STRICT, usual), f"{name}, {part},", translator)
        return result.replace(usual, STRICT) if STRICT in content else result

    return rewrite_archive(data, name, rewrite)


def parse_xml(data: bytes, name: str) -> Any:
    """Return the root of an XML document.

    Raises:
        ValueError: If it is damaged, or has a DTD, whose entities could exhaust memory.
    """
    no_dtd = f"{name} must have no DTD, which documents do not need: it may hide entities without end."
    if b"<!DOCTYPE" in data:
        raise ValueError(no_dtd)
    try:
        root = etree.fromstring(data, etree.XMLParser(**PARSER))
    except etree.XMLSyntaxError as error:
        raise ValueError(f"{name} must be XML: {error}; save the document again.") from None
    if root.getroottree().docinfo.doctype:  # in another encoding
        raise ValueError(no_dtd)
    return root


def _translate_part(data: bytes, name: str, translator: Translator) -> bytes:
    root = parse_xml(data, name)
    _split_runs(root)
    _split_wrappers(root)
    paragraphs = []
    for paragraph in root.iter(f"{W}p"):
        items = _read_paragraph(paragraph)
        if items is None:
            translator.report.untouched += has_letters("".join(paragraph.itertext(f"{W}t")))
        elif any(isinstance(item, Segment) for item in items):
            paragraphs.append((paragraph, items))
    segments = [item for _, items in paragraphs for item in items if isinstance(item, Segment)]
    targets = iter(translator.translate_contents(segment.content for segment in segments))
    for paragraph, items in paragraphs:
        new: list[Any] = []
        for item in items:
            new += _write(next(targets), item.format) if isinstance(item, Segment) else [item]
        paragraph[:] = new
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8", standalone=True)


def _read_paragraph(paragraph: Any) -> list[Any] | None:
    """Return the segments of a paragraph, and the elements between them; None if a field does not end in it."""
    items: list[Any] = []
    pieces: list[Run | Inline] = []

    def end_segment() -> None:
        if has_letters("".join(piece.text if isinstance(piece, Run) else _text_of(piece) for piece in pieces)):
            items.append(_make_segment(pieces))
        else:
            items.extend(element for piece in pieces for element in _elements_of(piece))
        pieces.clear()

    field: list[Any] = []
    depth = 0
    for child in paragraph:
        kinds = [mark.get(f"{W}fldCharType") for mark in child.iter(f"{W}fldChar")]
        depth += kinds.count("begin") - kinds.count("end")
        if kinds or depth:
            field.append(child)
            if depth == 0:
                pieces.append(_read_field(field))
                field = []
            continue
        for piece in _read_child(child):
            if isinstance(piece, Run | Inline):
                pieces.append(piece)
            else:
                end_segment()
                items.append(piece)
    end_segment()
    return None if field else items


def _read_child(child: Any) -> Iterator[Run | Inline | Any]:
    """Yield the pieces of a child of a paragraph; elements that end a text are yielded as they are."""
    if child.tag == f"{W}pPr":
        yield child
    elif child.tag in WRAPPERS:
        inner = [piece for run in child for piece in _read_child(run)]
        if not all(isinstance(piece, Run | Inline) for piece in inner):
            yield child
        elif _has_text(inner):
            segment = _make_segment(inner)
            yield Inline(Formatted(segment.format, child), segment.content)
        else:
            yield Inline([child])
    elif child.tag != f"{W}r":
        if child.tag not in IGNORED:
            yield Inline([child], is_atom=child.tag not in DELETED and _is_word(child))
    else:
        tags = {part.tag for part in child} - {f"{W}rPr"}
        if tags == {f"{W}t"}:
            yield Run("".join(part.text or "" for part in child.iter(f"{W}t")), child.find(f"{W}rPr"))
        elif tags & {*BREAKS}:
            yield child
        elif tags - {*IGNORED}:
            yield Inline([child], is_atom=tags == {f"{W}ruby"})


def _read_field(elements: list[Any]) -> Inline:
    """Return a field as a word; the text of a link is translated."""
    kinds = [next((mark.get(f"{W}fldCharType") for mark in each.iter(f"{W}fldChar")), None) for each in elements]
    marks = [(kind, index) for index, kind in enumerate(kinds) if kind]
    code = "".join(text.text or "" for each in elements for text in each.iter(f"{W}instrText"))
    if [kind for kind, _ in marks] == ["begin", "separate", "end"] and LINK.match(code):
        (_, _), (_, start), (_, end) = marks
        pieces = [piece for each in elements[start + 1 : end] for piece in _read_child(each)]
        if all(isinstance(piece, Run | Inline) for piece in pieces) and _has_text(pieces):
            segment = _make_segment(pieces)
            return Inline(LinkField(segment.format, elements[: start + 1], elements[end:]), segment.content)
    return Inline(elements, is_atom=True)


def _has_text(pieces: Iterable[Run | Inline]) -> bool:
    """Whether pieces have text that could be translated."""
    return any(isinstance(piece, Run) or piece.content for piece in pieces)


def _is_word(element: Any) -> bool:
    """Whether an element shows text, such as a formula or a content control."""
    return any(isinstance(each.tag, str) and etree.QName(each).localname == "t" for each in element.iter())


def _split_runs(root: Any) -> None:
    """Give text and each other part of a run, such as a break or a picture, a run of its own."""
    for hyphen in list(root.iter(*HYPHENS)):
        text = etree.Element(f"{W}t")
        text.text = HYPHENS[hyphen.tag]
        hyphen.getparent().replace(hyphen, text)
    for run in list(root.iter(f"{W}r")):
        parts = [part for part in run if part.tag != f"{W}rPr"]
        if len(parts) > 1 and any(part.tag != f"{W}t" for part in parts):
            for part in parts:
                run.addprevious(_make_run(run.find(f"{W}rPr"), part))
            run.getparent().remove(run)


def _split_wrappers(root: Any) -> None:
    """Give text and breaks in a wrapper, such as a link, a wrapper of their own."""
    for wrapper in reversed(list(root.iter(*WRAPPERS))):
        if any(map(_is_break, wrapper)):
            for _, group in groupby(list(wrapper), _is_break):
                part = etree.Element(wrapper.tag, wrapper.attrib, wrapper.nsmap)
                part.extend(list(group))
                wrapper.addprevious(part)
            wrapper.getparent().remove(wrapper)


def _is_break(element: Any) -> bool:
    """Whether an element of a paragraph ends a text."""
    if element.tag in WRAPPERS:
        return any(map(_is_break, element))
    return element.tag == f"{W}r" and any(part.tag in BREAKS for part in element)


def _make_run(style: Any, part: Any) -> Any:
    run = etree.Element(f"{W}r")
    if style is not None:
        run.append(copy.deepcopy(style))
    run.append(part)
    return run


def _same(style: Any) -> bytes:
    """Return what is equal for equal formats; the language of a run is none."""
    if style is None:
        return b""
    parts = [etree.tostring(part, method="c14n") for part in style if part.tag not in (f"{W}lang", f"{W}noProof")]
    return b"".join(parts)


def _make_segment(pieces: Iterable[Run | Inline]) -> Segment:
    """Return runs as a content, in which those of the most frequent format are text without markup."""
    pieces = list(pieces)
    runs = [piece for piece in pieces if isinstance(piece, Run)]
    lengths: dict[bytes, int] = {}
    for run in runs:
        lengths[_same(run.format)] = lengths.get(_same(run.format), 0) + len(run.text)
    usual = max(lengths, key=lambda style: lengths[style], default=b"")
    base = next((run.format for run in runs if _same(run.format) == usual), None)
    content: list[str | Inline] = []
    previous: bytes | None = None  # the format of the last run, if nothing is behind it
    for piece in pieces:
        style = _same(piece.format) if isinstance(piece, Run) else None
        if not isinstance(piece, Run):
            content.append(piece)
        elif style == usual:
            content.append(piece.text)
        elif style == previous and isinstance(content[-1], Inline):
            content[-1] = content[-1]._replace(content=(plain_text(content[-1].content) + piece.text,))
        else:
            content.append(Inline(Formatted(piece.format), (piece.text,)))
        previous = style
    return Segment(tuple(content), base)


def _text_of(piece: Inline) -> str:
    return plain_text(piece.content)


def _elements_of(piece: Run | Inline) -> list[Any]:
    """Return the elements of a piece that is not translated."""
    if isinstance(piece, Run):
        return _write((piece.text,), piece.format)
    return _write((piece,), None)


def _write(content: Content, style: Any) -> list[Any]:
    """Return the elements of a content, whose text has a format."""
    elements: list[Any] = []
    for part in content:
        if isinstance(part, str):
            text = etree.Element(f"{W}t")
            text.text = CONTROLS.sub("", part)
            text.set("{http://www.w3.org/XML/1998/namespace}space", "preserve")
            elements.append(_make_run(style, text))
        elif isinstance(part.key, LinkField):
            elements += [*part.key.before, *_write(part.content, part.key.format), *part.key.after]
        elif not isinstance(part.key, Formatted):
            elements += part.key
        elif part.key.wrapper is None:
            elements += _write(part.content, part.key.format)
        else:
            part.key.wrapper[:] = _write(part.content, part.key.format)
            elements.append(part.key.wrapper)
    return elements
