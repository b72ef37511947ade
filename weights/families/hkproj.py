"""Checkpoints of hkproj/pytorch-transformer."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS
from mlx_transformer.weights.families.spec import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    Family,
    NameTable,
    attention_names,
    norm_names,
    stack_names,
)

PROJECTIONS = ("w_q", "w_k", "w_v", "w_o")


def layer_norm(norm: str, source: str) -> NameTable:
    """Return the names of a normalisation; until September 2023 its parameters were single values."""
    return norm_names(norm, source, "alpha", "bias")


ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "self_attention_block", *PROJECTIONS),
    **layer_norm("self_attention_residual.norm", "residual_connections.0.norm"),
    "feed_forward.up_proj": "feed_forward_block.linear_1",
    "feed_forward.down_proj": "feed_forward_block.linear_2",
    **layer_norm("feed_forward_residual.norm", "residual_connections.1.norm"),
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("cross_attention", "cross_attention_block", *PROJECTIONS),
    **layer_norm("cross_attention_residual.norm", "residual_connections.1.norm"),
    **layer_norm("feed_forward_residual.norm", "residual_connections.2.norm"),
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    **layer_norm("encoder.norm", "encoder.norm"),
    **layer_norm("decoder.norm", "decoder.norm"),
    "source_embedding.weight": "src_embed.embedding.weight",
    "target_embedding.weight": "tgt_embed.embedding.weight",
    "encoder.positions.weight": ("src_pos.pe", transforms.position_table),
    "decoder.positions.weight": ("tgt_pos.pe", transforms.position_table),
    "output": "projection_layer.proj",
}

HKPROJ = Family(
    NAMES,
    OWN_FIELDS,
    constants={"norm": "deviation"},
    presence=OUTPUT_BIAS | FINAL_NORMS | {"attention_bias": BIASES["attention_bias"], "mlp_bias": BIASES["mlp_bias"]},
    defaults=OWN_DEFAULTS | {"norm_first": True, "norm_eps": 1e-6},
    defaults_from="hkproj/pytorch-transformer",
    source_specials=("start", "end"),
)
