"""Checkpoints of The Annotated Transformer."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS
from mlx_transformer.weights.families.spec import (
    FINAL_NORMS,
    Family,
    NameTable,
    attention_names,
    gamma_beta_norm,
    stack_names,
)

PROJECTIONS = tuple(f"linears.{i}" for i in range(4))

ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "self_attn", *PROJECTIONS),
    **gamma_beta_norm("self_attention_residual.norm", "sublayer.0.norm"),
    "feed_forward.up_proj": "feed_forward.w_1",
    "feed_forward.down_proj": "feed_forward.w_2",
    **gamma_beta_norm("feed_forward_residual.norm", "sublayer.1.norm"),
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("cross_attention", "src_attn", *PROJECTIONS),
    **gamma_beta_norm("cross_attention_residual.norm", "sublayer.1.norm"),
    **gamma_beta_norm("feed_forward_residual.norm", "sublayer.2.norm"),
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    **gamma_beta_norm("encoder.norm", "encoder.norm"),
    **gamma_beta_norm("decoder.norm", "decoder.norm"),
    "deviation.weight": "encoder.norm.a_2",  # only for `presence`: modern variants use torch's LayerNorm instead
    "source_embedding.weight": "src_embed.0.lut.weight",
    "target_embedding.weight": "tgt_embed.0.lut.weight",
    "encoder.positions.weight": ("src_embed.1.pe", transforms.position_table),
    "decoder.positions.weight": ("tgt_embed.1.pe", transforms.position_table),
    "output": "generator.proj",
}

ANNOTATED_TRANSFORMER = Family(
    NAMES,
    OWN_FIELDS,
    constants={"output_bias": True},
    presence=FINAL_NORMS
    | {"norm": ("deviation.weight", "deviation", "layer"), "norm_eps": ("deviation.weight", 1e-6, 1e-5)},
    defaults=OWN_DEFAULTS | {"norm_first": True, "start_id": 0, "eos_id": 1, "pad_id": 2},
    defaults_from="The Annotated Transformer",
    source_specials=("start", "end"),
)
