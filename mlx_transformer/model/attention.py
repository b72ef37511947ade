"""Scaled dot-product attention: in one kernel, or written out where its weights are looked at or dropped."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_transformer.model.dropout import dropout

AttentionFunction = Callable[..., mx.array]  # takes and gives what `fused` does


def scaled_dot_product_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str
) -> mx.array:
    """softmax(queries keys^T scale + mask) values, in one kernel on a GPU (Vaswani et al. 2017, equation 1)."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def attention_weights(queries: mx.array, keys: mx.array, scale: float, mask: mx.array | str) -> mx.array:
    """softmax(queries keys^T scale + mask) in float32.

    Args:
        queries: (batch, num_heads, queries, head_dims).
        keys: (batch, num_heads, keys, head_dims).
        scale: Factor of the products.
        mask: True where attention is allowed, or a bias, (batch or 1, num_heads or 1, queries or 1, keys); or "causal".
    """
    scores = scale * (queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2))
    if isinstance(mask, str):
        mask = mx.tril(mx.ones(scores.shape[-2:], mx.bool_))
    scores = mx.where(mask, scores, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else scores + mask
    return mx.softmax(scores, axis=-1)


def attention_with_dropout(rate: float) -> AttentionFunction:
    """Attention that drops a share of its weights, as it is done in training; at a rate of 0 the fused one."""

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        return dropout(attention_weights(queries, keys, **options).astype(values.dtype), rate) @ values

    return attend if rate else scaled_dot_product_attention
