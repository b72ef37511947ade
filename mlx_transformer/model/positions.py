"""Where a token stands: the fixed rows of sinusoidal positions, and the buckets of relative ones."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np


def constant_arange(count: int, dtype: type = np.int32) -> mx.array:
    """0, 1, 2 and so on: a constant in a compiled function, where mx.arange would be a kernel of each call."""
    return mx.array(np.arange(count, dtype=dtype))


def check_length(name: str, length: int, limit: int) -> None:
    """Refuse a sequence that has no rows in the position table: MLX would read past its end."""
    if length > limit:
        raise ValueError(f"A {name} must be at most {limit} tokens long, not {length}: shorten or split it.")


def sinusoidal_positions(length: int, dims: int) -> mx.array:
    """Fixed position rows, sines in even columns and cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dims, 2) / dims)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)[:, :dims]
    return mx.array(table.astype(np.float32))


def relative_position_buckets(count: int, max_distance: int, two_sided: bool) -> tuple[int, ...]:
    """The bucket of each distance (key - query) from -max_distance to max_distance (Raffel et al. 2020, section 2.1).

    Near distances have buckets of their own, far ones share logarithmically more; a decoder sees only what is behind.
    """
    offsets = np.arange(-max_distance, max_distance + 1)
    count = count // 2 if two_sided else count
    distances = np.abs(offsets) if two_sided else np.maximum(-offsets, 0)
    near = count // 2
    ratios = np.log(np.maximum(distances, near) / near) / np.log(max_distance / near)
    far = np.minimum(near + (ratios * (count - near)).astype(int), count - 1)
    found = np.where(distances < near, distances, far) + (count * (offsets > 0) if two_sided else 0)
    return tuple(found.tolist())


def relative_position_bias(
    table: Callable[[mx.array], mx.array], buckets: tuple[int, ...], mask: mx.array, start: mx.array | int, queries: int
) -> mx.array:
    """A bias of attention by distance, very low where the mask forbids, (batch or 1, num_heads, queries, keys).

    Args:
        table: Gives the biases of buckets, (..., num_heads).
        buckets: Bucket of each distance, from the furthest behind to the furthest ahead.
        mask: True where attention is allowed, (batch or 1, 1, queries or 1, keys).
        start: Position of the first query.
        queries: Number of queries.
    """
    furthest = len(buckets) // 2
    distances = constant_arange(mask.shape[-1]) - (start + constant_arange(queries))[:, None]
    found = mx.array(list(buckets))[mx.clip(distances, -furthest, furthest) + furthest]
    bias = table(found).transpose(2, 0, 1)[None]
    return mx.where(mask, bias, mx.finfo(bias.dtype).min)
