"""Shapes of batches: few, because each is compiled once, and with little padding."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# A shape must fill this many batches and hold this share of the pairs in its octave of lengths to be worth compiling.
MIN_BATCHES = 2
MIN_BATCH_SHARE = 1 / 24
BUCKET_LENGTHS = (4, 6, *(step << octave for octave in range(1, 29) for step in (4, 5, 6, 7)))  # four per octave


class BatchShape(NamedTuple):
    """The shape of a batch.

    Attributes:
        rows: Number of pairs.
        source_length: Number of source tokens.
        target_length: Number of target tokens, without the start token.
        larger: Index of the larger shape that takes pairs left over from this one; None if there is none.
    """

    rows: int
    source_length: int
    target_length: int
    larger: int | None


def bucket_lengths(max_length: int) -> np.ndarray:
    """Return the lengths that sentences are padded to, ascending, up to the length of the longest sentence."""
    return np.array([*(length for length in BUCKET_LENGTHS if length < max_length), max_length])


def choose_batch_shapes(
    counts: np.ndarray, source_buckets: np.ndarray, target_buckets: np.ndarray, batch_tokens: int
) -> tuple[list[BatchShape], np.ndarray]:
    """Choose the shapes of all batches of a corpus.

    Args:
        counts: Number of pairs in each pair of buckets, (source_buckets, target_buckets).
        source_buckets: Padded lengths of sources, ascending.
        target_buckets: Padded lengths of targets, ascending.
        batch_tokens: Tokens of a batch on its longer side.

    Returns:
        Shapes, smaller ones first, and the shape index for each pair of buckets, (source_buckets, target_buckets).
    """
    shapes: list[BatchShape] = []
    shape_indices = np.zeros_like(counts)
    # A shape stays within an octave of lengths, so that one very long pair does not add padding to short ones.
    octaves = np.ceil(np.log2(np.maximum(source_buckets[:, None], target_buckets)))
    for octave in np.unique(octaves[counts > 0]):
        remaining = np.where(octaves == octave, counts, 0)
        first = len(shapes)
        for s, t, rows in _choose_octave_shapes(remaining, source_buckets, target_buckets, batch_tokens):
            fitting = remaining[: s + 1, : t + 1]
            shape_indices[: s + 1, : t + 1][fitting > 0] = len(shapes)
            fitting[:] = 0
            shapes.append(BatchShape(rows, int(source_buckets[s]), int(target_buckets[t]), None))
        for index in range(first, len(shapes)):
            shapes[index] = shapes[index]._replace(larger=_find_larger(shapes, index))
    return shapes, shape_indices


def _choose_octave_shapes(
    remaining: np.ndarray, source_buckets: np.ndarray, target_buckets: np.ndarray, batch_tokens: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the shapes of an octave as (source bucket, target bucket, rows).

    Raises the target length, and for each the source length, until enough pairs fit. The caller removes the pairs that
    fit from `remaining` before it asks for the next shape.
    """
    total = int(remaining.sum())
    candidates = [
        (int(s), int(t)) for t in np.flatnonzero(remaining.any(axis=0)) for s in np.flatnonzero(remaining.any(axis=1))
    ]
    for s, t in candidates:
        rows = max(1, min(batch_tokens // int(max(source_buckets[s], target_buckets[t])), total))
        min_pairs = max(MIN_BATCHES * rows, MIN_BATCH_SHARE * total)
        if remaining[: s + 1, : t + 1].sum() >= min_pairs or (s, t) == candidates[-1]:
            yield s, t, rows


def _find_larger(shapes: list[BatchShape], index: int) -> int | None:
    """Return the index of the first later shape that holds the pairs of this one."""
    _, source, target, _ = shapes[index]
    later = range(index + 1, len(shapes))
    return next((i for i in later if shapes[i].source_length >= source and shapes[i].target_length >= target), None)
