"""Places the markup of a source in its target by word alignment: the result nests as the source does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mlx_transformer.documents.content import Content, Inline, has_letters, plain_text
from mlx_transformer.inference.alignment import WORD
from mlx_transformer.inference.term_insertion import REPLACEABLE
from mlx_transformer.inference.terminology import WORD_CHARACTER

Interval = tuple[int, int]  # of characters
PLACEHOLDER = re.compile(r"\{[^{}\s]*\}")  # those of atoms, and of the text itself
NOTHING = r"(?!)"  # matches nowhere
SENTENCE_END = re.compile("""[.!?…。！？][)\\]'"’”»]?\\Z""")
PHRASE_END = re.compile("""(?<=[^\\s([{])[.!?…,;:。！？][)\\]'"’”»]?\\Z""")


class Span(NamedTuple):
    """Markup and the part of a text that is in it.

    Attributes:
        inline: The markup.
        start: Where its text begins.
        end: Where its text ends.
        children: The spans in it, in order.
        is_fixed: Whether its content is none of the text, and stays.
    """

    inline: Inline
    start: int
    end: int
    children: tuple[Span, ...] = ()
    is_fixed: bool = False


class MarkedText(NamedTuple):
    """The text of a content and its markup.

    Attributes:
        text: The text.
        spans: The spans of its markup.
        atoms: The markup that placeholders in the text stand for.
        num_inlines: Number of spans, with those in others, and atoms.
    """

    text: str
    spans: tuple[Span, ...]
    atoms: dict[str, Inline]
    num_inlines: int


def mark_text(content: Content) -> MarkedText:
    """Separate a content into text and spans; atoms, and markup around numbers and signs, become placeholders.

    Numbers and signs behind the end of a sentence or phrase are left out of it, as those of notes: "It rains.[1]".
    """
    raw, letter = plain_text(content), "c"
    while f"{{{letter}" in raw:
        letter += "c"
    atoms: dict[str, Inline] = {}
    num_spans = 0

    def mark(content: Content, start: int, before: str) -> tuple[str, tuple[Span, ...]]:
        nonlocal num_spans
        text, spans = "", []
        for part in content:
            position = start + len(text)
            if isinstance(part, str):
                text += part
                continue
            if _is_fixed(part) and not part.is_atom and PHRASE_END.search(before + text):
                num_spans += 1
                spans.append(Span(part, position, position, is_fixed=True))
                continue
            if _is_fixed(part):
                name = f"{{{letter}{len(atoms) + 1}}}"
                atoms[name] = part
                text += name
                continue
            num_spans += 1
            inner, children = mark(part.content, position, (before + text)[-2:])
            text += inner
            spans.append(Span(part, position, position + len(inner), children))
        return text, tuple(spans)

    text, spans = mark(content, 0, "")
    return MarkedText(text, spans, atoms, len(atoms) + num_spans)


def split_edges(content: Content) -> tuple[Content, Content, Content]:
    """Return the markup before the text of a content, the text, and the markup behind it.

    That is markup around nothing, and, behind the last sentence, what is copied, such as the number of a note.
    """
    start, end = 0, len(content)
    while start < end and _is_empty(content[start]):
        start += 1
    while start < end and _is_empty(content[end - 1]):
        end -= 1
    sentence_end = end
    while sentence_end > start and (_is_empty(part := content[sentence_end - 1]) or _is_fixed(part)):
        sentence_end -= 1
    if SENTENCE_END.search(plain_text(content[start:sentence_end]).rstrip()):
        end = sentence_end
    return content[:start], content[start:end], content[end:]


def _is_empty(part: str | Inline) -> bool:
    """Whether a part is white space, or markup around nothing."""
    if isinstance(part, str):
        return not part.strip()
    return not plain_text(part.content).strip() and not _is_fixed(part)


