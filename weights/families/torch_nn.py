"""Checkpoints of torch.nn.Transformer inside a user's own module."""

import itertools

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import (
    NameTable,
    packed_projections,
    stack_names,
)

# torch.nn.Transformer in a module of someone's own, under the usual names.
TORCH_ENCODER: NameTable = {
    **packed_projections("self_attention", "self_attn", "_proj_{leaf}"),
    "self_attention_residual.norm": "norm1",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "feed_forward_residual.norm": "norm2",
}

TORCH_DECODER: NameTable = {
    **TORCH_ENCODER,
    **packed_projections("cross_attention", "multihead_attn", "_proj_{leaf}"),
    "cross_attention_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}

# What such modules call their parts, behind a word for the side where each side has its own.
SIDE_WORDS = {
    "encoder": ("src_", "source_", "encoder_", "enc_", ""),
    "decoder": ("tgt_", "trg_", "target_", "decoder_", "dec_", ""),
}

TABLE_WORDS = ("tok_emb", "token_embedding", "word_embedding", "embedding", "embed", "emb")

POSITION_WORDS = (
    *("positional_encoding", "positional_embedding", "position_embedding", "position_embeddings"),
    *("pos_encoding", "pos_encoder", "pos_embedding", "pos_embed", "pos_emb", "pos", "pe"),
)

TABLE_LEAVES = (".weight", ".embedding.weight", ".lut.weight")

BUFFER_LEAVES = (".pos_embedding", ".pe", "")


def candidate_names(side: str, words: tuple[str, ...], leaves: tuple[str, ...]) -> list[str]:
    """The names that a part of a side may have, those of this side alone first."""
    return ["".join(name) for name in itertools.product(SIDE_WORDS[side], words, leaves)]


def embedding_names(side: str, table: str) -> NameTable:
    """Tokens and positions of a side: rows of an nn.Embedding are learned, those of a buffer are not."""
    learned = candidate_names(side, POSITION_WORDS, TABLE_LEAVES)
    buffers = [(name, transforms.position_table) for name in candidate_names(side, POSITION_WORDS, BUFFER_LEAVES)]
    return {
        f"{table}.weight": candidate_names(side, TABLE_WORDS, TABLE_LEAVES),
        f"{side}.positions.weight": [*learned, *buffers],
        f"{side}.learned.weight": learned,  # no parameter of ours, only a sign
    }


TORCH_NAMES: NameTable = {
    **stack_names(TORCH_ENCODER, TORCH_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    **embedding_names("encoder", "source_embedding"),
    **embedding_names("decoder", "target_embedding"),
    "output": ["generator", "fc_out", "out", "linear", "output_layer", "fc", "projection", "output", "lm_head"],
}

TORCH_FIELDS = {
    "num_heads": ("nhead", None),
    "norm_first": ("norm_first", False),
    "norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("activation", "relu"),
}
