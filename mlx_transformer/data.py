"""Parallel text as token ids, kept in temporary files, and cut into batches of few shapes."""

import math
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_transformer.corpora import Pair
from mlx_transformer.shapes import Shape, choose_shapes, rungs
from mlx_transformer.tokenizer import Tokenizer

CHUNK = 8192  # pairs that are tokenised at once
CHECKED = 2**20  # ids whose checksum is computed at once
WINDOW = 2**18  # pairs that are dealt to batches at once


@dataclass(frozen=True)
class Sentences:
    """Token ids of many sentences end to end: sentence i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, members: np.ndarray) -> np.ndarray:
        """Number of ids of some sentences, (members,)."""
        return self.offsets[members + 1] - self.offsets[members]

    @cached_property
    def longest(self) -> int:
        """Number of ids of the longest sentence."""
        return max(int(self.lengths(window).max()) for window in _windows(len(self)))

    def rows(self, members: np.ndarray, length: int, pad_id: int) -> np.ndarray:
        """Give sentences as rows padded on the right, int32 (members, length)."""
        start, end = self.offsets[members, None], self.offsets[members + 1, None]
        places = start + np.arange(length)
        inside = places < end
        return np.where(inside, self.ids[np.where(inside, places, 0)], np.int32(pad_id))


@dataclass(frozen=True)
class Corpus:
    """Pairs as token ids.

    Attributes:
        source: Sources with all that stands around them.
        target: What the decoder reads and predicts: the start token, then the target with all that stands around it.
        dropped: How many pairs were too long.
        pad_id: What batches are padded with; it may also start targets.
        eos_id: The only id of rows that fill up a batch.
    """

    source: Sentences
    target: Sentences
    dropped: int
    pad_id: int
    eos_id: int

    @classmethod
    def build(
        cls,
        pairs: Iterable[Pair | tuple[str, str]],
        tokenizer: Tokenizer,
        max_tokens: int = 256,
        *,
        source_prefix: str = "",
        folder: str | Path | None = None,
    ) -> "Corpus":
        """Tokenise pairs, without those that are too long; ids are held in temporary files, not in memory.

        Args:
            pairs: Sources and targets, with the codes of their languages where the tokenizer asks for them.
            tokenizer: The tokenizer.
            max_tokens: Most tokens on a side, the end token counted, the start token not.
            source_prefix: What every source begins with; it is set before those that do not.
            folder: Where the files are made, which have no name and are freed whenever the process ends; None for the
                system's folder for such.

        Raises:
            ValueError: If no pair is left, or a language is missing or unknown.
        """
        pairs = iter(pairs)
        total = 0
        with ExitStack() as files:
            source = _Writer(files, folder, tokenizer.source_vocab_size)
            target = _Writer(files, folder, tokenizer.target_vocab_size)
            while chunk := [Pair(*pair) for pair in islice(pairs, CHUNK)]:
                total += len(chunk)
                rows = _encode(chunk, tokenizer, source_prefix)
                kept = [row for row in rows if len(row[0]) <= max_tokens and len(row[1]) - 1 <= max_tokens]
                source.write([ids for ids, _ in kept])
                target.write([ids for _, ids in kept])
            if not source.count:
                raise ValueError(f"No pair is left of {total}: all exceed {max_tokens} tokens; allow more.")
            dropped = total - source.count
            return cls(source.sentences(), target.sentences(), dropped, tokenizer.pad_id, tokenizer.eos_id)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)

    @cached_property
    def fingerprint(self) -> list[int]:
        """What tells it from another: number of pairs and a checksum of ids."""
        total = 0
        for ids in (self.source.ids, self.target.ids):
            for first in range(0, len(ids), CHECKED):
                total = zlib.crc32(ids[first : first + CHECKED].tobytes(), total)
        return [len(self), total]

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens that are predicted in an epoch, end tokens counted."""
        return len(self.target.ids) - len(self)


