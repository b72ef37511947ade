"""Places terms in a target by word alignment: markup beside words, other terms instead of them.

Where several replacements are possible, the model's score decides.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from mlx_transformer.inference.alignment import WORD
from mlx_transformer.inference.scoring import Score
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.inference.terminology import WORD_CHARACTER, Term, missing_terms

MAX_REPLACED_WORDS = 4
# A word that a term can replace, without an elided one before it, such as l'.
REPLACEABLE = re.compile(
    rf"(?<!{WORD_CHARACTER})(?!{WORD_CHARACTER}{{1,2}}['’]{WORD_CHARACTER}){WORD_CHARACTER}"
    rf"(?:{WORD_CHARACTER}|['’-](?={WORD_CHARACTER}))*"
)
# French and Italian articles and the like at the end of a text: elided, or to be elided before a vowel.
ELIDED = re.compile(r"\b(?:[cdjlmnst]|qu)['’]$", re.IGNORECASE)
ELIDABLE = re.compile(r"\b(?:[cdjlmnst]e|que|l[ao]) $", re.IGNORECASE)
PUNCTUATION = " \u00a0\u202f.!?…。！？"  # at the end of a sentence
VOWELS = "aeiouhàâéèêëîïôœûü"

Align = Callable[[Sequence[SourceLine], Sequence[str]], list[Score]]  # scores and aligns the target of each line


def is_markup(term: Term) -> bool:
    """Whether a term was left out of the source: a tag, a symbol, or another copy beside a letter."""
    return term.start == term.end


def is_symbol(term: Term) -> bool:
    """Whether a term is a sign without letters and digits, and no placeholder."""
    return term.is_copy and not re.search(r"[\w{}%]", term.target)


def insert_markup(line: SourceLine, target: str, markup: Sequence[Term], align: Align) -> str:
    """Return a target with markup beside the words that are aligned with its neighbours in the source.

    Symbols at the beginning and the end of the source stay there. Other markup whose neighbour is not aligned is left
    out.
    """
    if markup:
        (result,) = align([line], [target])
        positions = [_markup_position(line.text, target, term, result.alignment or []) for term in markup]
        for index in sorted(range(len(markup)), key=lambda i: (positions[i], i), reverse=True):
            if (position := positions[index]) >= 0:
                text = _with_space(line.text, markup[index])
                target = target[:position] + text + target[position:]
    return target


def _follows(source: str, term: Term) -> bool:
    """Whether markup belongs to the word before it: closing tags, and what stands directly behind a word only."""
    before, after = source[: term.start], source[term.start :]
    is_behind, is_in_front = (bool(re.match(WORD_CHARACTER, text)) for text in (before[-1:], after))
    is_last = not (re.search(WORD_CHARACTER, after) if is_symbol(term) else after.strip())
    return term.target.startswith("</") or is_last or (is_behind and not is_in_front)


def _with_space(source: str, term: Term) -> str:
    """Return markup, a symbol with the space between it and the word that it belongs to."""
    if not is_symbol(term):
        return term.target
    if _follows(source, term):
        return f" {term.target}" if source[: term.start][-1:].isspace() else term.target
    return f"{term.target} " if source[term.start :][:1].isspace() else term.target


def _markup_position(source: str, target: str, term: Term, pairs: Sequence[tuple[int, int]]) -> int:
    """Return where markup stands in a target; -1 if its neighbour is not aligned."""
    before, after = source[: term.start], source[term.start :]
    follows = _follows(source, term)
    if is_symbol(term) and not before.strip():
        return 0
    if is_symbol(term) and not re.search(WORD_CHARACTER, after):  # before the punctuation at the end, if it was there
        return len(target.rstrip(PUNCTUATION)) if after.strip() else len(target)
    is_behind, is_in_front = (bool(re.match(WORD_CHARACTER, text)) for text in (before[-1:], after))
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
            target = candidates[best_index(align([line] * len(candidates), candidates))]
    return target


def best_index(results: Sequence[Score]) -> int:
    """Return the index of the target with the best score per token."""
    return max(range(len(results)), key=lambda i: results[i].score / max(len(results[i].tokens), 1))


def replacements(line: SourceLine, target: str, term: Term, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return targets in which a term replaces one or several words that are aligned with its source.

    Words that also are in the rest of the source, such as names and numbers, are not replaced. A copy whose source is
    not aligned is inserted after the words that are aligned with what precedes it.

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
    others = {word[0] for word in REPLACEABLE.finditer(line.text[: term.start] + " " + line.text[term.end :])}
    words = [
        word
        for word in REPLACEABLE.finditer(target, start)
        if any(begin <= word.start() < end for begin, end in aligned) and word[0] not in others
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
