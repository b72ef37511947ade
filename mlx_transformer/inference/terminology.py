"""Terms that targets must contain: translations from a glossary, and text to copy, such as addresses and placeholders.

A result without a required term is searched again, with a target prefix that ends with the term: the text before the
words that are aligned with the term's source, then the term (lexical constraints placed by alignment, as in Hasler et
al. 2018, "Neural Machine Translation Decoding with Terminology Constraints"). The search itself is unchanged.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.terminology import DEFAULT_PROTECTED, PROTECTED_PATTERNS
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference.alignment import WORD
from mlx_transformer.inference.scoring import score
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

Generate = Callable[..., Iterator[list[Hypothesis]]]  # `generate_hypotheses` with all arguments but the lines
Align = Callable[[SourceLine, str], list[tuple[int, int]]]  # pairs of source and target words


class Term(NamedTuple):
    """A term of a source and what it must become.

    Attributes:
        start: Where the term begins in the source.
        end: Where it ends.
        target: The text that the target must contain.
    """

    start: int
    end: int
    target: str


class Terminology:
    """Finds the terms of a source: what a pattern protects, else entries of a glossary, longer ones first."""

    def __init__(self, glossary: Mapping[str, str] | None = None, protect: Sequence[str] = DEFAULT_PROTECTED) -> None:
        """Compile patterns.

        Args:
            glossary: Source term -> target term. Source terms are whole words, in any case.
            protect: Keys of PROTECTED_PATTERNS, or regular expressions.

        Raises:
            ValueError: If a term is blank, or a regular expression is invalid.
        """
        self.targets = {source.strip().casefold(): target.strip() for source, target in (glossary or {}).items()}
        if blank := [source for source, target in self.targets.items() if not (source and target)]:
            raise ValueError(f"Terms of a glossary must not be blank: {blank[0]!r} has {self.targets[blank[0]]!r}.")
        parts = [f"(?P<copy>{'|'.join(map(_pattern, protect))})"] if protect else []
        if self.targets:
            longest_first = sorted(self.targets, key=len, reverse=True)
            parts.append(f"(?i:{'|'.join(map(_whole_words, longest_first))})")
        self.pattern = re.compile("|".join(parts)) if parts else None

    def find(self, source: str) -> list[Term]:
        """Return the terms of a source, in order."""
        matches = self.pattern.finditer(source) if self.pattern else ()
        return [
            Term(match.start(), match.end(), match[0] if match.lastgroup else self.targets[match[0].casefold()])
            for match in matches
            if match[0]
        ]


def _pattern(name: str) -> str:
    """Return the regular expression of a kind of text, or a regular expression itself."""
    pattern = PROTECTED_PATTERNS.get(name, name)
    try:
        re.compile(pattern)
    except re.error as error:
        kinds = ", ".join(PROTECTED_PATTERNS)
        raise ValueError(f"protect must be any of {kinds}, or a regular expression: {name!r} has {error}.") from None
    return f"(?:{pattern})"


def _whole_words(text: str) -> str:
    """Return a regular expression for a text that is not a part of longer words or addresses."""
    before = r"(?<!\w)(?<!\w[.@/-])" if text[0].isalnum() else ""
    after = r"(?!\w|[.@/-]\w)" if text[-1].isalnum() else ""
    return f"{before}{re.escape(text)}{after}"


def require_terms(
    generate: Generate,
    model: Transformer,
    tokenizer: Tokenizer,
    terminology: Terminology,
    *,
    search: SearchConfig | None = None,
    source_prefix: str | None = None,
) -> Generate:
    """Return a function like `generate` whose hypotheses contain the terms of their sources.

    Args:
        generate: `generate_hypotheses` with these arguments and others, but without lines.
        model: The model.
        tokenizer: Its tokenizer.
        terminology: The terms.
        search: The search configuration; `model.search_defaults` if None.
        source_prefix: See `generate_hypotheses`.

    Returns:
        A function that yields one hypothesis for each line with terms. `missing_terms` holds those that the hypothesis
        lacks after a search for each of them. The score counts what follows the last term that was inserted.
    """
    search = search or model.search_defaults
    all_beams = replace(search, num_hypotheses=search.beam_size)

    def align(line: SourceLine, target: str) -> list[tuple[int, int]]:
        (result,) = score(
            model,
            tokenizer,
            [line.text],
            [target],
            source_language=line.source_language,
            target_language=line.target_language,
            source_prefix=source_prefix,
            alignment=AlignmentConfig(),
            return_errors=True,
        )
        return result.alignment or []

    def generate_with_terms(lines: Iterable[SourceLine], **options: Any) -> Iterator[list[Hypothesis]]:
        read: deque[SourceLine] = deque()
        again = partial(generate, **options | {"search": all_beams})

        def record() -> Iterator[SourceLine]:
            for line in lines:
                read.append(line)
                yield line

        for hypotheses in generate(record(), **options):
            line = read.popleft()
            terms = terminology.find(line.text)
            yield [add_terms(line, hypotheses[0], terms, again, align)] if terms else hypotheses

    return generate_with_terms


def missing_terms(terms: Sequence[Term], target: str) -> list[Term]:
    """Return the terms that a target lacks, in order; of equal ones that it has too rarely, the last."""
    present = {
        text: len(re.findall(_whole_words(text), target, re.IGNORECASE)) for text in {term.target for term in terms}
    }
    seen: Counter[str] = Counter()
    missing = []
    for term in terms:
        seen[term.target] += 1
        if seen[term.target] > present[term.target]:
            missing.append(term)
    return missing


def add_terms(
    line: SourceLine, best: Hypothesis, terms: Sequence[Term], generate: Generate, align: Align
) -> Hypothesis:
    """Search again until the target has all terms; each search inserts one more of them, from left to right.

    Args:
        line: The source.
        best: Its best hypothesis so far.
        terms: Its terms.
        generate: Searches lines with target prefixes; of several hypotheses, the best with the most terms counts.
        align: Returns the aligned words of the source and a target.
    """
    prefix = line.target_prefix or ""
    for _ in terms:
        text = best.text or ""
        missing = missing_terms(terms, text)
        if best.error or not missing:
            break
        pairs = align(line, text)
        places = [max(len(prefix), find_place(line.text, text, term, pairs)) for term in missing]
        place = min(places)
        space = "" if not text[:place] or text[place - 1].isspace() else " "
        prefix = text[:place] + space + missing[places.index(place)].target
        (hypotheses,) = generate([line._replace(target_prefix=prefix)])
        best = min(hypotheses, key=lambda hypothesis: len(missing_terms(terms, hypothesis.text or "")))
    return replace(best, missing_terms=tuple(term.target for term in missing_terms(terms, best.text or "")))


def find_place(source: str, target: str, term: Term, pairs: Sequence[tuple[int, int]]) -> int:
    """Return where the translation of a term begins in a target: at its first aligned word.

    Without one, it is after the words that are aligned with the source before the term.
    """
    source_words, target_words = ([*WORD.finditer(text)] for text in (source, target))
    of_term = {i for i, word in enumerate(source_words) if word.start() < term.end and word.end() > term.start}
    if aligned := [j for i, j in pairs if i in of_term]:
        return target_words[min(aligned)].start()
    before = [j for i, j in pairs if source_words[i].end() <= term.start]
    return target_words[max(before)].end() if before else 0
