"""HTML and XHTML: the text of each block is translated with its inline tags; scripts, styles and code stay."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import ItemsView, Iterator
from typing import Any

from bs4 import BeautifulSoup, Comment, NavigableString, PageElement, Tag, XMLParsedAsHTMLWarning
from bs4.dammit import EntitySubstitution
from bs4.element import Doctype
from bs4.exceptions import ParserRejectedMarkup
from bs4.formatter import HTMLFormatter

from mlx_transformer.documents.content import ATOMS, INLINE_TAGS, Content, Inline, has_letters
from mlx_transformer.documents.translator import Translator

MAX_DEPTH = 250  # tags in tags
# At the end of a page; for each, html.parser reads to the end, which takes quadratic time.
MAX_UNCLOSED = 100
UNCLOSED = {"<": ">", "<!--": "-->", "<![": "]>"}
ATTRIBUTES = ("alt", "title", "placeholder", "aria-label")
BUTTONS = ("submit", "button", "reset")  # types of input whose value is shown on them
SKIPPED = frozenset("iframe object pre script style template textarea".split())
DTD = re.compile(r"<!DOCTYPE[^>\[]*\[|<!ENTITY", re.IGNORECASE)
ENTITY = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)[A-Za-z]\w*;")
SPACE = re.compile("[ \t\n\r\f]+")
LEADING, TRAILING = re.compile(r"\A[ \t\n\r\f]*"), re.compile(r"(?<![ \t\n\r\f])[ \t\n\r\f]*\Z")


def translate_html(text: str, name: str, translator: Translator) -> str:
    """Translate a page; its lang attribute becomes the target language if that is known."""
    return _translate_markup(text, name, translator, "html.parser")


def translate_xhtml(text: str, name: str, translator: Translator) -> str:
    """Translate a page that is XML, whose names keep their case."""
    if DTD.search(text):
        raise ValueError(f"{name} must have no DTD of its own, which may hide entities without end: remove it.")
    # The parser knows the entities of XML only.
    text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return _translate_markup(text, name, translator, "xml")


def _translate_markup(text: str, name: str, translator: Translator, parser: str) -> str:
    soup = _parse(text, name, parser)
    _check_depth(soup, name)
    runs = list(_find_runs(soup))
    contents = translator.translate_contents(_read(run) for run in runs)
    changed = [(run, content) for run, content in zip(runs, contents, strict=True) if content != _read(run)]
    _replace_runs(changed)
    _translate_attributes(soup, translator)
    page = soup.find("html")
    if translator.language and isinstance(page, Tag):
        for attribute in {"lang"} | ({"xml:lang"} & page.attrs.keys()):
            page[attribute] = translator.language
    return soup.decode(formatter=_Formatter(is_xml=parser == "xml" or "xmlns=" in text[:2000]))


class _Formatter(HTMLFormatter):
    """Writes attributes in their order, and only the entities that are necessary."""

    def __init__(self, is_xml: bool) -> None:
        super().__init__(
            entity_substitution=EntitySubstitution.substitute_xml, void_element_close_prefix="/" if is_xml else ""
        )

    def attributes(self, tag: Tag) -> ItemsView:
        return tag.attrs.items()


def _parse(text: str, name: str, parser: str) -> BeautifulSoup:
    for opening, closing in UNCLOSED.items():
        if text.count(opening, text.rfind(closing) + 1) > MAX_UNCLOSED:
            raise ValueError(f"{name} must close its tags and comments, but many have no {closing}: repair it.")
    # White space between tags stays as inside <pre>.
    kept: dict[str, Any] = {"multi_valued_attributes": None, "preserve_whitespace_tags": {"[document]"}}
    options: dict[str, Any] = {} if parser == "xml" else {"on_duplicate_attribute": "ignore"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
            soup = BeautifulSoup(text, parser, **kept, **options)
    except (ParserRejectedMarkup, AssertionError, RecursionError) as error:
        raise ValueError(f"{name} must be a page that can be parsed: {error}; repair it.") from None
    for doctype in soup.find_all(string=lambda string: isinstance(string, Doctype)):
        following = doctype.next_sibling
        if type(following) is NavigableString and following.startswith("\n"):  # bs4 writes a line end of its own
            following.replace_with(NavigableString(following[1:]))
    return soup


def _check_depth(soup: BeautifulSoup, name: str) -> None:
    """Raise ValueError if tags are nested too deep."""
    depths = {id(soup): 0}
    for tag in soup.find_all(True):
        depths[id(tag)] = depth = depths[id(tag.parent)] + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{name} must have tags in at most {MAX_DEPTH} others, but it has more: simplify it.")


def _is_translated(tag: Tag) -> bool:
    return tag.get("translate") != "no" and "notranslate" not in str(tag.get("class", "")).split()


def _is_inline(node: PageElement) -> bool:
    """Whether a node is part of a sentence: text, a comment, or a tag without blocks and line breaks in it."""
    if not isinstance(node, Tag):
        return type(node) in (NavigableString, Comment)
    if node.name in ATOMS:
        return True
    return node.name in INLINE_TAGS and all(each.name in INLINE_TAGS | ATOMS for each in node.find_all(True))


def _find_runs(tag: Tag) -> Iterator[list[PageElement]]:
    """Yield the longest runs of neighbours that are inline and have letters."""
    run: list[PageElement] = []
    for child in [*tag.children, None]:
        if child is not None and _is_inline(child):
            run.append(child)
            continue
        if any(has_letters(node.get_text()) for node in run):
            yield run
        run = []
        if isinstance(child, Tag) and child.name not in SKIPPED and _is_translated(child):
            yield from _find_runs(child)


def _read(nodes: list[PageElement]) -> Content:
    """Return nodes as a content, whose keys are tags."""
    content: list[str | Inline] = []
    for node in nodes:
        if not isinstance(node, Tag):
            content.append(Inline(node) if isinstance(node, Comment) else SPACE.sub(" ", str(node)))
        elif node.name in ATOMS or not _is_translated(node):
            content.append(Inline(node, is_atom=True))
        else:
            content.append(Inline(node, _read(list(node.children))))
    return tuple(content)


def _replace_runs(changed: list[tuple[list[PageElement], Content]]) -> None:
    """Put contents into the place of runs; all children of a tag are set at once, which takes linear time."""
    first_nodes = {id(run[0]): (run, content) for run, content in changed}
    parents = {id(run[0].parent): run[0].parent for run, _ in changed}
    for parent in filter(None, parents.values()):
        children, replaced = list(parent.children), set[int]()
        parent.clear()
        for child in children:
            if id(child) in first_nodes:
                run, content = first_nodes[id(child)]
                replaced |= set(map(id, run))
                parent.extend(_surround(run, _write(content)))
            elif id(child) not in replaced:
                parent.append(child)


def _surround(run: list[PageElement], nodes: list[PageElement]) -> list[PageElement]:
    """Give new nodes the white space around the old ones."""
    ends = [str(node) if type(node) is NavigableString else "" for node in (run[0], run[-1])]
    before, after = LEADING.findall(ends[0])[0], TRAILING.findall(ends[1])[0]
    if before and type(nodes[0]) is NavigableString:
        nodes[0] = NavigableString(before + nodes[0].lstrip(" "))
    if after and type(nodes[-1]) is NavigableString:
        nodes[-1] = NavigableString(nodes[-1].rstrip(" ") + after)
    return nodes


def _write(content: Content) -> list[PageElement]:
    """Return the nodes of a content; its tags are those of the page, with new children."""
    nodes: list[PageElement] = []
    for part in content:
        if isinstance(part, str):
            nodes.append(NavigableString(part))
            continue
        if not part.is_atom and isinstance(part.key, Tag):
            children = _write(part.content)
            part.key.clear()
            part.key.extend(children)
        nodes.append(part.key)
    return nodes


def _translate_attributes(soup: BeautifulSoup, translator: Translator) -> None:
    """Translate the attributes that are shown to readers."""
    places = [
        (tag, name)
        for tag in soup.find_all(True)
        for name in (*ATTRIBUTES, *(("value",) if tag.name == "input" and tag.get("type") in BUTTONS else ()))
        if has_letters(str(tag.get(name, "")))
        and _is_translated(tag)
        and not tag.find_parent(lambda other: other.name in SKIPPED or not _is_translated(other))
    ]
    texts = translator.translate_texts(str(tag[name]) for tag, name in places)
    for (tag, name), text in zip(places, texts, strict=True):
        tag[name] = text
