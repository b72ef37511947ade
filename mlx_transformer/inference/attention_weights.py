"""Attention weights for inspection; the fused kernel never materialises them."""

from typing import Any, NamedTuple

import mlx.core as mx

from mlx_transformer.model.attention import AttentionFunction, attention_weights, scaled_dot_product_attention
from mlx_transformer.model.token_ids import check_token_ids
from mlx_transformer.model.transformer import Transformer


class AttentionWeights(NamedTuple):
    """Attention weights of one pass: one float32 array per layer, which sums to 1 over the keys.

    Keys at padding have weight 0. Rows of queries at padding have no meaning.

    Attributes:
        encoder: Encoder self-attention, (batch, num_heads, source_length, source_length).
        decoder: Decoder self-attention, (rows, num_heads, target_length, target_length); empty if the decoder has an
            SSRU or average attention instead.
        cross: Cross-attention, (rows, num_heads, target_length, source_length).
    """

    encoder: list[mx.array]
    decoder: list[mx.array]
    cross: list[mx.array]


def attention_ids(model: Transformer, source: mx.array, target: mx.array) -> AttentionWeights:
    """Return all attention weights of one teacher-forced pass.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        target: Token ids, int32 (rows, target_length), beginning with the start token. The number of rows is a multiple
            of batch, with the rows of one source adjacent.

    Raises:
        ValueError: If the number of rows is not a multiple of batch, a sequence is too long, or an id is not in
            the vocabulary.
    """
    check_token_ids("source", source, model.config.source_vocab_size)
    check_token_ids("target", target, model.config.target_vocab_size)
    encoder: list[mx.array] = []
    decoder: list[mx.array] = []
    memory = model.encode(source, attend=record_attention(encoder, source.shape[1]))
    model.decode(target, memory, attend=record_attention(decoder, target.shape[1]))
    return AttentionWeights(encoder, *split_decoder_weights(model, decoder))


def split_decoder_weights(model: Transformer, weights: list[mx.array]) -> tuple[list[mx.array], list[mx.array]]:
    """Return the weights of self-attention and of cross-attention among those that a pass of the decoder recorded."""
    if model.config.decoder_self_attention != "attention":
        return [], weights
    return weights[::2], weights[1::2]  # a layer calls self-attention, then cross-attention


def record_attention(weights: list[mx.array], length: int) -> AttentionFunction:
    """Return fused attention that also appends its weights, (rows, num_heads, length, keys), to a list.

    The weights are lazy: they are computed only if they are used.
    """

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        folded = attention_weights(queries, keys, **options)
        # The rows of one source are folded into its queries.
        unfolded = folded.reshape(*folded.shape[:2], -1, length, folded.shape[-1]).swapaxes(1, 2)
        weights.append(unfolded.flatten(0, 1))
        return scaled_dot_product_attention(queries, keys, values, **options)

    return attend
