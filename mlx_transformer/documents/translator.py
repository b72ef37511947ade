"""Translates the texts of a document, with their markup, and counts what could not be placed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.terminology import choose_protected
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.documents.content import (
    Content,
    find_texts,
    has_letters,
    replace_texts,
    strip_edges,
    without_soft_hyphens,
    write,
)
from mlx_transformer.documents.markup_placement import MarkedText, MarkupPlacement, Span, mark_text, split_edges
from mlx_transformer.inference.generation import generate_hypotheses
from mlx_transformer.inference.line_errors import raise_first_error
from mlx_transformer.inference.sentence_splitting import combine_hypotheses, generate_paragraphs, split_line
from mlx_transformer.inference.source_lines import make_source_lines
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

MAX_MARKUP = 500  # in one text; a text with more stays as it is
ATOM = r"\{c+\d+\}"  # the placeholders of `mark_text`
# A message of ICU, whose forms for numbers or cases are code around texts: {n, plural, one {a file} other {# files}}.
ICU_FORMS = re.compile(r"\{\s*[\w.]+\s*,\s*(?:plural|select|selectordinal)\s*,")
# Searches texts; the second argument says whether their words are aligned.
SearchTexts = Callable[[Sequence[str], bool], Iterable[Hypothesis]]
# Called after each text with the number of texts so far, and of those known so far.
Progress = Callable[[int, int], object]


@dataclass
class DocumentReport:
    """What happened to the texts of a document.

    Attributes:
        texts: Number of translated texts.
        unplaced_tags: Tags and other markup at the end of their text, because no word is aligned with theirs.
        appended_copies: Placeholders, code and the like at the end of their text, because its translation lacks them.
        missing_terms: Terms of a glossary that translations lack.
        truncated: Texts that were longer than the model can read.
        untouched: Texts that stay as they are, because they have too much markup, or it cannot be written again.
        long_cues: Subtitles with lines that are too long or too many.
    """

    texts: int = 0
    unplaced_tags: int = 0
    appended_copies: int = 0
    missing_terms: int = 0
    truncated: int = 0
    untouched: int = 0
    long_cues: int = 0


class Translator:
    """Translates contents.

    Attributes:
        language: The tag of the target language for documents that name it, such as fr; None if it is not known.
        report: Counts.
    """

    def __init__(
        self, search_texts: SearchTexts, language: str | None = None, progress: Progress | None = None
    ) -> None:
        self.search_texts, self.language, self.report = search_texts, language, DocumentReport()
        self._progress, self._done, self._known = progress, 0, 0

    def translate_texts(self, texts: Iterable[str]) -> list[str]:
        """Translate texts; white space around them stays, and so do texts without letters."""
        return [write(content) for content in self.translate_contents([(text,) for text in texts])]

    def translate_contents(self, contents: Iterable[Content]) -> list[Content]:
        """Translate contents, and place their markup; contents without letters stay, and so do line breaks."""
        contents = list(contents)
        texts = iter(self._translate([text for content in contents for text in find_texts(content)]))
        return [replace_texts(content, texts) for content in contents]

    def leaves(self, content: Content) -> bool:
        """Whether a content, or a part of it, would stay as it is although it has letters; it is counted then."""
        stays = any(_stays(mark_text(text)) for text in find_texts(content))
        self.report.untouched += stays
        return stays

    def _translate(self, contents: list[Content]) -> list[Content]:
        """Return contents without line breaks in the target language."""
        parts = [split_edges(content) for content in contents]
        marked = [mark_text(without_soft_hyphens(text)) for _, text, _ in parts]
        self.report.untouched += sum(map(_stays, marked))
        keys = dict.fromkeys((strip_edges(each.text), bool(each.spans)) for each in marked if _is_translated(each))
        self._known += len(keys)
        found: dict[tuple[str, bool], Hypothesis] = {}
        for aligned in (False, True):
            if texts := [text for text, has_spans in keys if has_spans == aligned]:
                hypotheses = self._count(self.search_texts(texts, aligned))
                found |= zip([(text, aligned) for text in texts], hypotheses, strict=True)
        return [
            (*head, *place_markup(each, found[key], self.report), *tail)
            if (key := (strip_edges(each.text), bool(each.spans))) in found
            else (*head, *text, *tail)
            for (head, text, tail), each in zip(parts, marked, strict=True)
        ]

    def _count(self, hypotheses: Iterable[Hypothesis]) -> Iterator[Hypothesis]:
        for hypothesis in hypotheses:
            self._done += 1
            if self._progress:
                self._progress(self._done, self._known)
            yield hypothesis


def place_markup(marked: MarkedText, hypothesis: Hypothesis, report: DocumentReport) -> Content:
    """Return the text of a hypothesis with the markup and the surrounding white space of its source; count in a report.

    Copies that the text lacks are appended.
    """
    source = strip_edges(marked.text)
    before, _, after = marked.text.partition(source)
    target = (hypothesis.text or "").strip()
    copies = [term for term in hypothesis.missing_terms if term in source]
    copies += [name for name in marked.atoms if name not in target and name not in copies]
    target = " ".join([target, *copies])
    report.texts += 1
    report.truncated += hypothesis.truncated
    report.appended_copies += len(copies)
    report.missing_terms += sum(term not in copies for term in hypothesis.missing_terms)
    spans = tuple(_shift(span, -len(before), len(source)) for span in marked.spans)
    placement = MarkupPlacement(marked._replace(text=source, spans=spans), target, hypothesis.alignment or [])
    content = placement.place()
    report.unplaced_tags += placement.num_unplaced
    return tuple(part for part in (before, *content, after) if part)


def _stays(marked: MarkedText) -> bool:
    """Whether a text has too much markup, or is code around texts."""
    return marked.num_inlines > MAX_MARKUP or ICU_FORMS.search(marked.text) is not None


def _is_translated(marked: MarkedText) -> bool:
    """Whether a text has letters outside of its atoms, and need not stay."""
    return not _stays(marked) and has_letters(re.sub(ATOM, "", marked.text))


def _shift(span: Span, offset: int, length: int) -> Span:
    """Return a span of a text whose surrounding white space is removed."""
    start, end = (min(max(edge + offset, 0), length) for edge in (span.start, span.end))
    return span._replace(start=start, end=end, children=tuple(_shift(each, offset, length) for each in span.children))


def make_translator(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    search: SearchConfig,
    languages: tuple[str | None, str | None],
    source_prefix: str | None,
    split_sentences: bool | None,
    sentence_language: str | None,
    glossary: Mapping[str, str] | None,
    protect: Sequence[str] | None,
    batch_tokens: int,
    shortlist: LexicalShortlist | None,
    language: str | None,
    progress: Progress | None,
) -> Translator:
    """Return a translator that searches with a model; see `translate_document` for the arguments."""
    if not search.temperature:
        search = replace(search, num_hypotheses=1)
    prefix: dict[str, Any] = {"source_prefix": source_prefix}
    split = partial(
        split_line,
        model=model,
        tokenizer=tokenizer,
        split_sentences=split_sentences,
        language=sentence_language,
        **prefix,
    )

    def search_texts(texts: Sequence[str], aligned: bool) -> Iterator[Hypothesis]:
        generate = partial(
            generate_hypotheses,
            model,
            tokenizer,
            search=search,
            glossary=glossary,
            protect=[ATOM, *choose_protected(protect, tokenizer.config)],
            batch_tokens=batch_tokens,
            shortlist=shortlist,
            alignment=AlignmentConfig(cover_source=True) if aligned else None,
            scores=False,
            return_errors=True,
            **prefix,
        )
        lines = make_source_lines(texts, *languages)
        results = (
            combine_hypotheses(paragraph, [best for best, *_ in rows])
            for paragraph, rows in generate_paragraphs(map(split, lines), generate)
        )
        return raise_first_error(results, lambda best: best.error, "Text")

    return Translator(search_texts, language, progress)