def _encode(chunk: list[Pair], tokenizer: Tokenizer, prefix: str) -> Iterator[tuple[list[int], list[int]]]:
    """Give the ids of each pair's source and target."""
    sources, targets, source_languages, target_languages = map(list, zip(*chunk, strict=True))
    sources = [text if text.startswith(prefix) else prefix + text for text in sources]
    source_ids = tokenizer.encode_batch(sources, source_languages, target_languages)
    target_ids = tokenizer.encode_target_batch(targets, target_languages)
    starts = tokenizer.starts(len(chunk), target_languages)
    for source, start, target in zip(source_ids, starts, target_ids, strict=True):
        yield source, [start.start_id, *target]


class _Writer:
    """Appends sentences to files without a name, whose contents the memory then maps."""

    def __init__(self, files: ExitStack, folder: str | Path | None, vocab_size: int) -> None:
        self.ids, self.ends = (files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self.count = 0
        self.end = 0
        self.ends.write(np.zeros(1, np.int64).tobytes())

    def write(self, rows: list[list[int]]) -> None:
        ends = self.end + np.cumsum([0, *map(len, rows)])
        self.count, self.end = self.count + len(rows), int(ends[-1])
        self.ends.write(ends[1:].tobytes())
        self.ids.write(np.fromiter(chain.from_iterable(rows), self.dtype).tobytes())

    def sentences(self) -> Sentences:
        for file in (self.ids, self.ends):
            file.flush()
        # Plain arrays: a memmap hands its class on to all that is computed from it.
        ids, offsets = (
            np.asarray(np.memmap(file, kind, "r")) for file, kind in ((self.ids, self.dtype), (self.ends, np.int64))
        )
        return Sentences(ids, offsets)


class Batch(NamedTuple):
    """Token ids, int32, padded on the right: source (rows, source_length), target (rows, target_length + 1).

    A target row is start, ids, end: a model reads `target[:, :-1]` and predicts `target[:, 1:]`.
    """

    source: np.ndarray
    target: np.ndarray


class Position(NamedTuple):
    """Where a batch stands in the data: its epoch, its number in that epoch, and which pairs of the corpus it holds."""

    epoch: int
    number: int
    members: np.ndarray


def batches(
    corpus: Corpus, batch_tokens: int, *, seed: int | None = None, epoch: int = 0, skip: int = 0
) -> Iterator[Batch]:
    """Cut a corpus into batches of about `batch_tokens` positions a side; every pair comes once.

    Batches of one shape have the same number of rows, and there are few shapes, the same in each epoch, since each is
    compiled once. The few batches that are not full are filled up with rows of an end token to nothing, which have no
    loss.

    Args:
        corpus: The pairs.
        batch_tokens: A batch has `batch_tokens // max(source_length, target_length)` rows, at least one.
        seed: With the epoch, chooses which pairs meet and the order of the batches; None sorts them by length, of a
            large corpus WINDOW pairs after WINDOW pairs.
        epoch: Number of the pass over the corpus.
        skip: How many batches at the beginning to pass over; they are not filled.
    """
    for place in islice(_Plan(corpus, batch_tokens).places(seed, epoch), skip, None):
        yield _fill(corpus, place)


def stream(
    corpus: Corpus, batch_tokens: int, seed: int, *, skip: int = 0, every: int = 1
) -> Iterator[tuple[Position, Batch]]:
    """The batches of one epoch after the other, without end, each with where it stands.

    Args:
        corpus: The pairs.
        batch_tokens: See `batches`.
        seed: See `batches`.
        skip: How many batches to pass over; however many epochs they make, this takes no longer than a part of one.
        every: Give the first batch after those, and from there only each `every`-th: the share of a process.
    """
    plan = _Plan(corpus, batch_tokens)
    first_epoch, skip = divmod(skip, len(plan))
    places = (
        (Position(epoch, number, place.members), place)
        for epoch in count(first_epoch)
        for number, place in enumerate(plan.places(seed, epoch))
    )
    for position, place in islice(places, skip, None, every):
        yield position, _fill(corpus, place)


class _Place(NamedTuple):
    """A batch yet to be filled: which pairs are in it, and its shape."""

    members: np.ndarray
    shape: Shape


class _Plan:
    """How a corpus is cut into batches; the shapes and their number are the same in every epoch."""

    def __init__(self, corpus: Corpus, batch_tokens: int) -> None:
        self.corpus = corpus
        self.sources, self.targets = rungs(corpus.source.longest), rungs(corpus.target.longest - 1)
        counts = np.zeros((len(self.sources), len(self.targets)), np.int64)
        for window in _windows(len(corpus)):
            np.add.at(counts, self._cells(window), 1)
        self.shapes, self.numbers = choose_shapes(counts, self.sources, self.targets, batch_tokens)
        self.sizes = np.bincount(self.numbers.ravel(), counts.ravel(), len(self.shapes)).astype(int)

    def _cells(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Between which rungs the lengths of pairs lie."""
        sources, targets = self.corpus.source.lengths(members), self.corpus.target.lengths(members) - 1
        return np.searchsorted(self.sources, sources), np.searchsorted(self.targets, targets)

    def __len__(self) -> int:
        """Number of batches in an epoch: it is dealt as `_deal` does."""
        waiting, total = self.sizes.tolist(), 0
        for number, shape in enumerate(self.shapes):
            whole, rest = divmod(waiting[number], shape.rows)
            total += whole
            if shape.larger is not None:
                waiting[shape.larger] += rest
            else:
                total += rest > 0
        return total

    def places(self, seed: int | None, epoch: int) -> Iterator[_Place]:
        """The batches of an epoch in order; memory holds those of a window."""
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        # The windows of an epoch take pairs from all over the corpus, so that corpora one after the other mix.
        factor, summand = (1, 0) if rng is None else _affine(rng, len(self.corpus))
        queues = [np.empty(0, np.int64)] * len(self.shapes)
        for window in _windows(len(self.corpus)):
            members = (factor * window + summand) % len(self.corpus)
            if rng is not None:
                rng.shuffle(members)
            numbers = self.numbers[self._cells(members)]
            queues = [np.append(queue, members[numbers == number]) for number, queue in enumerate(queues)]
            places = list(self._deal(queues, last=window[-1] + 1 == len(self.corpus)))
            if rng is not None:
                rng.shuffle(places)
            yield from places

    def _deal(self, queues: list[np.ndarray], last: bool) -> Iterator[_Place]:
        """Take full batches from the queues of shapes; of the last window what is left moves to larger shapes."""
        for number, shape in enumerate(self.shapes):
            queue = queues[number]
            whole = len(queue) // shape.rows * shape.rows
            for members in queue[:whole].reshape(-1, shape.rows):
                yield _Place(members, shape)
            queues[number] = rest = queue[whole:]
            if last and shape.larger is not None:
                queues[shape.larger] = np.append(rest, queues[shape.larger])
            elif last and len(rest):
                yield _Place(rest, shape)


def _windows(size: int) -> Iterator[np.ndarray]:
    """The numbers from 0 to `size` - 1, cut into equal parts of at most WINDOW."""
    parts = -(-size // WINDOW)
    for part in range(parts):
        yield np.arange(size * part // parts, size * (part + 1) // parts)


def _affine(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """A factor and a summand: i -> (factor * i + summand) % size permutes the numbers below `size` without memory."""
    factor = int(rng.integers(1, size + 1))
    while math.gcd(factor, size) > 1:
        factor += 1
    return factor, int(rng.integers(size))


def _fill(corpus: Corpus, place: _Place) -> Batch:
    rows, source_length, target_length, _ = place.shape
    filled = len(place.members)
    source = np.full((rows, source_length), corpus.pad_id, np.int32)
    target = np.full((rows, target_length + 1), corpus.pad_id, np.int32)
    source[:filled] = corpus.source.rows(place.members, source_length, corpus.pad_id)
    source[filled:, 0] = corpus.eos_id
    target[:filled] = corpus.target.rows(place.members, target_length + 1, corpus.pad_id)
    return Batch(source, target)
