"""Reductions of long rows in chunks: the chunks of a row are independent, so that a CPU reduces several at a time."""

from collections.abc import Callable

import mlx.core as mx

CHUNK_SIZE = 64


def reduce_chunks(x: mx.array, reduce: Callable[..., mx.array], size: int = CHUNK_SIZE) -> mx.array:
    """Return the maximum or the sum of each chunk of the last axis, (..., chunks); the last chunk may be short.

    Args:
        x: (..., values).
        reduce: `mx.max` or `mx.sum`.
        size: Values of a chunk.
    """
    length = x.shape[-1] // size * size
    parts = [reduce(x[..., :length].reshape(*x.shape[:-1], length // size, size), axis=-1)] if length else []
    if length < x.shape[-1]:
        parts.append(reduce(x[..., length:], axis=-1, keepdims=True))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def reduce_rows(x: mx.array, reduce: Callable[..., mx.array]) -> mx.array:
    """Return the maximum or the sum of the last axis, (..., 1), by way of its chunks."""
    return reduce(reduce_chunks(x, reduce), axis=-1, keepdims=True)
