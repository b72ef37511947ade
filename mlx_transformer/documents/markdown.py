"""Markdown: markdown-it-py finds the text; code, targets of links and front matter stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from mlx_transformer.documents.content import LINE_BREAK, Closing, Content, Inline, Opening, nest, write
from mlx_transformer.documents.html import translate_fragments
from mlx_transformer.documents.html_text import split_html
from mlx_transformer.documents.subtitles import TAG
from mlx_transformer.documents.translator import Translator

FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:.*\n)*?\1[ \t]*(?:\n|\Z)")
LABEL = re.compile(r"\[[ xX]\]\s+|\[\^[^\]\s]+\]:\s+")  # of a task, of a footnote
# What stays in a text: notes and attributes as markup, names of emoji and tags of templates as words.
KEPT = re.compile(
    r"((?<![ \t])[ \t]*(?:\[\^[^\[\]\s]+\]|\{[#.:][^{}]*\}))"
    r"|(?<![\w:]):[a-z][\w+-]*:(?!\w)|\{\{.{,200}?\}\}|\{%.{,200}?%\}"
)
# Lines that begin or end a box: of GitHub and Obsidian, Docusaurus and Pandoc, MkDocs.
KEPT_LINE = re.compile(r"\[![A-Za-z]+\]|:{3}|(?:!{3}|\?{3}\+?)\s")
FORMULA = re.compile(r"\$\$[^$\n]+\$\$|\$(?!\s)[^$\n]*[^\s$]\$(?!\d)")  # of TeX
FORMULA_BLOCK = re.compile(r"\$\$[^$]+\$\$")
DEFINITION = re.compile(r":[ \t]+")  # of a term, on a line of its own
# What would be read as Markdown in a text: anywhere, and at its beginning.
SPECIAL = re.compile(r"[\\`*\[\]<]|(?<![^\W_])_|_(?![^\W_])|~(?=~)|&(?=#?\w+;)")
SPECIAL_START = re.compile(r"\A(\d*)(?=[-+>#=]|(?<=\d)[.)]\s)")
EMPHASIS = ("strong", "em", "s")
HARD_BREAK = "\0"  # until the end of its line is written; files that have it are refused
PAIRED_SIGNS = ("*", "_", "**", "__", "~~")
SIGNS = ("`", "*", "_", "~")
VOID = ("img", "wbr")


def translate_markdown(text: str, name: str, translator: Translator) -> str:
    """Translate a Markdown file; the lines of a paragraph become one."""
    line_end = "\r\n" if "\r\n" in text else "\n"
    text = text.replace("\r\n", "\n")
    front = match[0] if (match := FRONT_MATTER.match(text)) else ""
    lines = text[len(front) :].split("\n")
    tokens, blocks = _find_tokens("\n".join(lines), lines)
    images = [child for token in tokens for child in token.children or () if child.type == "image"]
    alts = translator.translate_texts(image.content for image in images)
    alt_texts = dict(zip(map(id, images), alts, strict=True))
    passages = list(_find_passages(tokens, lines, alt_texts))
    translator.report.untouched += len(tokens) - len(passages)
    contents = iter(translator.translate_contents(part.content for passage in passages for part in passage.parts))
    edits: list[tuple[int, Callable[[], None]]] = []
    for passage in passages:
        edits.append((passage.line, partial(_replace, passage, [next(contents) for _ in passage.parts], lines)))
    pages = translate_fragments([split_html(block.text) for block in blocks], translator)
    for block, page in zip(blocks, pages, strict=True):
        edits.append((block.line, partial(_replace_block, block, page, lines)))
    for _, edit in sorted(edits, key=lambda each: each[0], reverse=True):  # so that earlier positions stay valid
        edit()
    return (front + "\n".join(lines)).replace("\n", line_end)


class _Part(NamedTuple):
    """A text up to the end of a line, with its label; its lines are the first and last ones between hard breaks."""

    lines: list[tuple[int, int]]
    label: str
    content: Content


class _Passage(NamedTuple):
    """A paragraph, heading or cell: its first line, the columns of its text on each line, and its parts."""

    line: int
    columns: list[tuple[int, int]]
    parts: list[_Part]
    in_table: bool
    has_images: bool


class _Block(NamedTuple):
    """HTML on lines of its own: its first line, and what is before it on each line."""

    line: int
    prefixes: list[str]
    text: str


def _find_tokens(text: str, lines: list[str]) -> tuple[list[Token], list[_Block]]:
    """Return the tokens with text, and the blocks of HTML."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "formula", _read_formula)
    vars(parser).update(validateLink=lambda url: True, normalizeLink=str, normalizeLinkText=str)
    tokens = parser.parse(text)
    for opening, token in pairwise(tokens):
        token.meta["in_table"] = opening.type in ("th_open", "td_open")
    blocks = [_find_block(token, lines) for token in tokens if token.type == "html_block" and token.map]
    tokens = [token for token in tokens if token.type == "inline" and token.map and token.content]
    return [token for token in tokens if not FORMULA_BLOCK.fullmatch(token.content)], list(filter(None, blocks))


