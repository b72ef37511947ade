"""Terms that targets must contain: those of a glossary, and text to copy, such as addresses and placeholders."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlx_transformer.config.terminology import DEFAULT_PROTECTED, PROTECTED_PATTERNS
from mlx_transformer.inference.sentence_splitting import UNSPACED_SCRIPTS
from mlx_transformer.inference.source_lines import is_in_capitals
from mlx_transformer.messages import short_repr, similar_names
from mlx_transformer.tokenization.tokenizer import Tokenizer

# A character of a word in scripts with spaces between words; texts of other scripts may stand beside a term.
WORD_CHARACTER = rf"[^\W{UNSPACED_SCRIPTS.pattern.strip('[]')}]"


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
                such as US, only in capitals, and not in sources that are in capitals as a whole.
            protect: Keys of PROTECTED_PATTERNS, or regular expressions.

        Raises:
            TypeError: If the glossary is not a mapping, or `protect` no sequence of texts.
            ValueError: If a term is no text or blank, or a regular expression is invalid.
        """
        if not isinstance(glossary, Mapping | None):
            raise TypeError(
                f"glossary must be a mapping such as {{'dog': 'chien'}}, not {short_repr(glossary)}: read a file of "
                "terms into a dict first."
            )
        self.targets: dict[str, str] = {}
        for source, target in (glossary or {}).items():
            if not (isinstance(source, str) and isinstance(target, str) and source.strip() and target.strip()):
                raise ValueError(f"Terms of a glossary must be texts that are not blank: got {source!r}: {target!r}.")
            source = source.strip()
            is_abbreviation = source.isupper() and len(source) > 1
            key, target = source if is_abbreviation else source.lower(), target.strip()
            if self.targets.setdefault(key, target) != target:
                raise ValueError(f"A term of a glossary must have one target, but {source!r} has two: leave out one.")
        kinds = [protect] if isinstance(protect, str) else protect
        if not (isinstance(kinds, Sequence) and all(isinstance(kind, str) for kind in kinds)):
            raise TypeError(f"protect must be kinds of text such as ['urls', 'numbers'], not {short_repr(protect)}.")
        self.copied = [_compile(kind) for kind in kinds]
        longest_first = sorted(self.targets, key=len, reverse=True)
        self.entries = whole_words("|".join(map(re.escape, longest_first)), re.IGNORECASE) if self.targets else None

    def find(self, source: str) -> list[Term]:
        """Return the terms of a source, in order; they do not overlap."""
        copies = (match for pattern in self.copied for match in pattern.finditer(source))
        terms = [Term(match.start(), match.end(), match[0], is_copy=True) for match in copies]
        in_capitals = is_in_capitals(source)
        for match in self.entries.finditer(source) if self.entries else ():
            abbreviation = None if in_capitals else self.targets.get(match[0])
            if target := abbreviation or self.targets.get(match[0].lower()):
                target = target.upper() if in_capitals else target
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


def whole_words(pattern: str, flags: int) -> re.Pattern[str]:
    """Compile a pattern for texts that are no parts of longer words or addresses."""
    start = rf"(?:(?<!{WORD_CHARACTER})(?<!{WORD_CHARACTER}[.@/-])(?=\w)|(?=\W))"
    end = rf"(?:(?<=\w)(?!{WORD_CHARACTER}|[.@/-]{WORD_CHARACTER})|(?<=\W))"
    return re.compile(f"{start}(?:{pattern}){end}", flags)


def missing_terms(terms: Sequence[Term], target: str) -> list[Term]:
    """Return the terms that a target lacks, in order.

    Each occurrence counts for one term, the longest first; of equal terms that occur too rarely, the last are missing.
    """
    taken = bytearray(len(target))
    matches: dict[str, Iterator[re.Match[str]]] = {}
    missing = []
    for index, term in sorted(enumerate(terms), key=lambda item: -len(item[1].target)):
        if term.target not in matches:
            matches[term.target] = occurrences(term, target)
        match = next((match for match in matches[term.target] if not any(taken[slice(*match.span())])), None)
        if match is None:
            missing.append(index)
        else:
            taken[slice(*match.span())] = b"x" * len(match[0])
    return [terms[index] for index in sorted(missing)]


@functools.lru_cache(maxsize=8)  # takes a second or two for the largest vocabularies
def continues_word(tokenizer: Tokenizer) -> np.ndarray:
    """Return whether each target token continues a word that stands before it, bool (target_vocab_size,)."""
    start = tokenizer.target.encode("a")
    length = len(tokenizer.decode(start))
    # Bytes that are no characters on their own may be the first of a letter.
    continuation = re.compile(f"{WORD_CHARACTER}|\ufffd")
    texts = (tokenizer.decode([*start, token]) for token in range(tokenizer.target_vocab_size))
    return np.array([continuation.match(text, length) is not None for text in texts])


def occurrences(term: Term, target: str) -> Iterator[re.Match[str]]:
    """Find a term in a target, as a whole word; copies in the same case."""
    return whole_words(re.escape(term.target), 0 if term.is_copy else re.IGNORECASE).finditer(target)
