"""Batches of sentence pairs of similar length, in an order that depends only on the seed."""

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
    """The position of a batch in the data: epoch, index in the epoch, and indices of its pairs in the corpus."""

    epoch: int
    batch_index: int
    pair_indices: np.ndarray


PositionedBatch = tuple[BatchPosition, Batch]


def epoch_batches(
    corpus: TokenizedCorpus, batch_tokens: int, *, seed: int | None = None, epoch: int = 0, skip: int = 0
) -> Iterator[Batch]:
    """Yield the batches of one epoch, of about `batch_tokens` tokens a side; every pair occurs once.

    There are few shapes, the same in every epoch, because each is compiled once. Batches with fewer pairs than their
    shape has rows are filled up with rows that have an end token as source and no target, and so no loss.

    Args:
        corpus: The pairs.
        batch_tokens: A batch has `batch_tokens // max(source_length, target_length)` rows, at least one.
        seed: Seed that, with the epoch, shuffles pairs and batches; None sorts batches by length, within each window
            of SHUFFLE_WINDOW pairs if the corpus is larger.
        epoch: Number of the epoch.
        skip: Number of batches to skip at the beginning, without building them.
    """
    for spec in islice(BatchSampler(corpus, batch_tokens).batch_specs(seed, epoch), skip, None):
        yield _build_batch(corpus, spec)


def iterate_batches(
    corpus: TokenizedCorpus, batch_tokens: int, seed: int, *, skip: int = 0, every: int = 1
) -> Iterator[PositionedBatch]:
    """Yield the batches of one epoch after another, without end, each with its position.

    Args:
        corpus: The pairs.
        batch_tokens: See `epoch_batches`.
        seed: See `epoch_batches`.
        skip: Number of batches to skip; whole epochs are skipped without being planned.
        every: Yield only every `every`-th batch, starting with the first one after `skip`: the share of one process.
    """
    sampler = BatchSampler(corpus, batch_tokens)
    first_epoch, skip = divmod(skip, len(sampler))
    positions = (
        (BatchPosition(epoch, index, spec.pair_indices), spec)
        for epoch in count(first_epoch)
        for index, spec in enumerate(sampler.batch_specs(seed, epoch))
    )
    for position, spec in islice(positions, skip, None, every):
        yield position, _build_batch(corpus, spec)


class BatchSpec(NamedTuple):
    """A batch that is not built yet: the indices of its pairs, and its shape."""

    pair_indices: np.ndarray
    shape: BatchShape


class BatchSampler:
    """Assigns the pairs of a corpus to batches; shapes and number of batches are the same in every epoch."""

    def __init__(self, corpus: TokenizedCorpus, batch_tokens: int) -> None:
        self.corpus = corpus
        self.source_buckets = bucket_lengths(corpus.source.max_length)
        self.target_buckets = bucket_lengths(corpus.target.max_length - 1)
        counts = np.zeros((len(self.source_buckets), len(self.target_buckets)), np.int64)
        for window in shuffle_windows(len(corpus)):
            np.add.at(counts, self._find_buckets(window), 1)
        self.shapes, self.shape_indices = choose_batch_shapes(
            counts, self.source_buckets, self.target_buckets, batch_tokens
        )
        pairs_per_shape = np.bincount(self.shape_indices.ravel(), counts.ravel(), len(self.shapes))
        self.pairs_per_shape = pairs_per_shape.astype(int)

    def _find_buckets(self, pair_indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the source and target buckets of each pair."""
        source_lengths = self.corpus.source.lengths(pair_indices)
        target_lengths = self.corpus.target.lengths(pair_indices) - 1
        source_indices = np.searchsorted(self.source_buckets, source_lengths)
        target_indices = np.searchsorted(self.target_buckets, target_lengths)
        return source_indices, target_indices

    def __len__(self) -> int:
        """Number of batches in an epoch, computed as `_take_batches` forms them."""
        pairs, total = self.pairs_per_shape.tolist(), 0
        for index, shape in enumerate(self.shapes):
            full, rest = divmod(pairs[index], shape.rows)
            total += full
            if shape.larger is not None:
                pairs[shape.larger] += rest
            else:
                total += rest > 0
        return total

    def batch_specs(self, seed: int | None, epoch: int) -> Iterator[BatchSpec]:
        """Yield the batches of an epoch in order; one window of pairs is in memory at a time."""
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        # A window takes pairs from the whole corpus, so that concatenated corpora are mixed.
        factor, offset = (1, 0) if rng is None else _random_permutation(rng, len(self.corpus))
        queues = [np.empty(0, np.int64)] * len(self.shapes)
        for window in shuffle_windows(len(self.corpus)):
            pair_indices = (factor * window + offset) % len(self.corpus)
            if rng is not None:
                rng.shuffle(pair_indices)
            shape_indices = self.shape_indices[self._find_buckets(pair_indices)]
            queues = [np.append(queue, pair_indices[shape_indices == index]) for index, queue in enumerate(queues)]
            specs = list(self._take_batches(queues, is_last_window=window[-1] + 1 == len(self.corpus)))
            if rng is not None:
                rng.shuffle(specs)
            yield from specs

    def _take_batches(self, queues: list[np.ndarray], is_last_window: bool) -> Iterator[BatchSpec]:
        """Take full batches from each shape's queue; in the last window the rest moves on to larger shapes."""
        for index, shape in enumerate(self.shapes):
            queue = queues[index]
            num_full = len(queue) // shape.rows * shape.rows
            for pair_indices in queue[:num_full].reshape(-1, shape.rows):
                yield BatchSpec(pair_indices, shape)
            queues[index] = rest = queue[num_full:]
            if is_last_window and shape.larger is not None:
                queues[shape.larger] = np.append(rest, queues[shape.larger])
            elif is_last_window and len(rest):
                yield BatchSpec(rest, shape)


def _random_permutation(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Return (factor, offset) so that i -> (factor * i + offset) % size is a permutation, which needs no memory."""
    factor = int(rng.integers(1, size + 1))
    while math.gcd(factor, size) > 1:
        factor += 1
    return factor, int(rng.integers(size))


def _build_batch(corpus: TokenizedCorpus, spec: BatchSpec) -> Batch:
    rows, source_length, target_length, _ = spec.shape
    num_pairs = len(spec.pair_indices)
    source = np.full((rows, source_length), corpus.pad_id, np.int32)
    target = np.full((rows, target_length + 1), corpus.pad_id, np.int32)
    source[:num_pairs] = corpus.source.padded_rows(spec.pair_indices, source_length, corpus.pad_id)
    source[num_pairs:, 0] = corpus.eos_id
    target[:num_pairs] = corpus.target.padded_rows(spec.pair_indices, target_length + 1, corpus.pad_id)
    return Batch(source, target)
