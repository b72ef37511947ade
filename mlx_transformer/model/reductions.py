"""Reductions of long rows in chunks: the chunks of a row are independent, so that a CPU reduces several at a time."""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlx_transformer.model.positions import constant_arange

CHUNK_SIZE = 64
CPU_CHUNK_SIZE = 8  # of the second division in `top_k`


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


def top_k(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return the k largest values of each row, largest first, and their indices, uint32 (rows, k).

    Ties keep the lower index; -inf entries may repeat an index. Sorting a whole row is slow on a GPU. The k largest
    values lie in the k chunks with the largest maxima, so only these chunks are sorted.
    """
    if k == 1:
        indices = mx.argmax(values, axis=-1, keepdims=True)
        return mx.take_along_axis(values, indices, axis=-1), indices
    return _top_k_of_chunks(values, k, chunk_sizes())


def chunk_sizes() -> list[int]:
    """Return the sizes of the chunks in `top_k`.

    With chunks of 64 there are about as many of them in 8,000 to 32,000 values as candidates from 8. A CPU, which sorts
    slowly, divides both once more.
    """
    return [CHUNK_SIZE, CPU_CHUNK_SIZE] if mx.default_device() == mx.cpu else [CHUNK_SIZE]


def _top_k_of_chunks(values: mx.array, k: int, sizes: list[int]) -> tuple[mx.array, mx.array]:
    sizes = [size for size in sizes if values.shape[1] > k * size]
    if not sizes:
        indices = mx.argsort(-values, axis=-1)[:, :k]
        return mx.take_along_axis(values, indices, axis=-1), indices
    size, *smaller = sizes
    maxima = reduce_chunks(values, mx.max, size)
    best, chunks = _top_k_of_chunks(maxima, k, smaller)
    if smaller:  # entries of -inf may repeat a chunk, so they get one behind the last
        chunks = mx.where(best == -math.inf, maxima.shape[1], chunks)
    # Chunks in the order of their indices, so that ties keep the lower index.
    chunks, length = mx.sort(chunks, axis=-1)[..., None], values.shape[1]
    indices = chunks * size + constant_arange(size, np.uint32)
    indices = mx.minimum(indices, length - 1).flatten(1)  # MLX does not check bounds
    candidates = mx.take_along_axis(values, indices, axis=1)
    if smaller or length % size:
        num_chunks = mx.array(-((np.arange(size) - length) // size), mx.uint32)  # that have a value at each offset
        candidates = mx.where((chunks < num_chunks).flatten(1), candidates, -math.inf)
    best, order = _top_k_of_chunks(candidates, k, smaller)
    return best, mx.take_along_axis(indices, order, axis=1)
