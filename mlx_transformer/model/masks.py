"""Attention masks: True where a query may attend to a key."""

import mlx.core as mx


def full_mask(length: int) -> mx.array:
    """Return the mask that allows all keys, (1, 1, 1, length)."""
    return mx.ones((1, 1, 1, length), mx.bool_)


def padding_mask(ids: mx.array, pad_id: int) -> mx.array:
    """Return the mask that hides the padding at the end of token ids, (rows, length) -> (rows, 1, 1, length)."""
    tokens = mx.cumsum(ids != pad_id, axis=1, reverse=True) > 0  # keeps pad_id inside a text
    return tokens[:, None, None]


def causal_mask(length: int) -> mx.array:
    """Return the mask that hides later positions, (1, 1, length, length)."""
    return mx.tril(mx.ones((1, 1, length, length), mx.bool_))
