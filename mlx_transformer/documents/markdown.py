"""Markdown: markdown-it-py finds the text; code, targets of links, HTML blocks and front matter stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise, zip_longest
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from mlx_transformer.documents.content import LINE_BREAK, Closing, Content, Inline, Opening, nest, write
from mlx_transformer.documents.subtitles import TAG
from mlx_transformer.documents.translator import Translator

FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:.*\n)*?\1[ \t]*(?:\n|\Z)")
LABEL = re.compile(r"\[[ xX]\]\s+|\[\^[^\]\s]+\]:\s+")  # of a task, of a footnote
# What stays in a text: notes and attributes as markup, names of emoji as words.
KEPT = re.compile(r"([ \t]*(?:\[\^[^\]\s]+\]|\{[#.:][^{}]*\}))|(?<![\w:]):[a-z][\w+-]*:(?!\w)")
FORMULA = re.compile(r"\$\$[^$\n]+\$\$|\$(?!\s)[^$\n]*[^\s$]\$(?!\d)")  # of TeX
FORMULA_BLOCK = re.compile(r"\$\$[^$]+\$\$")
DEFINITION = re.compile(r":[ \t]+")  # of a term, on a line of its own
# What would be read as Markdown in a text: anywhere, and at its beginning.
SPECIAL = re.compile(r"[\\`*\[\]<]|(?<![^\W_])_|_(?![^\W_])|~(?=~)|&(?=#?\w+;)")
SPECIAL_START = re.compile(r"\A(\d*)(?=[-+>#=]|(?<=\d)[.)]\s)")
EMPHASIS = ("strong", "em", "s")
HARD_BREAK = "\0"  # until the end of its line is written; files that have it are refused
PAIRED_SIGNS = ("*", "_", "**", "__", "~~")
VOID = ("img", "wbr")


def translate_markdown(text: str, name: str, translator: Translator) -> str:
    """Translate a Markdown file; the lines of a paragraph become one."""
    line_end = "\r\n" if "\r\n" in text else "\n"
    text = text.replace("\r\n", "\n")
    front = match[0] if (match := FRONT_MATTER.match(text)) else ""
    lines = text[len(front) :].split("\n")
    tokens = _find_inline_tokens("\n".join(lines))
    images = [child for token in tokens for child in token.children or () if child.type == "image"]
    alts = translator.translate_texts(image.content for image in images)
    alt_texts = dict(zip(map(id, images), alts, strict=True))
    passages = list(_find_passages(tokens, lines, alt_texts))
    translator.report.untouched += len(tokens) - len(passages)
    contents = iter(translator.translate_contents(part.content for passage in passages for part in passage.parts))
    targets = [[next(contents) for _ in passage.parts] for passage in passages]
    for passage, target in reversed([*zip(passages, targets, strict=True)]):  # so that earlier positions stay valid
        _replace(passage, target, lines)
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


def _find_inline_tokens(text: str) -> list[Token]:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "formula", _read_formula)
    vars(parser).update(validateLink=lambda url: True, normalizeLink=str, normalizeLinkText=str)
    tokens = parser.parse(text)
    for opening, token in pairwise(tokens):
        token.meta["in_table"] = opening.type in ("th_open", "td_open")
    tokens = [token for token in tokens if token.type == "inline" and token.map and token.content]
    return [token for token in tokens if not FORMULA_BLOCK.fullmatch(token.content)]


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
    """Split a passage before definitions."""
    first = line = 0
    label = match[0] if (match := LABEL.match(token.content)) else ""
    finished: list[tuple[int, int]] = []
    pieces: list[str | Inline | Opening | Closing] = []
    link: Token | None = None
    children = token.children or []
    for child, following in zip_longest(children, children[1:]):
        is_end = child.type == "softbreak" and child.level == 0 and following is not None
        if is_end and (match := DEFINITION.match(following.content)):
            yield _Part([*finished, (first, line)], label, nest(pieces))
            line += 1
            first, label, finished, pieces = line, match[0], [], []
            continue
        if child.type == "hardbreak":
            finished.append((first, line))
            first = line + 1
        line += child.type in ("softbreak", "hardbreak")
        link = child if child.type == "link_open" else link
        if label and not pieces:
            child.content = child.content.removeprefix(label.rstrip()).lstrip()
        pieces += _read(child, link, alt_texts)
    yield _Part([*finished, (first, line)], label, nest(pieces))


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


def _replace(passage: _Passage, targets: list[Content], lines: list[str]) -> None:
    """Write the contents of a passage, with what is before and behind them on their lines."""
    if targets == [part.content for part in passage.parts] and not passage.has_images:
        return
    written: list[str] = []
    for part, target in zip(passage.parts, targets, strict=True):
        label = part.label
        texts = write(_without_empty_emphasis(target), _escape).split(HARD_BREAK)
        for (first, last), text in zip(part.lines, texts, strict=True):
            before, (start, end) = lines[passage.line + first][: passage.columns[first][0]], passage.columns[last]
            end_line = lines[passage.line + last]
            is_broken = (first, last) != part.lines[-1] and end_line[start:end].endswith("\\")
            text = SPECIAL_START.sub(r"\1\\", text.strip())
            text = text.replace("|", r"\|") if passage.in_table else text
            written.append(before + label + text + "\\" * is_broken + end_line[end:])
            label = ""
    lines[passage.line : passage.line + len(passage.columns)] = written