def _find_block(token: Token, lines: list[str]) -> _Block | None:
    """Return the block of a token; None if its lines are not found."""
    line, text = (token.map or [0])[0], token.content.removesuffix("\n")
    places = list(zip(text.split("\n"), lines[line:], strict=False))
    if not all(whole.endswith(part) for part, whole in places):
        return None
    return _Block(line, [whole.removesuffix(part) if part else whole for part, whole in places], text)


def _read_formula(state: StateInline, silent: bool) -> bool:
    """Read a formula between dollar signs, a rule of the parser."""
    if not (match := FORMULA.match(state.src, state.pos)):
        return False
    if not silent:
        state.push("formula", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _find_passages(tokens: list[Token], lines: list[str], alt_texts: Mapping[int, str]) -> Iterator[_Passage]:
    """Yield the passages of inline tokens whose text is found in the lines."""
    positions: dict[int, int] = {}  # behind the last cell of a line
    for token in tokens:
        line, columns = (token.map or [0])[0], []
        for number, text in enumerate(map(str.strip, token.content.split("\n")), start=line):
            pattern = re.compile(re.escape(text).replace(r"\|", r"\\?\|"))  # cells are without backslashes before bars
            if not (match := pattern.search(lines[number], positions.get(number, 0))):
                break
            positions[number] = match.end()
            columns.append(match.span())
        else:
            has_images = any(child.type == "image" for child in token.children or ())
            yield _Passage(line, columns, list(_split(token, alt_texts)), token.meta["in_table"], has_images)


def _split(token: Token, alt_texts: Mapping[int, str]) -> Iterator[_Part]:
    """Split a passage before definitions, and around lines that stay."""
    label = match[0] if (match := LABEL.match(token.content)) else ""
    first, line = 0, -1
    children: list[Token] = []
    for segment in _split_lines(token.children or []):
        text = segment[0].content if segment and segment[0].type == "text" else ""
        is_kept = KEPT_LINE.match(text) is not None
        definition = DEFINITION.match(text)
        if children and (is_kept or definition):
            yield _make_part(children, first, label, alt_texts)
            children, label = [], ""
        first = first if children else line + 1
        line += 1 + sum(child.type in ("softbreak", "hardbreak") for child in segment)
        if is_kept:
            yield _Part([(first, line)], text, ())
            label = ""
            continue
        label = definition[0] if definition else label
        children += [Token("softbreak", "br", 0), *segment] if children else segment
    if children:
        yield _make_part(children, first, label, alt_texts)


def _split_lines(children: list[Token]) -> list[list[Token]]:
    """Split tokens at soft breaks that are in no markup, and at any line break behind a line that stays."""
    segments: list[list[Token]] = [[]]
    for child in children:
        is_kept = bool(segments[-1]) and KEPT_LINE.match(segments[-1][0].content) is not None
        if child.level == 0 and (child.type == "softbreak" or (child.type == "hardbreak" and is_kept)):
            segments.append([])
        else:
            segments[-1].append(child)
    return segments


def _make_part(children: list[Token], first: int, label: str, alt_texts: Mapping[int, str]) -> _Part:
    """Return the part of tokens, whose first line in its passage is given."""
    line, lines = first, []
    pieces: list[str | Inline | Opening | Closing] = []
    link: Token | None = None
    for child in children:
        if child.type == "hardbreak":
            lines.append((first, line))
            first = line + 1
        line += child.type in ("softbreak", "hardbreak")
        link = child if child.type == "link_open" else link
        if label and not pieces:
            child.content = child.content.removeprefix(label.rstrip()).lstrip()
        pieces += _read(child, link, alt_texts)
    return _Part([*lines, (first, line)], label, nest(pieces))


def _read(token: Token, link: Token | None, alt_texts: Mapping[int, str]) -> Iterator[str | Inline | Opening | Closing]:
    """Yield the pieces of a token inside a passage; `link` is the last link that was opened."""
    kind, _, end = token.type.rpartition("_")
    if token.type == "softbreak":
        yield " "
    elif token.type == "hardbreak":
        yield Inline((HARD_BREAK, ""), is_break=True)
    elif token.type == "formula":
        yield Inline((token.content, ""), is_atom=True)
    elif token.type == "code_inline":
        space = " " if "`" in (token.content[:1], token.content[-1:]) else ""
        yield Inline((f"{token.markup}{space}{token.content}{space}{token.markup}", ""), is_atom=True)
    elif token.type == "image":
        yield Inline((f"![{_escape(alt_texts[id(token)])}]{_target(token, 'src')}", ""))
    elif token.type == "html_inline" and LINE_BREAK.fullmatch(token.content):
        yield Inline((token.content, ""), is_break=True)
    elif token.type == "html_inline" and (tag := TAG.fullmatch(token.content)) and tag[3]:
        is_single = token.content.endswith("/>") or tag[3].lower() in VOID
        kinds = Opening(tag[3], token.content), Closing(tag[3], token.content)
        yield Inline((token.content, "")) if is_single else kinds[bool(tag[2])]
    elif token.type == "html_inline":
        yield Inline((token.content, ""))
    elif kind in EMPHASIS:
        yield Opening(kind, token.markup) if end == "open" else Closing(kind, token.markup)
    elif token.markup == "autolink":
        pass  # its text has the angle brackets
    elif token.type == "link_open":
        yield Opening("link", "[")
    elif token.type == "link_close" and link is not None:
        yield Closing("link", f"]{_target(link, 'href')}")
    elif (
        link is not None
        and link.markup == "autolink"
        and token.content == str(link.attrs["href"]).removeprefix("mailto:")
    ):
        yield Inline((f"<{token.content}>", ""), is_atom=True)
    else:
        position = 0
        for match in KEPT.finditer(token.content):
            yield token.content[position : match.start()]
            yield Inline((match[0], ""), is_atom=match[1] is None)
            position = match.end()
        yield token.content[position:]


def _escape(text: str) -> str:
    """Return a text with backslashes before what would be read as Markdown."""
    return SPECIAL.sub(lambda match: f"\\{match[0]}", text)


def _target(token: Token, attribute: str) -> str:
    """Return the target of a link or image, and its title, as Markdown has them."""
    url, title = (str(token.attrs.get(name, "")) for name in (attribute, "title"))
    title = title.replace("\\", "\\\\").replace('"', '\\"')
    url = f"<{url}>" if re.search(r"[\s()]", url) or not url else url
    return f'({url} "{title}")' if title else f"({url})"


def _without_empty_emphasis(content: Content) -> Content:
    """Leave out emphasis around nothing, whose signs would be read as text."""
    parts = (
        part if isinstance(part, str) else part._replace(content=_without_empty_emphasis(part.content))
        for part in content
    )
    return tuple(
        part
        for part in parts
        if isinstance(part, str) or part.content or part.key[0] not in PAIRED_SIGNS or part.key[0] != part.key[1]
    )


def _separate(content: Content) -> Content:
    """Put a space between markup whose signs would be read as one, such as two pieces of code."""
    parts: list[str | Inline] = []
    for part in content:
        if isinstance(part, Inline):
            part = part._replace(content=_separate(part.content))
            if parts and isinstance(parts[-1], Inline) and write((parts[-1],))[-1:] == write((part,))[:1] in SIGNS:
                parts.append(" ")
        parts.append(part)
    return tuple(parts)


def _replace(passage: _Passage, targets: list[Content], lines: list[str]) -> None:
    """Write the contents of a passage, with what is before and behind them on their lines."""
    if targets == [part.content for part in passage.parts] and not passage.has_images:
        return
    written: list[str] = []
    for part, target in zip(passage.parts, targets, strict=True):
        label = part.label
        if not part.content:  # a line that stays
            first, last = part.lines[0]
            written += lines[passage.line + first : passage.line + last + 1]
            continue
        texts = write(_separate(_without_empty_emphasis(target)), _escape).split(HARD_BREAK)
        for (first, last), text in zip(part.lines, texts, strict=True):
            before, (start, end) = lines[passage.line + first][: passage.columns[first][0]], passage.columns[last]
            end_line = lines[passage.line + last]
            is_broken = (first, last) != part.lines[-1] and end_line[start:end].endswith("\\")
            text = SPECIAL_START.sub(r"\1\\", text.strip())
            text = text.replace("|", r"\|") if passage.in_table else text
            written.append(before + label + text + "\\" * is_broken + end_line[end:])
            label = ""
    lines[passage.line : passage.line + len(passage.columns)] = written


def _replace_block(block: _Block, page: str, lines: list[str]) -> None:
    """Write a block of HTML, which has no more lines than before."""
    written = [prefix + part for prefix, part in zip(block.prefixes, page.split("\n"), strict=False)]
    lines[block.line : block.line + len(block.prefixes)] = written
