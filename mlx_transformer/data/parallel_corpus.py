"""Parallel text in files: what a SPEC names, and its pairs, read line by line as often as they are wanted."""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from .dates import date_pairs

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LANGUAGE_PREFIX = re.compile(r"([\w-]*):([\w-]*)=")
SPEC_SYNTAX = "a SPEC is FILE.tsv, A::B or dates, after SOURCE:TARGET= where it tells languages"


class SentencePair(NamedTuple):
    """A source and its target, with the codes of their languages where those are told."""

    source: str
    target: str
    source_language: str | None = None
    target_language: str | None = None


class CorpusSpec(NamedTuple):
    """A SPEC taken apart.

    Attributes:
        text: As it was written.
        files: One file of two columns, or two of one; none for the built-in task.
        split: The split of the built-in task.
        source_language: The code of its sources' language, if told.
        target_language: The code of its targets' language, if told.
    """

    text: str
    files: list[str]
    split: str
    source_language: str | None
    target_language: str | None


class ParallelCorpora:
    """The pairs of some SPECs, one after the other: read anew, line by line, each time they are iterated.

    Attributes:
        specs: Where they are.
        source_languages: The codes of the sources' languages, sorted.
        target_languages: The codes of the targets' languages, sorted.
        skipped: How many bad lines the last whole pass left out.
    """

    def __init__(self, specs: Sequence[str], *, split: str = "train", skip_bad_lines: bool = False) -> None:
        """Take SPECs apart and see that their files are there; lines are checked when they are read.

        Args:
            specs: Each is `FILE.tsv` (source, tab, target), `SOURCE_FILE::TARGET_FILE` (a sentence a line), either
                plain or .gz, or `dates`, the built-in task, whose split may be named: `dates:train`, `dates:valid`,
                `dates:test`. Before it may stand the codes of its languages, `en:fr=FILE.tsv`, or one, `:fr=FILE.tsv`.
            split: The split that plain `dates` stands for; no date is in two of them.
            skip_bad_lines: Leave out lines that are no pair of non-empty UTF-8 texts, and count them.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a SPEC is none, or only some tell their languages. Also from each iteration: if a line is bad
                (also one that only the longer of two files has), or if a file is empty or damaged.
        """
        self.specs = [_parse_spec(spec, split) for spec in specs]
        self.source_languages = _language_codes("source", {spec.text: spec.source_language for spec in self.specs})
        self.target_languages = _language_codes("target", {spec.text: spec.target_language for spec in self.specs})
        self.skip_bad_lines = skip_bad_lines
        self.skipped = 0

    def __iter__(self) -> Iterator[SentencePair]:
        skipped = 0
        for spec in self.specs:
            for pair in _read_spec(spec, self.skip_bad_lines):
                if pair is None:
                    skipped += 1
                else:
                    yield pair
        self.skipped = skipped

    def sample(self, count: int) -> list[SentencePair]:
        """Choose pairs evenly spread over the whole, in order: `count`, or all where there are fewer."""
        chosen: list[SentencePair] = []
        step = 1
        for number, pair in enumerate(self):
            if number % step == 0:
                chosen.append(pair)
                if len(chosen) >= 2 * count:
                    chosen, step = chosen[::2], 2 * step
        most = min(count, len(chosen))
        return [chosen[i * len(chosen) // most] for i in range(most)]


class TextPairs(NamedTuple):
    """Sources with their targets, how many lines were left out as bad, and the languages that the SPEC tells."""

    pairs: list[tuple[str, str]]
    skipped: int
    source_language: str | None = None
    target_language: str | None = None


def read_pairs(spec: str, *, split: str = "train", skip_bad_lines: bool = False) -> TextPairs:
    """Read all pairs that one SPEC names; arguments and errors are those of `Corpora`."""
    corpora = ParallelCorpora([spec], split=split, skip_bad_lines=skip_bad_lines)
    pairs = [(pair.source, pair.target) for pair in corpora]
    (parsed,) = corpora.specs
    return TextPairs(pairs, corpora.skipped, parsed.source_language, parsed.target_language)


def _parse_spec(text: str, split: str) -> CorpusSpec:
    codes = LANGUAGE_PREFIX.match(text)
    source_language, target_language = codes.groups() if codes else (None, None)
    names = text[codes.end() :] if codes else text
    task, colon, named = names.partition(":")
    if task == "dates" and not named.startswith(":"):
        files, split = [], named if colon else split
        date_pairs(split, size=1)  # refuses a split that there is not
    else:
        source, two_files, target = names.partition("::")
        files = [source, target] if two_files else [source]
    if "" in files or (codes and not (source_language or target_language)):
        raise ValueError(f"Files and languages must have names: {text!r} leaves one out; {SPEC_SYNTAX}.")
    for path in files:
        if not Path(path).exists():
            raise FileNotFoundError(f"A file of pairs must exist: there is no {path}; {SPEC_SYNTAX}.")
    return CorpusSpec(text, files, split, source_language or None, target_language or None)


def _language_codes(side: str, told: dict[str, str | None]) -> list[str]:
    """The languages that SPECs tell of a side, sorted."""
    codes = {code for code in told.values() if code is not None}
    silent = [spec for spec, code in told.items() if code is None]
    if codes and silent:
        raise ValueError(
            f"Either all corpora tell the {side}'s language or none does: {silent[0]} tells none, others "
            f"{', '.join(sorted(codes))}; write SOURCE:TARGET={silent[0]}."
        )
    return sorted(codes)


def _read_spec(spec: CorpusSpec, skip_bad_lines: bool) -> Iterator[SentencePair | None]:
    """Give each pair, None for a bad line that is left out."""
    good = bad = 0
    for number, columns in enumerate(_read_columns(spec), 1):
        try:
            pair = SentencePair(*_decode_columns(columns), spec.source_language, spec.target_language)
        except ValueError as error:
            if not skip_bad_lines:
                remedy = "correct the line, or leave such out with --skip-bad-lines"
                raise ValueError(f"{spec.text}, line {number}: {error}; {remedy}.") from error
            bad += 1
            yield None
        else:
            good += 1
            yield pair
    if not good:
        raise ValueError(f"{spec.text} must hold at least one pair: found none, {bad} bad lines.")


def _read_columns(spec: CorpusSpec) -> Iterator[Sequence[bytes | None]]:
    """Give the columns of each line; two files make two columns, None where one of them has ended."""
    if not spec.files:
        return ([source.encode(), target.encode()] for source, target in date_pairs(spec.split))
    if len(spec.files) == 2:
        return zip_longest(*map(_read_text_lines, spec.files))
    return (line.split(b"\t") for line in _read_text_lines(spec.files[0]))


def _read_text_lines(path: str) -> Iterator[bytes]:
    """Give the lines of a file; only a line feed ends one, after a carriage return or not."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file: {error}; copy it anew.") from error


def _decode_columns(columns: Sequence[bytes | None]) -> tuple[str, str]:
    """Give source and target; ValueError, which says what is wrong with the line, if it is bad."""
    if len(columns) != 2:
        raise ValueError(f"a line must have one tab, between source and target, but has {len(columns) - 1}")
    texts = []
    for side, column in zip(("source", "target"), columns, strict=True):
        if column is None:
            raise ValueError(f"the {side} file has no such line, the two differ in length")
        try:
            texts.append(column.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"the {side} must be UTF-8, but {column[error.start : error.end]!r} is not") from error
        if not texts[-1].strip():
            raise ValueError(f"the {side} must not be empty")
    return texts[0], texts[1]
