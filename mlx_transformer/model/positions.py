"""Positional encodings: sinusoidal tables, and relative position biases."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

ROWS_AT_A_TIME = 4096


def constant_arange(count: int, dtype: type = np.int32) -> mx.array:
    """Return 0, 1, ..., count - 1 as a constant of compiled code, where mx.arange would run a kernel in every call."""
    return mx.array(np.arange(count, dtype=dtype))


def check_length(name: str, length: int, limit: int) -> None:
    """Raise ValueError for a sequence longer than the position table, which MLX would read out of bounds."""
    if length > limit:
        raise ValueError(f"A {name} must be at most {limit} tokens long, not {length}: shorten or split it.")


def sinusoidal_positions(length: int, dims: int) -> mx.array:
    """Return the table of sinusoidal positions, (length, dims), sines in even columns and cosines in odd ones.

    Source: Vaswani et al. 2017, section 3.5.
    """
    table = np.empty((length, dims), np.float32)
    for start in range(0, length, ROWS_AT_A_TIME):  # in float64, which for all rows would take gigabytes
        rows = np.arange(start, min(start + ROWS_AT_A_TIME, length))
        angles = rows[:, None] / 10000.0 ** (np.arange(0, dims, 2) / dims)
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        table[rows] = waves.reshape(len(rows), -1)[:, :dims]
    return mx.array(table)


def relative_position_buckets(count: int, max_distance: int, two_sided: bool) -> tuple[int, ...]:
    """Return the bucket of each relative position (key - query) from -max_distance to max_distance.

    Half of the buckets hold one distance each; the others cover logarithmically growing ranges. A decoder's buckets
    are one-sided: all positions ahead share bucket 0.

    Source: Raffel et al. 2020, section 2.1.
    """
    offsets = np.arange(-max_distance, max_distance + 1)
    count = count // 2 if two_sided else count
    distances = np.abs(offsets) if two_sided else np.maximum(-offsets, 0)
    num_exact = count // 2
    ratios = np.log(np.maximum(distances, num_exact) / num_exact) / np.log(max_distance / num_exact)
    logarithmic = np.minimum(num_exact + (ratios * (count - num_exact)).astype(int), count - 1)
    buckets = np.where(distances < num_exact, distances, logarithmic)
    return tuple((buckets + (count * (offsets > 0) if two_sided else 0)).tolist())


def relative_position_bias(
    table: Callable[[mx.array], mx.array], buckets: tuple[int, ...], mask: mx.array, start: mx.array | int, queries: int
) -> mx.array:
    """Return an attention bias that depends on the distance and includes the mask.

    Args:
        table: Maps buckets to biases, (...) -> (..., num_heads).
        buckets: The bucket of each relative position, from the furthest behind to the furthest ahead.
        mask: True where attention is allowed, (batch or 1, 1, queries or 1, keys).
        start: Position of the first query.
        queries: Number of queries.

    Returns:
        The bias, (batch or 1, num_heads, queries, keys); the lowest finite number where the mask is False.
    """
    max_distance = len(buckets) // 2
    distances = constant_arange(mask.shape[-1]) - (start + constant_arange(queries))[:, None]
    by_distance = table(mx.array(list(buckets)))  # (distances, num_heads); it need not wait for `start`
    bias = by_distance[mx.clip(distances, -max_distance, max_distance) + max_distance].transpose(2, 0, 1)[None]
    return mx.where(mask, bias, mx.finfo(bias.dtype).min)
