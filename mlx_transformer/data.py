"""Parallel text: reading it from files, holding it as token ids, and cutting it into batches of few shapes."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .dates import date_pairs
from .tokenizer import Tokenizer

BOM = b"\xef\xbb\xbf"
# A shape is worth its compilation for as many batches, and for such a share of the pairs in its octave of lengths.
MIN_BATCHES = 2
MIN_SHARE = 1 / 24
CHUNK = 8192


class TextPairs(NamedTuple):
    """Sources with their targets, and how many lines were left out as bad."""

    pairs: list[tuple[str, str]]
    skipped: int


def read_pairs(spec: str, *, split: str = "train", skip_bad_lines: bool = False) -> TextPairs:
    """Read the sources and targets that a SPEC names.

    Args:
        spec: `FILE.tsv` (source, tab, target), `SOURCE_FILE::TARGET_FILE` (a sentence a line), either plain or .gz, or
            `dates`, the built-in task, whose split may be named: `dates:train`, `dates:valid`, `dates:test`.
        split: The split that plain `dates` stands for; no date is in two of them.
        skip_bad_lines: Leave out lines that are no pair of non-empty UTF-8 texts, and count them.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a line is bad (also one that only the longer of two files has), or if a file is empty or damaged.
    """
    task, colon, named = spec.partition(":")
    if task == "dates" and not named.startswith(":"):
        return TextPairs(date_pairs(named if colon else split), 0)
    pairs = []
    skipped = 0
    for number, columns in enumerate(_columns(spec), 1):
        try:
            pairs.append(_pair(columns))
        except ValueError as error:
            if not skip_bad_lines:
                message = f"{spec}, line {number}: {error}; correct the line, or leave such out with --skip-bad-lines."
                raise ValueError(message) from error
            skipped += 1
    if not pairs:
        raise ValueError(f"{spec} must hold at least one pair: found none, {skipped} bad lines.")
    return TextPairs(pairs, skipped)


def _columns(spec: str) -> Iterator[Sequence[bytes | None]]:
    """Give the columns of each line; two files make two columns, None where one of them has ended."""
    source, two_files, target = spec.partition("::")
    if two_files:
        return zip_longest(_lines(source), _lines(target))
    return (line.split(b"\t") for line in _lines(source))


def _lines(path: str) -> Iterator[bytes]:
    """Give the lines of a file; only a line feed ends one, after a carriage return or not."""
    if not Path(path).exists():
        raise FileNotFoundError(f"A file of pairs must exist: there is no {path}; a SPEC is FILE.tsv, A::B or dates.")
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file):
                line = line.removeprefix(BOM) if number == 0 else line
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file: {error}; copy it anew.") from error


def _pair(columns: Sequence[bytes | None]) -> tuple[str, str]:
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


class Sentences(NamedTuple):
    """Token ids of many sentences end to end: sentence i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of ids of each sentence, (sentences,)."""
        return np.diff(self.offsets)

    def rows(self, members: np.ndarray, length: int) -> np.ndarray:
        """Give sentences as rows padded on the right, (members, length)."""
        start, end = self.offsets[members, None], self.offsets[members + 1, None]
        places = start + np.arange(length)
        inside = places < end
        return np.where(inside, self.ids[np.where(inside, places, 0)], np.int32(Tokenizer.pad_id))


@dataclass(frozen=True)
class Corpus:
    """Pairs as token ids, source and target both ending with the end token; `dropped` pairs were too long."""

    source: Sentences
    target: Sentences
    dropped: int

    @classmethod
    def build(cls, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int = 256) -> "Corpus":
        """Tokenise pairs, without those that exceed `max_tokens` on a side, the end token counted.

        Raises:
            ValueError: If no pair is left.
        """
        sources: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for first in range(0, len(pairs), CHUNK):
            source_texts, target_texts = zip(*pairs[first : first + CHUNK], strict=True)
            encoded = zip(
                tokenizer.encode_batch(source_texts), tokenizer.encode_target_batch(target_texts), strict=True
            )
            for source, target in encoded:
                if max(len(source), len(target)) <= max_tokens:
                    sources.append(np.array(source, np.int32))
                    targets.append(np.array(target, np.int32))
        if not sources:
            raise ValueError(f"No pair is left of {len(pairs)}: all exceed {max_tokens} tokens; allow more.")
        return cls(_end_to_end(sources), _end_to_end(targets), len(pairs) - len(sources))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source.offsets) - 1

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens that are predicted in an epoch, end tokens counted."""
        return len(self.target.ids)


