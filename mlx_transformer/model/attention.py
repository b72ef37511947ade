"""Scaled dot-product attention: one fused kernel, or written out where its weights are needed."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_transformer.model import exponential
from mlx_transformer.model.dropout import dropout

AttentionFunction = Callable[..., mx.array]  # same arguments and result as `scaled_dot_product_attention`

MIN_UNFUSED_WEIGHTS = 2**14  # attention weights; MLX's kernel, for fewer, rounds closer to torch


def scaled_dot_product_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str
) -> mx.array:
    """Compute softmax(scale * queries keys^T + mask) values (Vaswani et al. 2017, equation 1).

    It is one kernel, but for many weights on an x86 CPU, where MLX's exp is slow.
    """
    if math.prod(queries.shape[:-1]) * keys.shape[-2] >= MIN_UNFUSED_WEIGHTS and exponential.is_exp_scalar():
        return attention_weights(queries, keys, scale, mask).astype(values.dtype) @ values
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def attention_weights(queries: mx.array, keys: mx.array, scale: float, mask: mx.array | str) -> mx.array:
    """Compute softmax(scale * queries keys^T + mask) in float32.

    Args:
        queries: (batch, num_heads, queries, head_dims).
        keys: (batch, num_heads, keys, head_dims).
        scale: Factor of the dot products.
        mask: A boolean mask (True where attention is allowed) or an additive bias, (batch or 1, num_heads or 1, queries
            or 1, keys); or "causal".

    Returns:
        Attention weights, (batch, num_heads, queries, keys).
    """
    scores = (scale * queries.astype(mx.float32)) @ keys.astype(mx.float32).swapaxes(-1, -2)
    if isinstance(mask, str):
        num_queries, num_keys = scores.shape[-2:]
        mask = mx.tril(mx.ones((num_queries, num_keys), mx.bool_), k=num_keys - num_queries)  # the last sees all keys
    scores = mx.where(mask, scores, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else scores + mask
    return exponential.softmax(scores)


def attention_with_dropout(rate: float) -> AttentionFunction:
    """Return an attention function that applies dropout to its weights; with a rate of 0, the fused one."""

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        return dropout(attention_weights(queries, keys, **options).astype(values.dtype), rate) @ values

    return attend if rate else scaled_dot_product_attention
