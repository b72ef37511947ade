"""Terms in targets: copies by stand-ins, tags and translations from a glossary by alignment.

If the first target lacks a copy, the source is searched again with a stand-in for each copy: a number or a name, which
models copy reliably, and which is replaced in the target. Tags are left out, and placed by alignment. A term of the
glossary replaces the target words that are aligned with its source; where several replacements are possible, the
model's score decides.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference.alignment import WORD
from mlx_transformer.inference.scoring import Score, score
from mlx_transformer.inference.source_lines import SourceLine, is_in_capitals
from mlx_transformer.inference.terminology import (
    WORD_CHARACTER,
    Term,
    Terminology,
    missing_terms,
    occurrences,
    whole_words,
)
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

# Texts that models copy, and that suit most sentences. Each try begins with the next one.
STAND_INS = ("26", "Boston", "47", "Tom", "1998", "Mary")
NUM_TRIES = 3
MAX_REPLACED_WORDS = 4
# A word that a term can replace, without an elided one before it, such as l'.
REPLACEABLE = re.compile(
    rf"(?<!{WORD_CHARACTER})(?!{WORD_CHARACTER}{{1,2}}['’]{WORD_CHARACTER}){WORD_CHARACTER}"
    rf"(?:{WORD_CHARACTER}|['’-](?={WORD_CHARACTER}))*"
)
# French and Italian articles and the like at the end of a text: elided, or to be elided before a vowel.
ELIDED = re.compile(r"\b(?:[cdjlmnst]|qu)['’]$", re.IGNORECASE)
ELIDABLE = re.compile(r"\b(?:[cdjlmnst]e|que|l[ao]) $", re.IGNORECASE)
VOWELS = "aeiouhàâéèêëîïôœûü"

SEARCHED_TOGETHER = 16  # lines that lack terms
MAX_WAITING = 128  # lines that are held back for such lines

Generate = Callable[..., Iterator[list[Hypothesis]]]  # `generate_hypotheses` with all arguments but the lines
Align = Callable[[Sequence[SourceLine], Sequence[str]], list[Score]]  # scores and aligns the target of each line


class LineWithTerms(NamedTuple):
    """A line, its hypotheses, best first, and the terms that they should have; no terms if they have them."""

    line: SourceLine
    hypotheses: list[Hypothesis]
    terms: list[Term]


def require_terms(
    generate: Generate,
    model: Transformer,
    tokenizer: Tokenizer,
    terminology: Terminology,
    *,
    search: SearchConfig | None = None,
    source_prefix: str | None = None,
    alignment: AlignmentConfig | None = None,
    scores: bool = True,
) -> Generate:
    """Return a function like `generate` whose hypotheses contain the terms of their sources.

    Args:
        generate: `generate_hypotheses` with these arguments and others, but without lines.
        model: The model.
        tokenizer: Its tokenizer.
        terminology: The terms.
        search: The search configuration; `model.search_defaults` if None.
        source_prefix: See `generate_hypotheses`.
        alignment: How to align words; the default alignment if None.
        scores: Whether changed hypotheses have scores; NaN if not.

    Returns:
        A function that yields one hypothesis for each line with terms. `missing_terms` holds those that the hypothesis
        lacks all the same. Scores of changed hypotheses count their target prefix.
    """
    length_penalty = (search or model.search_defaults).length_penalty
    score_lines = partial(score, model, tokenizer, source_prefix=source_prefix, return_errors=True)

    def align(lines: Sequence[SourceLine], targets: Sequence[str]) -> list[Score]:
        return list(score_lines(lines, targets, alignment=AlignmentConfig()))

    def rescore(lines: Sequence[SourceLine], bests: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
        results = score_lines(lines, [best.text or "" for best in bests], alignment=alignment)
        changed = (_with_score(*each, length_penalty) for each in zip(bests, results, strict=True))
        return changed if scores else (replace(best, score=math.nan) for best in changed)

    def complete(lines: Sequence[LineWithTerms], again: Generate) -> Iterator[list[Hypothesis]]:
        if lacking := [each for each in lines if each.terms]:
            changed = rescore([each.line for each in lacking], keep_terms(lacking, again, align))
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


def keep_terms(lines: Sequence[LineWithTerms], generate: Generate, align: Align) -> list[Hypothesis]:
    """Return the best hypothesis of each line with its terms; `missing_terms` holds those that it lacks all the same.

    Only its text and what belongs to the search are valid: not ids, scores and alignment.

    Args:
        lines: The lines, their hypotheses and terms.
        generate: Searches lines with stand-ins.
        align: Scores and aligns targets.
    """
    return [
        _keep_terms_of_line(line.terms, searched, align)
        for line, searched in zip(lines, copy_texts(lines, generate, align), strict=True)
    ]


def _keep_terms_of_line(terms: Sequence[Term], searched: LineWithTerms, align: Align) -> Hypothesis:
    """Return the hypothesis of a line that was searched with stand-ins, with the terms of the line itself."""
    line, (best, *_), changed_terms = searched
    text = insert_terms(line, best.text or "", [term for term in changed_terms if not is_markup(term)], align)
    text = insert_markup(line, text, [term for term in changed_terms if is_markup(term)], align)
    originals = {new.target: old.target for old, new in zip(terms, changed_terms, strict=True) if new.is_copy}
    if originals:
        text = whole_words("|".join(map(re.escape, originals)), 0).sub(lambda match: originals[match[0]], text)
    return replace(best, text=text, missing_terms=tuple(term.target for term in missing_terms(terms, text)))


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
        group[_best_index([next(results) for _ in group])] if group else each
        for group, each in zip(copied, lines, strict=True)
    ]


def is_markup(term: Term) -> bool:
    """Whether a term was left out of the source: a tag, or another copy beside a letter."""
    return term.start == term.end


def has_each_copy_once(line: LineWithTerms) -> bool:
    """Whether the best hypothesis of a line has each stand-in exactly once."""
    best, copies = line.hypotheses[0], [term for term in line.terms if term.is_copy and not is_markup(term)]
    return not best.error and all(len([*occurrences(copy, best.text or "")]) == 1 for copy in copies)


def with_stand_ins(line: SourceLine, terms: Sequence[Term]) -> list[tuple[SourceLine, list[Term]]]:
    """Return a line with stand-ins for its copies, several times with other ones, and its terms with new positions.

    Markup, which is tags and copies beside letters, is left out. There is nothing to search if there are more copies
    than stand-ins.
    """
    names = [name for name in STAND_INS if name.lower() not in line.text.lower()]
    names = [name.upper() for name in names] if is_in_capitals(line.text) else names
    markup = {
        term
        for term in terms
        if term.is_copy
        and (
            term.target.startswith("<")
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


def insert_markup(line: SourceLine, target: str, markup: Sequence[Term], align: Align) -> str:
    """Return a target with markup beside the words that are aligned with its neighbours in the source.

    Markup whose neighbour is not aligned is left out.
    """
    if markup:
        (result,) = align([line], [target])
        positions = [_markup_position(line.text, target, term, result.alignment or []) for term in markup]
        for index in sorted(range(len(markup)), key=lambda i: (positions[i], i), reverse=True):
            if (position := positions[index]) >= 0:
                target = target[:position] + markup[index].target + target[position:]
    return target


def _markup_position(source: str, target: str, term: Term, pairs: Sequence[tuple[int, int]]) -> int:
    """Return where markup stands in a target; -1 if its neighbour is not aligned.

    Closing tags, and what stands directly behind a word, follow a word; the rest precedes one.
    """
    before, after = source[: term.start], source[term.start :]
    is_behind, is_in_front = (bool(re.match(WORD_CHARACTER, text)) for text in (before[-1:], after))
    follows = term.target.startswith("</") or not after.strip() or (is_behind and not is_in_front)
    neighbour = len(WORD.findall(before if follows else before + "x")) - 1
    target_words = [*WORD.finditer(target)]
    aligned = [target_words[j] for i, j in pairs if i == neighbour]
    if is_behind if follows else is_in_front:  # punctuation beside the word stays outside
        aligned = [part for word in aligned for part in REPLACEABLE.finditer(target, *word.span())]
    positions = [word.end() if follows else word.start() for word in aligned]
    return (max if follows else min)(positions, default=-1)


def insert_terms(line: SourceLine, target: str, terms: Sequence[Term], align: Align) -> str:
    """Return a target in which its missing terms replace words that are aligned with their sources.

    Of several replacements, the one with the best score per token is taken.
    """
    for term in missing_terms(terms, target):
        num_missing = len(missing_terms(terms, target))
        (result,) = align([line], [target])
        candidates = replacements(line, target, term, result.alignment or [])
        candidates = [text for text in candidates if len(missing_terms(terms, text)) < num_missing]
        if candidates:
            target = candidates[_best_index(align([line] * len(candidates), candidates))]
    return target


def _best_index(results: Sequence[Score]) -> int:
    """Return the index of the target with the best score per token."""
    return max(range(len(results)), key=lambda i: results[i].score / max(len(results[i].tokens), 1))


def replacements(line: SourceLine, target: str, term: Term, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return targets in which a term replaces one or several words that are aligned with its source.

    A copy whose source is not aligned is inserted after the words that are aligned with what precedes it.

    Args:
        line: The source; its target prefix stays as it is.
        target: The target.
        term: The term.
        pairs: Pairs of aligned source and target words.
    """
    start = len(line.target_prefix or "")
    source_words, target_words = ([*WORD.finditer(text)] for text in (line.text, target))
    of_term = {i for i, word in enumerate(source_words) if word.start() < term.end and word.end() > term.start}
    aligned = [target_words[j].span() for i, j in pairs if i in of_term]
    words = [
        word
        for word in REPLACEABLE.finditer(target, start)
        if any(begin <= word.start() < end for begin, end in aligned)
    ]
    runs = [words[i : i + length] for i in range(len(words)) for length in range(1, MAX_REPLACED_WORDS + 1)]
    spans = {(run[0].start(), run[-1].end()) for run in runs}
    if not words and term.is_copy:
        before = [target_words[j].end() for i, j in pairs if source_words[i].end() <= term.start]
        spans = {(max([start, *before]),) * 2}
    return list(dict.fromkeys(text for span in sorted(spans) for text in _spellings(target, *span, term)))


def _spellings(target: str, start: int, end: int, term: Term) -> Iterator[str]:
    """Yield a target with a term instead of a part of it; an article before the term is elided, or not, as it needs."""
    before, after, text = target[:start], target[end:], term.target
    if not term.is_copy and target[start : start + 1].isupper() and not re.search(r"\w", before):
        text = text[0].upper() + text[1:]
    if start == end and before[-1:].strip():
        text = f" {text}"
    starts_with_vowel = text[0].lower() in VOWELS
    if ELIDED.search(before) and not starts_with_vowel:
        yield from (f"{before[:-1]}{vowel} {text}{after}" for vowel in ("EAO" if target.isupper() else "eao"))
        return
    yield before + text + after
    if ELIDABLE.search(before) and starts_with_vowel:
        yield f"{before[:-2]}'{text}{after}"
