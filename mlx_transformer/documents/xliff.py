"""Translation units of XLIFF 1.2 and 2: those without a target get one; others stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from lxml import etree

from mlx_transformer.documents.content import Content, Inline, plain_text
from mlx_transformer.documents.docx import parse_xml
from mlx_transformer.documents.translator import Translator

NAMESPACES = {
    "urn:oasis:names:tc:xliff:document:1.2": ("trans-unit", "target-language"),
    "urn:oasis:names:tc:xliff:document:2.0": ("segment", "trgLang"),
}
PAIRED = ("g", "mrk", "pc", "sub")  # elements with text; all others stand for one place
COPIED = ("ph", "x")  # of these, those that stand for a value unless they have a type, as those of markup do


def translate_xliff(data: bytes, name: str, translator: Translator) -> bytes:
    """Translate the units that have no target."""
    root = parse_xml(data, name)
    namespace = etree.QName(root).namespace
    if etree.QName(root).localname != "xliff" or namespace not in NAMESPACES:
        raise ValueError(f"{name} must be XLIFF 1.2 or 2: convert it first.")
    unit, language = NAMESPACES[namespace]
    holders = [root] if language == "trgLang" else list(root.iter(f"{{{namespace}}}file"))
    places = _untranslated(root, f"{{{namespace}}}{unit}", f"{{{namespace}}}")
    # Units that would stay as they are get no target.
    units = [(place, content) for place in places if not translator.leaves(content := _read(place[1]))]
    targets = translator.translate_contents(content for _, content in units)
    for ((element, source), _), content in zip(units, targets, strict=True):
        target = element.find(f"{{{namespace}}}target")
        if target is None:
            previous = source if (segments := element.find(f"{{{namespace}}}seg-source")) is None else segments
            target = etree.Element(f"{{{namespace}}}target")
            previous.addnext(target)
            target.tail, previous.tail = previous.tail, target.tail or previous.tail
        _write(target, content)
    for holder in holders:
        if translator.language and not holder.get(language):
            holder.set(language, translator.language)
    end = b"\n" if data.endswith(b"\n") else b""
    return etree.tostring(root.getroottree(), xml_declaration=True, encoding="UTF-8") + end


def _untranslated(root: Any, unit: str, prefix: str) -> Iterator[tuple[Any, Any]]:
    """Yield each unit that is to be translated and has no target, with its source."""
    for element in root.iter(unit):
        source, target = element.find(f"{prefix}source"), element.find(f"{prefix}target")
        forbids = [each for each in (element, *element.iterancestors()) if each.get("translate")]
        is_translated = target is not None and ("".join(target.itertext()).strip() or len(target))
        if source is not None and not is_translated and not (forbids and forbids[0].get("translate") == "no"):
            yield element, source


def _read(element: Any) -> Content:
    """Return the text of an element with its inline elements."""
    parts: list[str | Inline] = [element.text or ""]
    for child in element:
        name = etree.QName(child).localname if isinstance(child.tag, str) else ""
        content = _read(child) if name in PAIRED else ()
        kinds = [child.get(attribute) for attribute in ("ctype", "type", "subType")]
        is_value = name in COPIED and (not any(kinds) or "xlf:var" in kinds)
        is_break = not {"lb", "xlf:lb"}.isdisjoint(kinds)
        parts += [Inline(child, content if plain_text(content) else (), is_value, is_break), child.tail or ""]
    return tuple(part for part in parts if part)


def _write(element: Any, content: Content) -> None:
    """Replace the contents of an element."""
    element[:] = []
    element.text = None
    for part in content:
        if isinstance(part, Inline):
            child = copy.deepcopy(part.key)
            child.tail = None
            if part.content:
                _write(child, part.content)
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part
