"""Batches of sentence pairs of similar length, in an order that follows from the seed."""

import math
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from mlx_transformer.data.bucketing import BatchShape, bucket_lengths, choose_batch_shapes
from mlx_transformer.data.dataset import TokenizedCorpus, shuffle_windows


class Batch(NamedTuple):
    """Token ids, int32, padded on the right: source (rows, source_length), target (rows, target_length + 1).

    A target row is start, ids, end: a model reads `target[:, :-1]` and predicts `target[:, 1:]`.
    """

    source: np.ndarray
    target: np.ndarray


class BatchPosition(NamedTuple):
    """Where a batch stands in the data: its epoch, its number in that epoch, and which pairs of the corpus it holds."""

    epoch: int
    number: int
    members: np.ndarray


def validation_batches(
    corpus: TokenizedCorpus, batch_tokens: int, *, seed: int | None = None, epoch: int = 0, skip: int = 0
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
    for place in islice(BatchSampler(corpus, batch_tokens).places(seed, epoch), skip, None):
        yield _make_batch(corpus, place)


def iterate_batches(
    corpus: TokenizedCorpus, batch_tokens: int, seed: int, *, skip: int = 0, every: int = 1
) -> Iterator[tuple[BatchPosition, Batch]]:
    """The batches of one epoch after the other, without end, each with where it stands.

    Args:
        corpus: The pairs.
        batch_tokens: See `batches`.
        seed: See `batches`.
        skip: How many batches to pass over; however many epochs they make, this takes no longer than a part of one.
        every: Give the first batch after those, and from there only each `every`-th: the share of a process.
    """
    plan = BatchSampler(corpus, batch_tokens)
    first_epoch, skip = divmod(skip, len(plan))
    places = (
        (BatchPosition(epoch, number, place.members), place)
        for epoch in count(first_epoch)
        for number, place in enumerate(plan.places(seed, epoch))
    )
    for position, place in islice(places, skip, None, every):
        yield position, _make_batch(corpus, place)


class BatchSpec(NamedTuple):
    """A batch yet to be filled: which pairs are in it, and its shape."""

    members: np.ndarray
    shape: BatchShape


class BatchSampler:
    """How a corpus is cut into batches; the shapes and their number are the same in every epoch."""

    def __init__(self, corpus: TokenizedCorpus, batch_tokens: int) -> None:
        self.corpus = corpus
        self.sources, self.targets = bucket_lengths(corpus.source.longest), bucket_lengths(corpus.target.longest - 1)
        counts = np.zeros((len(self.sources), len(self.targets)), np.int64)
        for window in shuffle_windows(len(corpus)):
            np.add.at(counts, self._cells(window), 1)
        self.shapes, self.numbers = choose_batch_shapes(counts, self.sources, self.targets, batch_tokens)
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

    def places(self, seed: int | None, epoch: int) -> Iterator[BatchSpec]:
        """The batches of an epoch in order; memory holds those of a window."""
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        # The windows of an epoch take pairs from all over the corpus, so that corpora one after the other mix.
        factor, summand = (1, 0) if rng is None else _random_permutation(rng, len(self.corpus))
        queues = [np.empty(0, np.int64)] * len(self.shapes)
        for window in shuffle_windows(len(self.corpus)):
            members = (factor * window + summand) % len(self.corpus)
            if rng is not None:
                rng.shuffle(members)
            numbers = self.numbers[self._cells(members)]
            queues = [np.append(queue, members[numbers == number]) for number, queue in enumerate(queues)]
            places = list(self._deal(queues, last=window[-1] + 1 == len(self.corpus)))
            if rng is not None:
                rng.shuffle(places)
            yield from places

    def _deal(self, queues: list[np.ndarray], last: bool) -> Iterator[BatchSpec]:
        """Take full batches from the queues of shapes; of the last window what is left moves to larger shapes."""
        for number, shape in enumerate(self.shapes):
            queue = queues[number]
            whole = len(queue) // shape.rows * shape.rows
            for members in queue[:whole].reshape(-1, shape.rows):
                yield BatchSpec(members, shape)
            queues[number] = rest = queue[whole:]
            if last and shape.larger is not None:
                queues[shape.larger] = np.append(rest, queues[shape.larger])
            elif last and len(rest):
                yield BatchSpec(rest, shape)


def _random_permutation(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """A factor and a summand: i -> (factor * i + summand) % size permutes the numbers below `size` without memory."""
    factor = int(rng.integers(1, size + 1))
    while math.gcd(factor, size) > 1:
        factor += 1
    return factor, int(rng.integers(size))


def _make_batch(corpus: TokenizedCorpus, place: BatchSpec) -> Batch:
    rows, source_length, target_length, _ = place.shape
    filled = len(place.members)
    source = np.full((rows, source_length), corpus.pad_id, np.int32)
    target = np.full((rows, target_length + 1), corpus.pad_id, np.int32)
    source[:filled] = corpus.source.rows(place.members, source_length, corpus.pad_id)
    source[filled:, 0] = corpus.eos_id
    target[:filled] = corpus.target.rows(place.members, target_length + 1, corpus.pad_id)
    return Batch(source, target)
