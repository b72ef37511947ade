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
from mlx_transformer.inference.sentence_splitting import UNSPACED_SCRIPTS
from mlx_transformer.inference.source_lines import SourceLine, is_in_capitals
from mlx_transformer.messages import similar_names
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

# A character of a word in scripts with spaces between words; texts of other scripts may stand beside a term.
WORD_CHARACTER = rf"[^\W{UNSPACED_SCRIPTS.pattern.strip('[]')}]"

Generate = Callable[..., Iterator[list[Hypothesis]]]  # `generate_hypotheses` with all arguments but the lines
Align = Callable[[SourceLine, str], list[tuple[int, int]]]  # pairs of source and target words


class Term(NamedTuple):
    """A term of a source and what it must become.

    Attributes:
        start: Where the term begins in the source.
        end: Where it ends.
        target: The text that the target must contain.
        is_copy: Whether it is copied, in the same case.
    """

    start: int
    end: int
    target: str
    is_copy: bool = False


class Terminology:
    """Finds the terms of a source: what a pattern protects, else entries of a glossary, longer ones first."""

    def __init__(
        self, glossary: Mapping[str, str] | None = None, protect: str | Sequence[str] = DEFAULT_PROTECTED
    ) -> None:
        """Compile patterns.

        Args:
            glossary: Source term -> target term. Source terms are whole words, in any case, but those in capitals,
                such as US, only in capitals.
            protect: Keys of PROTECTED_PATTERNS, or regular expressions.

        Raises:
            ValueError: If a term is no text or blank, or a regular expression is invalid.
        """
        self.targets: dict[str, str] = {}
        for source, target in dict(glossary or {}).items():
            if not (isinstance(source, str) and isinstance(target, str) and source.strip() and target.strip()):
                raise ValueError(f"Terms of a glossary must be texts that are not blank: got {source!r}: {target!r}.")
            source = source.strip()
            is_abbreviation = source.isupper() and len(source) > 1
            self.targets[source if is_abbreviation else source.lower()] = target.strip()
        self.copied = [_compile(name) for name in ([protect] if isinstance(protect, str) else protect)]
        longest_first = sorted(self.targets, key=len, reverse=True)
        self.entries = _whole_words("|".join(map(re.escape, longest_first)), re.IGNORECASE) if self.targets else None

    def find(self, source: str) -> list[Term]:
        """Return the terms of a source, in order; they do not overlap."""
        copies = (match for pattern in self.copied for match in pattern.finditer(source))
        terms = [Term(match.start(), match.end(), match[0], is_copy=True) for match in copies]
        for match in self.entries.finditer(source) if self.entries else ():
            if target := self.targets.get(match[0]) or self.targets.get(match[0].lower()):
                target = target.upper() if is_in_capitals(source) else target
                terms.append(Term(match.start(), match.end(), target))
        taken = bytearray(len(source))
        free = []
        for term in terms:
            if term.start < term.end and not any(taken[term.start : term.end]):
                taken[term.start : term.end] = b"x" * (term.end - term.start)
                free.append(term)
        return sorted(free)


def _compile(name: str) -> re.Pattern[str]:
    """Compile the regular expression of a kind of text, or one that is given itself."""
    kinds = ", ".join(PROTECTED_PATTERNS)
    if name not in PROTECTED_PATTERNS and re.fullmatch("[a-z, ]+", name):
        similar = similar_names(name, PROTECTED_PATTERNS)
        raise ValueError(f"protect must be a kind of text or a regular expression, not the word {name!r}. {similar}")
    try:
        return re.compile(PROTECTED_PATTERNS.get(name, name))
    except re.error as error:
        raise ValueError(f"protect must be any of {kinds}, or a regular expression: {name!r} has {error}.") from None


def _whole_words(pattern: str, flags: int) -> re.Pattern[str]:
    """Compile a pattern for texts that are no parts of longer words or addresses."""
    start = rf"(?:(?<!{WORD_CHARACTER})(?<!{WORD_CHARACTER}[.@/-])(?=\w)|(?=\W))"
    end = rf"(?:(?<=\w)(?!{WORD_CHARACTER}|[.@/-]{WORD_CHARACTER})|(?<=\W))"
    return re.compile(f"{start}(?:{pattern}){end}", flags)


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

        def record() -> Iterator[SourceLine]:
            for line in lines:
                read.append(line)
                yield line

        for number, hypotheses in enumerate(generate(record(), **options), start=options.get("first_line", 0)):
            line = read.popleft()
            terms = terminology.find(line.text)
            again = partial(generate, **options | {"search": all_beams, "first_line": number})
            yield [add_terms(line, hypotheses[0], terms, again, align)] if terms else hypotheses

    return generate_with_terms


def missing_terms(terms: Sequence[Term], target: str) -> list[Term]:
    """Return the terms that a target lacks, in order; of equal ones that it has too rarely, the last."""
    seen: Counter[str] = Counter()
    missing = []
    for term in terms:
        seen[term.target] += 1
        flags = 0 if term.is_copy else re.IGNORECASE
        if seen[term.target] > len(_whole_words(re.escape(term.target), flags).findall(target)):
            missing.append(term)
    return missing


def add_terms(
    line: SourceLine, best: Hypothesis, terms: Sequence[Term], generate: Generate, align: Align
) -> Hypothesis:
    """Search again until the target has all terms; each search inserts one more of them, from left to right.

    Args:
        line: The source.
        best: Its best hypothesis.
        terms: Its terms.
        generate: Searches lines with target prefixes; of several hypotheses, the best with the most terms counts.
        align: Returns the aligned words of the source and a target.

    Returns:
        Of all hypotheses the first with the most terms.
    """

    def num_missing(hypothesis: Hypothesis) -> int:
        return len(missing_terms(terms, hypothesis.text or ""))

    prefix, tried = line.target_prefix or "", [best]
    inserted: set[Term] = set()
    while not best.error:
        text = tried[-1].text or ""
        missing = [term for term in missing_terms(terms, text) if term not in inserted]
        if not missing:
            break
        pairs = align(line, text)
        place, term = min((max(len(prefix), find_place(line.text, text, term, pairs)), term) for term in missing)
        inserted.add(term)
        space = "" if not text[:place] or text[place - 1].isspace() else " "
        prefix = text[:place] + space + term.target
        (hypotheses,) = generate([line._replace(target_prefix=prefix)])
        if hypotheses[0].error:
            break
        tried.append(min(hypotheses, key=num_missing))
    best = min(tried, key=num_missing)
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
