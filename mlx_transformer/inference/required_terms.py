"""Terms in targets: copies by stand-ins, tags and translations from a glossary by alignment, the rest by search.

If the first target lacks a copy, the source is searched again with a stand-in for each copy: a number or a name, which
models copy reliably, and which is replaced in the target. Tags are left out, and placed by alignment. A term of the
glossary replaces the target words that are aligned with its source. If a term is missing after that, for instance
because no word is aligned with its source, a lexically constrained beam search generates a target with all terms.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference.scoring import Score
from mlx_transformer.inference.source_lines import SourceLine, is_in_capitals
from mlx_transformer.inference.term_insertion import (
    Align,
    best_index,
    insert_markup,
    insert_terms,
    is_markup,
    is_symbol,
)
from mlx_transformer.inference.terminology import (
    WORD_CHARACTER,
    Term,
    Terminology,
    missing_terms,
    occurrences,
    whole_words,
)

# Texts that models copy, and that suit most sentences. Each try begins with the next one.
STAND_INS = ("26", "Boston", "47", "Tom", "1998", "Mary")
NUM_TRIES = 3
CONSTRAINED_BEAM_SIZE = 4  # at least
CONSTRAINED_LENGTH_PENALTY = 0.5  # at most: with 1 long targets win, which put the term behind a finished sentence
MAX_PERMUTED_TERMS = 2
SEARCHED_TOGETHER = 16  # lines that lack terms
MAX_WAITING = 128  # lines that are held back for such lines

Generate = Callable[..., Iterator[list[Hypothesis]]]  # `generate_hypotheses` with all arguments but the lines
ScoreLines = Callable[..., Iterator[Score]]  # `score` with all arguments but lines, targets and alignment


class LineWithTerms(NamedTuple):
    """A line, its hypotheses, best first, and the terms that they should have; no terms if they have them."""

    line: SourceLine
    hypotheses: list[Hypothesis]
    terms: list[Term]


def require_terms(
    generate: Generate,
    score_lines: ScoreLines,
    terminology: Terminology,
    *,
    search: SearchConfig,
    alignment: AlignmentConfig | None = None,
    scores: bool = True,
) -> Generate:
    """Return a function like `generate` whose hypotheses contain the terms of their sources.

    Args:
        generate: `generate_hypotheses` with these arguments and others, but without lines.
        score_lines: Scores lines and their targets, and aligns them.
        terminology: The terms.
        search: The search configuration.
        alignment: How to align words; the default alignment if None.
        scores: Whether changed hypotheses have scores; NaN if not.

    Returns:
        A function that yields one hypothesis for each line with terms. `missing_terms` holds those that the hypothesis
        lacks all the same. Scores of changed hypotheses count their target prefix.
    """
    constrained_search = make_constrained_search(search)

    def align(lines: Sequence[SourceLine], targets: Sequence[str]) -> list[Score]:
        return list(score_lines(lines, targets, alignment=AlignmentConfig(cover_source=True)))

    def rescore(lines: Sequence[SourceLine], bests: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
        results = score_lines(lines, [best.text or "" for best in bests], alignment=alignment)
        changed = (_with_score(*each, search.length_penalty) for each in zip(bests, results, strict=True))
        return changed if scores else (replace(best, score=math.nan) for best in changed)

    def complete(lines: Sequence[LineWithTerms], again: Generate) -> Iterator[list[Hypothesis]]:
        if lacking := [each for each in lines if each.terms]:
            with_phrases = partial(again, search=constrained_search)
            changed = rescore([each.line for each in lacking], keep_terms(lacking, again, with_phrases, align))
        return ([next(changed)] if each.terms else each.hypotheses for each in lines)

    def generate_with_terms(lines: Iterable[SourceLine], *, first_line: int = 0, **options: Any) -> Iterator[Any]:
        waiting: list[LineWithTerms] = []
        for line, hypotheses in _with_lines(partial(generate, first_line=first_line, **options), lines):
            terms = terminology.find(line.text)
            is_complete = hypotheses[0].error or not missing_terms(terms, hypotheses[0].text or "")
            waiting.append(LineWithTerms(line, hypotheses, [] if is_complete else terms))
            num_lacking = sum(bool(each.terms) for each in waiting)
            if num_lacking in (0, SEARCHED_TOGETHER) or len(waiting) == MAX_WAITING:
                yield from complete(waiting, partial(generate, first_line=first_line, **options))
                first_line, waiting = first_line + len(waiting), []
        yield from complete(waiting, partial(generate, first_line=first_line, **options))

    return generate_with_terms


def _with_lines(generate: Generate, lines: Iterable[SourceLine]) -> Iterator[tuple[SourceLine, list[Hypothesis]]]:
    """Yield each line with its hypotheses."""
    read: deque[SourceLine] = deque()

    def record() -> Iterator[SourceLine]:
        for line in lines:
            read.append(line)
            yield line

    for hypotheses in generate(record()):
        yield read.popleft(), hypotheses


def _with_score(hypothesis: Hypothesis, result: Score, length_penalty: float) -> Hypothesis:
    """Return a hypothesis whose text has changed with the tokens, score and alignment of its text."""
    if result.error:
        return hypothesis
    return replace(
        hypothesis,
        ids=result.tokens[:-1],
        score=result.score / len(result.tokens) ** length_penalty,
        token_scores=None if hypothesis.token_scores is None else result.token_scores,
        alignment=result.alignment,
    )


def make_constrained_search(search: SearchConfig) -> SearchConfig:
    """Return a beam search with the other settings of a search; all beams are hypotheses to choose from."""
    beams = max(search.beam_size, CONSTRAINED_BEAM_SIZE)
    unsampled = replace(search, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, alternatives=False)
    length_penalty = min(search.length_penalty, CONSTRAINED_LENGTH_PENALTY)
    return replace(unsampled, beam_size=beams, num_hypotheses=beams, length_penalty=length_penalty)


def keep_terms(
    lines: Sequence[LineWithTerms], generate: Generate, generate_with_phrases: Generate, align: Align
) -> list[Hypothesis]:
    """Return the best hypothesis of each line with its terms; `missing_terms` holds those that it lacks all the same.

    Only its text and what belongs to the search are valid: not ids, scores and alignment.

    Args:
        lines: The lines, their hypotheses and terms.
        generate: Searches lines with stand-ins.
        generate_with_phrases: Searches lines with required phrases.
        align: Scores and aligns targets.
    """
    return [
        _keep_terms_of_line(line.terms, searched, generate_with_phrases, align)
        for line, searched in zip(lines, copy_texts(lines, generate, align), strict=True)
    ]


def _keep_terms_of_line(
    terms: Sequence[Term], searched: LineWithTerms, generate_with_phrases: Generate, align: Align
) -> Hypothesis:
    """Return the hypothesis of a line that was searched with stand-ins, with the terms of the line itself."""
    line, (best, *_), changed_terms = searched
    words = [term for term in changed_terms if not is_markup(term)]
    text = insert_terms(line, best.text or "", words, align)
    if missing_terms(words, text):
        text = with_fewest_missing(words, [text, search_phrases(line, words, generate_with_phrases, align)])[0]
    text = insert_markup(line, text, [term for term in changed_terms if is_markup(term)], align)
    originals = {new.target: old.target for old, new in zip(terms, changed_terms, strict=True) if new.is_copy}
    if originals:
        text = whole_words("|".join(map(re.escape, originals)), 0).sub(lambda match: originals[match[0]], text)
    return replace(best, text=text, missing_terms=tuple(term.target for term in missing_terms(terms, text)))


def search_phrases(line: SourceLine, terms: Sequence[Term], generate: Generate, align: Align) -> str:
    """Return the best target of a lexically constrained beam search; empty if there is none.

    Few terms are searched in every order, more in that of the source; the first one also with a capital, with which
    the target must begin.
    """
    targets = tuple(term.target for term in terms)
    orders = sorted({*permutations(targets)} if len(targets) <= MAX_PERMUTED_TERMS else {targets})
    capitals = [(first[0].upper() + first[1:], *rest) for first, *rest in orders]
    phrases = list(dict.fromkeys([*orders, *capitals]))
    rows = zip(phrases, generate([line._replace(required_phrases=each) for each in phrases]), strict=True)
    texts = [h.text or "" for each, row in rows for h in row if each in orders or (h.text or "").startswith(each[0])]
    texts = with_fewest_missing(terms, texts)
    results = align([line] * len(texts), texts)
    return max(zip(texts, results, strict=True), key=lambda pair: pair[1].score)[0] if texts else ""


def with_fewest_missing(terms: Sequence[Term], texts: Sequence[str]) -> list[str]:
    """Return the texts that lack the fewest terms."""
    counts = [len(missing_terms(terms, text)) for text in texts]
    return [text for text, count in zip(texts, counts, strict=True) if count == min(counts)]


def copy_texts(lines: Sequence[LineWithTerms], generate: Generate, align: Align) -> list[LineWithTerms]:
    """Search lines that lack copies again, in one batch, with stand-ins for these.

    Returns:
        The best line with stand-ins that its hypothesis has, and its terms with new positions; the line itself if it
        lacks no copy, or no search gives them.
    """
    tries = [
        with_stand_ins(line, terms)
        if missing_terms([term for term in terms if term.is_copy], hypotheses[0].text or "")
        else []
        for line, hypotheses, terms in lines
    ]
    rows = iter(generate(changed) if (changed := [line for each in tries for line, _ in each]) else ())
    searched = [[LineWithTerms(line, next(rows), terms) for line, terms in each] for each in tries]
    copied = [list(filter(has_each_copy_once, each)) for each in searched]
    every = [each for group in copied for each in group]
    results = iter(align([each.line for each in every], [each.hypotheses[0].text or "" for each in every]))
    return [
        group[best_index([next(results) for _ in group])] if group else each
        for group, each in zip(copied, lines, strict=True)
    ]


def has_each_copy_once(line: LineWithTerms) -> bool:
    """Whether the best hypothesis of a line has each stand-in exactly once."""
    best, copies = line.hypotheses[0], [term for term in line.terms if term.is_copy and not is_markup(term)]
    return not best.error and all(len([*occurrences(copy, best.text or "")]) == 1 for copy in copies)


def with_stand_ins(line: SourceLine, terms: Sequence[Term]) -> list[tuple[SourceLine, list[Term]]]:
    """Return a line with stand-ins for its copies, several times with other ones, and its terms with new positions.

    Markup, which is tags, symbols and copies beside letters, is left out. There is nothing to search if there are more
    copies than stand-ins.
    """
    texts = " ".join([line.text, *(term.target for term in terms)]).lower()
    names = [name for name in STAND_INS if name.lower() not in texts]
    names = [name.upper() for name in names] if is_in_capitals(line.text) else names
    markup = {
        term
        for term in terms
        if term.is_copy
        and (
            term.target.startswith("<")
            or is_symbol(term)
            or re.search(WORD_CHARACTER, line.text[: term.start][-1:] + line.text[term.end :][:1])
        )
    }
    num_copies = sum(term.is_copy for term in terms) - len(markup)
    num_tries = min(NUM_TRIES, len(names)) if num_copies else 1
    if num_copies > len(names):
        return []
    return [_replace_copies(line, terms, markup, names[i:] + names[:i]) for i in range(num_tries)]


def _replace_copies(
    line: SourceLine, terms: Sequence[Term], markup: set[Term], stand_ins: Sequence[str]
) -> tuple[SourceLine, list[Term]]:
    """Return a line with stand-ins for its copies and without its markup, and its terms with new positions."""
    names = iter(stand_ins)
    text, end, changed = "", 0, []
    for term in terms:
        text += line.text[end : term.start]
        source, target = line.text[term.start : term.end], term.target
        if term in markup:
            source = ""
        elif term.is_copy:
            source = target = next(names)
        changed.append(Term(len(text), len(text) + len(source), target, term.is_copy))
        text += source
        end = term.end
    return line._replace(text=text + line.text[end:]), changed
