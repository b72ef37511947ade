"""The weights of attention, to look at: what fused attention never writes out."""

from typing import Any, NamedTuple

import mlx.core as mx

from mlx_transformer.model.attention import AttentionFunction, attention_weights, scaled_dot_product_attention
from mlx_transformer.model.transformer import Transformer


class AttentionWeights(NamedTuple):
    """The attention weights of one pass, for each layer one float32 array; over the keys they sum to 1.

    Padding is never attended to. The rows of padding queries are weights like others, but mean nothing.

    Attributes:
        encoder: Self-attention of the encoder, (batch, num_heads, source_length, source_length).
        decoder: Self-attention of the decoder, (rows, num_heads, target_length, target_length).
        cross: Attention of the decoder to the source, (rows, num_heads, target_length, source_length).
    """

    encoder: list[mx.array]
    decoder: list[mx.array]
    cross: list[mx.array]


def attention(model: Transformer, source: mx.array, target: mx.array) -> AttentionWeights:
    """The weights of all attention in one teacher-forced pass.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        target: Token ids, int32 (rows, target_length), beginning with the start token; rows is a multiple of batch, the
            rows of one source side by side.

    Raises:
        ValueError: If rows is no multiple of batch, or if a sequence is longer than its stack has positions.
    """
    check_target_rows(source, target)
    encoder: list[mx.array] = []
    decoder: list[mx.array] = []
    memory = model.encode(source, attend=record_attention(encoder, source.shape[1]))
    model.decode(target, memory, attend=record_attention(decoder, target.shape[1]))
    return AttentionWeights(encoder, decoder[::2], decoder[1::2])  # a decoder layer attends to itself, then across


def record_attention(seen: list[mx.array], length: int) -> AttentionFunction:
    """Fused attention that also appends its weights, (rows, num_heads, length, keys), to a list.

    They are computed when they are evaluated; those that nobody asks for cost nothing.
    """

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        weights = attention_weights(queries, keys, **options)
        # The rows of one source are folded into its queries.
        unfolded = weights.reshape(*weights.shape[:2], -1, length, weights.shape[-1]).swapaxes(1, 2)
        seen.append(unfolded.flatten(0, 1))
        return scaled_dot_product_attention(queries, keys, values, **options)

    return attend


def check_target_rows(source: mx.array, target: mx.array) -> None:
    """Refuse targets that cannot be dealt to the sources: the fold of rows into queries would mix them."""
    if not source.shape[0] or target.shape[0] % source.shape[0]:
        raise ValueError(
            "Rows of targets must be a multiple of those of sources, at least one: "
            f"{target.shape[0]} is none of {source.shape[0]}."
        )