def _is_fixed(part: str | Inline) -> bool:
    """Whether markup is copied as a word: an atom, or markup around atoms, numbers and signs alone."""
    if isinstance(part, str):
        return False
    text = plain_text(part.content)
    if part.is_atom or has_letters(text):
        return part.is_atom
    return bool(text.strip()) or any(_is_fixed(each) for each in part.content if isinstance(each, Inline))


class MarkupPlacement:
    """Puts the markup of a source around the words of its target that are aligned with what it is around.

    Attributes:
        num_unplaced: Number of spans without an aligned word; they stand at the end of what they were in.
    """

    def __init__(self, source: MarkedText, target: str, pairs: Sequence[tuple[int, int]]) -> None:
        """Find the words of both texts.

        Args:
            source: The source.
            target: The target, with the source's placeholders.
            pairs: Pairs of aligned source and target words, as in `Hypothesis.alignment`.
        """
        self.source, self.target, self.num_unplaced = source, target, 0
        self.source_words = [word.span() for word in WORD.finditer(source.text)]
        self.target_words = [word.span() for word in WORD.finditer(target)]
        self.pairs = [(i, j) for i, j in pairs if i < len(self.source_words) and j < len(self.target_words)]
        self.atoms = dict(source.atoms)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, source.atoms)) or NOTHING})")
        self.placeholders = [match.span() for match in PLACEHOLDER.finditer(target)]

    def place(self) -> Content:
        """Return the target with the markup of the source."""
        whole = 0, len(self.source.text)
        content = self._place_spans(self.source.spans, whole, (0, len(self.target)))
        return (*content, *self.atoms.values())

    def _place_spans(self, spans: Sequence[Span], source: Interval, target: Interval) -> Content:
        """Return a part of the target with the spans of a part of the source."""
        placed: list[tuple[Interval, Span]] = []
        for span in spans:
            interval = self._covered(span, source, target) or self._locate(
                span, source, target, [each for each, _ in placed]
            )
            placed.append((interval, span))
        content: list[str | Inline] = []
        position = target[0]
        for (start, end), span in sorted(placed, key=lambda each: each[0]):
            start, end = (max(self._outside_placeholders(edge), position) for edge in (start, end))
            inner = self._place_spans(span.children, (span.start, span.end), (start, end))
            inline = span.inline if span.is_fixed else span.inline._replace(content=inner)
            is_between = start == end and source[0] < span.start == span.end < source[1]
            before, after = self._spaces(span.start, start) if is_between else ("", "")
            content += [*self._text(position, start), before, inline, after]
            position = end
        content += self._text(position, target[1])
        return tuple(part for part in content if part)

    def _spaces(self, position: int, edge: int) -> tuple[str, str]:
        """Return the white space that is missing at an edge of the target where the source has it on both sides."""
        places = (self.source.text, position), (self.target, edge)
        sides = [(text[:place][-1:].isspace(), text[place:][:1].isspace()) for text, place in places]
        is_apart = all(sides[0]) and 0 < edge < len(self.target)
        return " " * (is_apart and not sides[1][0]), " " * (is_apart and not sides[1][1])

    def _outside_placeholders(self, position: int) -> int:
        """Return a position in the target, or the end of the placeholder that it is in."""
        return next((end for start, end in self.placeholders if start < position < end), position)

    def _text(self, start: int, end: int) -> Content:
        """Return a part of the target with its atoms, each at its first placeholder only."""
        parts = (
            self.atoms.pop(part, "") if part in self.source.atoms else part
            for part in self.pattern.split(self.target[start:end])
        )
        return tuple(part for part in parts if part)

    def _covered(self, span: Span, source: Interval, target: Interval) -> Interval | None:
        """Return the whole part of the target if the span is around the whole part of the source."""
        text = self.source.text
        rest = text[source[0] : span.start] + text[span.end : source[1]]
        return target if not rest.strip() and text[span.start : span.end].strip() else None

    def _locate(self, span: Span, source: Interval, target: Interval, taken: Sequence[Interval]) -> Interval:
        """Return where a span stands in a part of the target, outside of what others have taken."""
        words = [i for i, (start, end) in enumerate(self.source_words) if start < span.end and end > span.start]
        if not self.source.text[span.start : span.end].strip():
            return self._neighbour(span.start, source, target)
        own = {j for i, j in self.pairs if i in words}
        foreign = {j for i, j in self.pairs if i not in words} - own
        best: tuple[int, int, int] | None = None  # sum, minus the first word, minus the last one
        begin, total = 0, 0
        for j, (start, end) in enumerate(self.target_words):
            is_free = target[0] <= start and end <= target[1]
            if not is_free or any(start < other[1] and end > other[0] for other in taken):
                total = 0
                continue
            if total <= 0:
                begin, total = j, 0
            total += (j in own) - (j in foreign)
            if j in own and total > 0 and (best is None or total > best[0]):
                best = total, begin, j
        if best is None:
            for j in sorted(own):  # another span may have taken a part of the word
                same = self._find_text(span, *self.target_words[j])
                others = (*taken, (0, target[0]), (target[1], len(self.target)))
                if same and not any(same[0] < other[1] and same[1] > other[0] for other in others):
                    return same
            self.num_unplaced += 1
            return target[1], target[1]
        first = min(j for j in own if best[1] <= j <= best[2])
        return self._trim(span, self.target_words[first][0], self.target_words[best[2]][1])

    def _trim(self, span: Span, start: int, end: int) -> Interval:
        """Leave out of an interval of whole words what the span leaves out of its first and last word."""
        text = self.source.text
        inner = text[span.start : span.end].strip()
        if same := self._find_text(span, start, end):
            return same
        words = [*REPLACEABLE.finditer(self.target, start, end)]
        if words and re.match(WORD_CHARACTER, inner):
            start = words[0].start()
        if words and re.match(WORD_CHARACTER, inner[-1]):
            end = words[-1].end()
        return start, end

    def _find_text(self, span: Span, start: int, end: int) -> Interval | None:
        """Return where the text of a span stands in an interval, if it is a part of a word, or beside signs."""
        text = self.source.text
        before, after = text[: span.start][-1:], text[span.end :][:1]
        if not (WORD.match(before) or WORD.match(after)):
            return None
        start_edge = "" if re.match(WORD_CHARACTER, before) else r"(?<!\w)"
        end_edge = "" if re.match(WORD_CHARACTER, after) else r"(?!\w)"
        inner = re.escape(text[span.start : span.end].strip())
        match = re.compile(f"{start_edge}{inner}{end_edge}", re.IGNORECASE).search(self.target, start, end)
        return match.span() if match else None

    def _neighbour(self, position: int, source: Interval, target: Interval) -> Interval:
        """Return where markup without text stands: behind what it follows, or before the word that it precedes."""
        text = self.source.text
        if not text[position : source[1]].strip():
            return target[1], target[1]
        if not text[source[0] : position].strip():
            return target[0], target[0]
        follows = not text[position - 1].isspace()
        words = [i for i, (start, _) in enumerate(self.source_words) if start < position] if follows else []
        words = words[-1:] or [i for i, (start, _) in enumerate(self.source_words) if start >= position][:1]
        intervals = [self.target_words[j] for i, j in self.pairs if i in words]
        if follows and not re.match(rf"\s|{WORD_CHARACTER}", text[position]):  # before the punctuation of a word
            intervals = [(start, self._end_of_word(start, end)) for start, end in intervals]
        edges = [interval[follows] for interval in intervals]
        edges = [edge for edge in edges if target[0] <= edge <= target[1]]
        if not edges:
            self.num_unplaced += 1
        edge = (max if follows else min)(edges, default=target[1])
        return edge, edge

    def _end_of_word(self, start: int, end: int) -> int:
        """Return the end of an interval of the target without the punctuation there."""
        return max((word.end() for word in REPLACEABLE.finditer(self.target, start, end)), default=end)
