"""Shapes of batches: few, since each is compiled once, and such that little is padding."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# A shape is worth its compilation for as many batches, and for such a share of the pairs in its octave of lengths.
MIN_BATCHES = 2
MIN_BATCH_SHARE = 1 / 24
LENGTHS_PER_OCTAVE = (4, 6, *(step << octave for octave in range(1, 29) for step in (4, 5, 6, 7)))  # four an octave


class BatchShape(NamedTuple):
    """The size of a batch.

    Attributes:
        rows: Number of pairs.
        source_length: Number of source tokens.
        target_length: Number of target tokens, the start token not counted.
        larger: The number of the shape for pairs that fill no batch of this one; None if there is none.
    """

    rows: int
    source_length: int
    target_length: int
    larger: int | None


def bucket_lengths(longest: int) -> np.ndarray:
    """The lengths that sentences are padded to, ascending: none is more than the longest sentence."""
    return np.array([*(rung for rung in LENGTHS_PER_OCTAVE if rung < longest), longest])


def choose_batch_shapes(
    counts: np.ndarray, sources: np.ndarray, targets: np.ndarray, batch_tokens: int
) -> tuple[list[BatchShape], np.ndarray]:
    """Choose the shapes of all batches of a corpus.

    Args:
        counts: How many pairs have a source and a target of such lengths, (sources, targets).
        sources: Lengths of sources, ascending.
        targets: Lengths of targets, ascending.
        batch_tokens: Positions of a batch on its longer side.

    Returns:
        Shapes, a larger one after a smaller; for each source and target the number of its shape, (sources, targets).
    """
    shapes: list[BatchShape] = []
    numbers = np.zeros_like(counts)
    # Pairs stay in their octave of lengths, lest one very long pair makes ordinary ones as long.
    octaves = np.ceil(np.log2(np.maximum(sources[:, None], targets)))
    for octave in np.unique(octaves[counts > 0]):
        waiting = np.where(octaves == octave, counts, 0)
        first = len(shapes)
        for s, t, rows in _choose_shape(waiting, sources, targets, batch_tokens):
            fitting = waiting[: s + 1, : t + 1]
            numbers[: s + 1, : t + 1][fitting > 0] = len(shapes)
            fitting[:] = 0
            shapes.append(BatchShape(rows, int(sources[s]), int(targets[t]), None))
        for number in range(first, len(shapes)):
            shapes[number] = shapes[number]._replace(larger=_next_larger(shapes, number))
    return shapes, numbers


def _choose_shape(
    waiting: np.ndarray, sources: np.ndarray, targets: np.ndarray, batch_tokens: int
) -> Iterator[tuple[int, int, int]]:
    """Raise the target length, and for each the source length, until pairs enough wait for batches of that shape.

    Gives the places of the lengths and the number of rows; who asks for more has taken the pairs away that fit.
    """
    total = int(waiting.sum())
    places = [
        (int(s), int(t)) for t in np.flatnonzero(waiting.any(axis=0)) for s in np.flatnonzero(waiting.any(axis=1))
    ]
    for s, t in places:
        rows = max(1, min(batch_tokens // int(max(sources[s], targets[t])), total))
        if waiting[: s + 1, : t + 1].sum() >= max(MIN_BATCHES * rows, MIN_BATCH_SHARE * total) or (s, t) == places[-1]:
            yield s, t, rows


def _next_larger(shapes: list[BatchShape], number: int) -> int | None:
    """The first shape after this one that holds its pairs."""
    _, source, target, _ = shapes[number]
    later = range(number + 1, len(shapes))
    return next((i for i in later if shapes[i].source_length >= source and shapes[i].target_length >= target), None)
