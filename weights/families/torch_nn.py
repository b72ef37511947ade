"""Checkpoints of torch.nn.Transformer inside a user's own module."""

import itertools

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS
from mlx_transformer.weights.families.spec import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    Family,
    NameTable,
    packed_projections,
    presence_per_stack,
    stack_names,
)

ENCODER_LAYER: NameTable = {
    **packed_projections("self_attention", "self_attn", "_proj_{leaf}"),
    "self_attention_residual.norm": "norm1",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "feed_forward_residual.norm": "norm2",
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **packed_projections("cross_attention", "multihead_attn", "_proj_{leaf}"),
    "cross_attention_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}

# Common names of embeddings and positions in users' modules: a stack prefix, then a name, then a suffix.
STACK_PREFIXES = {
    "encoder": ("src_", "source_", "encoder_", "enc_", "encoder.", ""),
    "decoder": ("tgt_", "trg_", "target_", "decoder_", "dec_", "decoder.", ""),
}
EMBEDDING_NAMES = ("tok_emb", "token_embedding", "word_embedding", "embedding", "embed", "emb")
EMBEDDING_SUFFIXES = (".weight", ".embedding.weight", ".lut.weight")
POSITION_NAMES = (
    *("positional_encoding", "positional_embedding", "position_embedding", "position_embeddings"),
    *("pos_encoding", "pos_encoder", "pos_embedding", "pos_embed", "pos_emb", "pos", "pe"),
)
BUFFER_SUFFIXES = (".pos_embedding", ".pe", "")
OUTPUT_NAMES = ("generator", "fc_out", "out", "linear", "output_layer", "fc", "projection", "output", "lm_head")


def candidate_names(stack: str, names: tuple[str, ...], suffixes: tuple[str, ...]) -> list[str]:
    """Return the names that a tensor of a stack may have, those that name the stack first."""
    return ["".join(parts) for parts in itertools.product(STACK_PREFIXES[stack], names, suffixes)]


def embedding_names(stack: str, embedding: str) -> NameTable:
    """Return the names of a stack's token embedding and positions, which are learned if they are an nn.Embedding."""
    learned = candidate_names(stack, POSITION_NAMES, EMBEDDING_SUFFIXES)
    buffers = [(name, transforms.position_table) for name in candidate_names(stack, POSITION_NAMES, BUFFER_SUFFIXES)]
    return {
        f"{embedding}.weight": candidate_names(stack, EMBEDDING_NAMES, EMBEDDING_SUFFIXES),
        f"{stack}.positions.weight": [*learned, *buffers],
        f"{stack}.learned.weight": learned,  # only for `presence`
    }


NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    **embedding_names("encoder", "source_embedding"),
    **embedding_names("decoder", "target_embedding"),
    "output": [f"{prefix}{name}" for prefix in ("", "decoder.") for name in OUTPUT_NAMES],
}

TORCH_NN = Family(
    NAMES,
    OWN_FIELDS,
    presence=BIASES
    | OUTPUT_BIAS
    | FINAL_NORMS
    | presence_per_stack("positions", "learned", "learned", "sinusoidal")
    # Parts that only renamed tensors have.
    | presence_per_stack("embedding_norm", "embedding_norm", "after", "none")
    | {
        "gated_mlp": ("encoder.layers.0.feed_forward.gate_proj.weight", True, False),
        "attention_out_bias": ("encoder.layers.0.self_attention.out_proj.bias", True, False),
    },
    defaults=OWN_DEFAULTS,
    defaults_from="torch.nn.Transformer and its tutorial",
    source_specials=("start", "end"),
)