def _end_to_end(sentences: list[np.ndarray]) -> Sentences:
    offsets = np.cumsum([0, *map(len, sentences)])
    return Sentences(np.concatenate(sentences), offsets)


class Batch(NamedTuple):
    """Token ids, int32, padded on the right: source (rows, source_length), target (rows, target_length).

    A target row is start, ids, end: a model reads `target[:, :-1]` and predicts `target[:, 1:]`.
    """

    source: np.ndarray
    target: np.ndarray


def batches(corpus: Corpus, batch_tokens: int, *, seed: int | None = None, epoch: int = 0) -> Iterator[Batch]:
    """Cut a corpus into batches of about `batch_tokens` positions a side; every pair comes once.

    Batches of one shape have the same number of rows, and there are few shapes, since each is compiled once. The few
    batches that are not full are filled up with rows of an end token to nothing, which have no loss.

    Args:
        corpus: The pairs.
        batch_tokens: A batch has `batch_tokens // max(source_length, target_length - 1)` rows, at least one.
        seed: With the epoch, chooses which pairs meet and the order of the batches; None sorts them by length.
        epoch: Number of the pass over the corpus.
    """
    rng = None if seed is None else np.random.default_rng((seed, epoch))
    order = np.arange(len(corpus)) if rng is None else rng.permutation(len(corpus))
    plan = _plan(corpus, order, batch_tokens)
    for i in range(len(plan)) if rng is None else rng.permutation(len(plan)):
        yield _fill(corpus, plan[i])


class _Place(NamedTuple):
    """A batch yet to be filled: the pairs in it and its shape."""

    members: np.ndarray
    rows: int
    source_length: int
    target_length: int


def _plan(corpus: Corpus, order: np.ndarray, batch_tokens: int) -> list[_Place]:
    """Deal pairs, in the given order within a shape, to whole batches; what is left over moves to a longer shape.

    It moves within its octave of lengths only, lest one very long pair makes ordinary ones as long.
    """
    sources, targets = _rungs(corpus.source.lengths), _rungs(corpus.target.lengths)
    octaves = np.ceil(np.log2(np.maximum(sources, targets)))
    plan: list[_Place] = []
    for octave in np.unique(octaves):
        plan += _deal(order[octaves[order] == octave], sources, targets, batch_tokens)
    return plan


def _deal(order: np.ndarray, sources: np.ndarray, targets: np.ndarray, batch_tokens: int) -> Iterator[_Place]:
    """Raise the source length, then the target length, until there are pairs enough for batches of that shape."""
    left = order[:0]
    for target_length in np.unique(targets[order]):
        pool = np.concatenate([left, order[targets[order] == target_length]])
        left = order[:0]
        for source_length in np.unique(sources[pool]):
            left = np.concatenate([left, pool[sources[pool] == source_length]])
            rows = max(1, min(batch_tokens // max(source_length, target_length), len(order)))
            if len(left) >= max(MIN_BATCHES * rows, MIN_SHARE * len(order)):
                whole = len(left) // rows
                for members in left[: whole * rows].reshape(whole, rows):
                    yield _Place(members, rows, source_length, target_length)
                left = left[whole * rows :]
    for first in range(0, len(left), rows):
        yield _Place(left[first : first + rows], rows, source_length, target_length)


def _rungs(lengths: np.ndarray) -> np.ndarray:
    """Round lengths up to four steps an octave (8 10 12 14 16 20 24 28 32 ...), at most the longest."""
    octave = np.floor(np.log2(np.maximum(lengths - 1, 1))).astype(lengths.dtype)
    step = np.maximum(2, 2 ** np.maximum(octave - 2, 0))
    return np.minimum(-(-np.maximum(lengths, 4) // step) * step, lengths.max())


def _fill(corpus: Corpus, place: _Place) -> Batch:
    source = np.full((place.rows, place.source_length), Tokenizer.pad_id, np.int32)
    target = np.full((place.rows, place.target_length + 1), Tokenizer.pad_id, np.int32)
    filled = len(place.members)
    source[:filled] = corpus.source.rows(place.members, place.source_length)
    source[filled:, 0] = Tokenizer.eos_id
    target[:filled, 0] = Tokenizer.start_id
    target[:filled, 1:] = corpus.target.rows(place.members, place.target_length)
    return Batch(source, target)
