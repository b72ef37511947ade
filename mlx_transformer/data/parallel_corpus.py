"""Parallel corpora: parses corpus specs such as `en:fr=FILE.tsv`, and reads pairs line by line or from memory."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from mlx_transformer.config.training import Corpora, split_corpora
from mlx_transformer.data.dates import date_pairs
from mlx_transformer.storage.text_files import read_lines
from mlx_transformer.tokenization.normalization import is_blank

LANGUAGE_PREFIX = re.compile(r"([\w-]*):([\w-]*)=")
COLUMNS_SUFFIX = re.compile(r":([1-9]\d{0,3}),([1-9]\d{0,3})\Z")
LINE_BREAKS = re.compile(r"\r\n|[\t\r\n]")  # in pairs in memory, of which a TSV file could not hold them
SPEC_SYNTAX = (
    "use FILE.tsv, FILE.tsv:SOURCE_COLUMN,TARGET_COLUMN, SOURCE_FILE::TARGET_FILE or dates, optionally after "
    "SOURCE_LANGUAGE:TARGET_LANGUAGE="
)


class SentencePair(NamedTuple):
    """A source and its target, with their language codes if the corpus spec has them."""

    source: str
    target: str
    source_language: str | None = None
    target_language: str | None = None


class CorpusSpec(NamedTuple):
    """A parsed corpus spec.

    Attributes:
        text: The spec as the user wrote it; the name of pairs in memory.
        files: One TSV file, or a source and a target file; none for the built-in task.
        columns: Columns of source and target in a TSV file, from 1; None if a file must have two columns.
        split: Split of the built-in task.
        source_language: Language code of the sources, if the spec has one.
        target_language: Language code of the targets, if the spec has one.
        pairs: Sources and targets in memory, instead of files.
    """

    text: str
    files: list[str]
    columns: tuple[int, int] | None
    split: str
    source_language: str | None = None
    target_language: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()

    def line_name(self, number: int) -> str:
        """Return what error messages call a line, numbered from 1, or an item of pairs in memory."""
        return f"{self.text}[{number - 1}]" if self.pairs else f"{self.text}, line {number}"


class ParallelCorpora:
    """The pairs of one or more corpora, one after another; each iteration reads files again, line by line.

    Attributes:
        specs: The parsed corpus specs.
        source_languages: Language codes of the sources, sorted.
        target_languages: Language codes of the targets, sorted.
        skipped: Number of bad lines skipped in the last complete iteration.
    """

    def __init__(
        self,
        corpora: Corpora,
        *,
        split: str = "train",
        skip_bad_lines: bool = False,
        allow_blank: bool = False,
        remedy: str = "correct it",
    ) -> None:
        """Parse corpus specs and check that their files exist; lines are checked when they are read.

        Args:
            corpora: Corpus specs, or pairs of sources and targets, whose tabs and line ends become spaces. Each spec is
                `FILE.tsv` (source, tab, target), `FILE.tsv:3,1` (source in column 3, target in column 1),
                `SOURCE_FILE::TARGET_FILE` (one sentence per line) or `dates`, the built-in task; files may be gzipped
                (.gz). `dates:train`, `dates:valid` and `dates:test` select a split. A prefix sets language codes:
                `en:fr=FILE.tsv`, or only one, `:fr=FILE.tsv`.
            split: Split that `dates` stands for; the splits are disjoint. It is also the name of pairs in errors.
            skip_bad_lines: Skip and count lines that are not a pair of non-empty UTF-8 texts.
            allow_blank: Accept pairs with a blank side, and blank lines as pairs of empty texts.
            remedy: What the error for a bad line advises.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a spec is malformed, or only some have language codes. Iterating raises it if a line is bad
                (including lines without a counterpart in the other file), or if a file is empty or damaged.
        """
        specs, pairs = split_corpora(split, corpora)
        self.specs = [_parse_spec(spec, split) for spec in specs]
        if pairs:
            self.specs = [CorpusSpec(split, [], None, split, pairs=pairs)]
        self.source_languages = _language_codes("source", {spec.text: spec.source_language for spec in self.specs})
        self.target_languages = _language_codes("target", {spec.text: spec.target_language for spec in self.specs})
        self.skip_bad_lines = skip_bad_lines
        self.allow_blank = allow_blank
        self.remedy = remedy
        self.skipped = 0

    def __iter__(self) -> Iterator[SentencePair]:
        skipped = 0
        for spec in self.specs:
            for pair in _read_spec(spec, self.skip_bad_lines, self.allow_blank, self.remedy):
                if pair is None:
                    skipped += 1
                else:
                    yield pair
        self.skipped = skipped

    def sample(self, count: int) -> list[SentencePair]:
        """Return `count` pairs evenly spread over all corpora, in order, or all pairs if there are fewer."""
        sample: list[SentencePair] = []
        stride = 1
        for index, pair in enumerate(self):
            if index % stride == 0:
                sample.append(pair)
                if len(sample) >= 2 * count:
                    sample, stride = sample[::2], 2 * stride
        size = min(count, len(sample))
        return [sample[i * len(sample) // size] for i in range(size)]


class TextPairs(NamedTuple):
    """All pairs of a corpus, the number of bad lines skipped, and its language codes."""

    pairs: list[tuple[str, str]]
    skipped: int
    source_language: str | None = None
    target_language: str | None = None


def read_pairs(
    spec: str, *, split: str = "train", skip_bad_lines: bool = False, allow_blank: bool = False
) -> TextPairs:
    """Read all pairs of one corpus; see `ParallelCorpora` for arguments and errors."""
    corpora = ParallelCorpora([spec], split=split, skip_bad_lines=skip_bad_lines, allow_blank=allow_blank)
    pairs = [(pair.source, pair.target) for pair in corpora]
    (parsed,) = corpora.specs
    return TextPairs(pairs, corpora.skipped, parsed.source_language, parsed.target_language)


def absolute_spec(text: str) -> str:
    """Return a corpus spec with absolute paths, which means the same in every working directory."""
    codes, path = _split_language_codes(text)
    if _is_task(path):
        return text
    return codes + "::".join(os.path.abspath(file) if file else "" for file in _split_files(path))


def _split_language_codes(text: str) -> tuple[str, str]:
    """Split a spec into the prefix with its language codes, which may be empty, and the rest."""
    match = LANGUAGE_PREFIX.match(text)
    return (match[0], text[match.end() :]) if match else ("", text)


def _split_files(path: str) -> list[str]:
    """Split a spec without language codes into one file, or a source and a target file."""
    return [path] if Path(path).exists() else path.split("::", 1)


def _is_task(path: str) -> bool:
    """Whether a spec without language codes is the built-in task, as opposed to files."""
    task, _, split = path.partition(":")
    return task == "dates" and not split.startswith(":")


def _parse_spec(text: str, split: str) -> CorpusSpec:
    codes, path = _split_language_codes(text)
    source_language, target_language = codes[:-1].split(":") if codes else ("", "")
    columns = None
    if _is_task(path):
        files, split = [], path.partition(":")[2] or split
        date_pairs(split, size=1)  # raises ValueError for an unknown split
    else:
        files = _split_files(path)
        suffix = COLUMNS_SUFFIX.search(path)
        if suffix and len(files) == 1 and not Path(path).exists():
            files, columns = [path[: suffix.start()]], (int(suffix[1]), int(suffix[2]))
    if columns and columns[0] == columns[1]:
        raise ValueError(f"Source and target must be two columns, not both {columns[0]}: correct {text!r}.")
    if "" in files or (codes and not (source_language or target_language)):
        raise ValueError(f"A corpus must name its files and languages: {text!r} lacks one; {SPEC_SYNTAX}.")
    for file in files:
        if not Path(file).exists():
            folder = "" if Path(file).is_absolute() else f" in {Path.cwd()}"
            raise FileNotFoundError(f"The corpus file {file} does not exist{folder}; {SPEC_SYNTAX}.")
    return CorpusSpec(text, files, columns, split, source_language or None, target_language or None)


def _language_codes(side: str, code_of_spec: dict[str, str | None]) -> list[str]:
    """Return the language codes of one side, sorted."""
    codes = {code for code in code_of_spec.values() if code is not None}
    without = [spec for spec, code in code_of_spec.items() if code is None]
    if codes and without:
        raise ValueError(
            f"Either all corpora or none must have a {side} language: {without[0]} has none, others have "
            f"{', '.join(sorted(codes))}; write SOURCE_LANGUAGE:TARGET_LANGUAGE={without[0]}."
        )
    return sorted(codes)


def _read_spec(spec: CorpusSpec, skip_bad_lines: bool, allow_blank: bool, remedy: str) -> Iterator[SentencePair | None]:
    """Yield each pair, and None for each bad line that is skipped."""
    num_pairs = num_bad = 0
    reason = ""
    for number, columns in enumerate(_read_columns(spec), 1):
        try:
            if spec.columns and not (allow_blank and _is_blank(columns)):
                columns = _select_columns(columns, spec.columns)
            pair = SentencePair(*_decode_columns(columns, allow_blank), spec.source_language, spec.target_language)
        except ValueError as error:
            if not skip_bad_lines and number == 1 and len(columns) > 2 and not spec.columns:
                raise ValueError(
                    f"{spec.text} has {len(columns)} columns: choose those of source and target, as in {spec.text}:1,2."
                ) from None
            if not skip_bad_lines:
                raise ValueError(f"{spec.line_name(number)}: {error}; {remedy}.") from error
            num_bad, reason = num_bad + 1, f"; in line {number} {error}"
            yield None
        else:
            num_pairs += 1
            yield pair
    if not num_pairs:
        raise ValueError(f"{spec.text} must contain at least one pair: it has none, and {num_bad} bad lines{reason}.")


def _read_columns(spec: CorpusSpec) -> Iterator[Sequence[bytes | None]]:
    """Yield the columns of each line; with two files, None for the file that has ended."""
    if spec.pairs:
        return ([_encode_text(source), _encode_text(target)] for source, target in spec.pairs)
    if not spec.files:
        return ([source.encode(), target.encode()] for source, target in date_pairs(spec.split))
    if len(spec.files) == 2:
        return zip_longest(*map(read_lines, spec.files))
    return (line.split(b"\t") for line in read_lines(spec.files[0]))


def _encode_text(text: str) -> bytes:
    """Return a text in memory as the column of a line; it is not valid UTF-8 if the text is not valid Unicode."""
    return LINE_BREAKS.sub(" ", text).encode("utf-8", "surrogatepass")


def _is_blank(columns: Sequence[bytes | None]) -> bool:
    """Whether a line of a TSV file is blank."""
    return len(columns) == 1 and not (columns[0] or b"").strip()


def _select_columns(columns: Sequence[bytes | None], numbers: tuple[int, int]) -> Sequence[bytes | None]:
    """Return the columns with these numbers, from 1; raise ValueError if the line has fewer."""
    if len(columns) < max(numbers):
        raise ValueError(f"a line must have a column {max(numbers)}, but it has {len(columns)} columns")
    return [columns[number - 1] for number in numbers]


def _decode_columns(columns: Sequence[bytes | None], allow_blank: bool) -> tuple[str, str]:
    """Return source and target; raise ValueError with the reason if the line is bad."""
    if allow_blank and _is_blank(columns):
        return "", ""
    if len(columns) != 2:
        hint = ", unless the corpus names the columns to read, as in FILE.tsv:1,2" if len(columns) > 2 else ""
        raise ValueError(f"a line must have one tab, between source and target, but it has {len(columns) - 1}{hint}")
    texts = []
    for side, column in zip(("source", "target"), columns, strict=True):
        if column is None:
            raise ValueError(f"the {side} file has fewer lines than the other")
        try:
            texts.append(column.decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the {side} must be UTF-8, but it has the bytes {column[error.start : error.end]!r}"
            ) from error
        if "\0" in texts[-1]:
            raise ValueError(f"the {side} must be text, but it has NUL characters")
        if not allow_blank and is_blank(texts[-1]):
            raise ValueError(f"the {side} must not be empty")
    return texts[0], texts[1]
