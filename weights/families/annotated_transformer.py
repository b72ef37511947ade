"""Checkpoints of The Annotated Transformer."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import NameTable, attention_names, gamma_beta_norm, stack_names

ANNOTATED_ENCODER: NameTable = {
    **attention_names("self_attention", "self_attn", *(f"linears.{i}" for i in range(4))),
    **gamma_beta_norm("self_attention_residual.norm", "sublayer.0.norm"),
    "feed_forward.up_proj": "feed_forward.w_1",
    "feed_forward.down_proj": "feed_forward.w_2",
    **gamma_beta_norm("feed_forward_residual.norm", "sublayer.1.norm"),
}

ANNOTATED_DECODER: NameTable = {
    **ANNOTATED_ENCODER,
    **attention_names("cross_attention", "src_attn", *(f"linears.{i}" for i in range(4))),
    **gamma_beta_norm("cross_attention_residual.norm", "sublayer.1.norm"),
    **gamma_beta_norm("feed_forward_residual.norm", "sublayer.2.norm"),
}

ANNOTATED_NAMES: NameTable = {
    **stack_names(ANNOTATED_ENCODER, ANNOTATED_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    **gamma_beta_norm("encoder.norm", "encoder.norm"),
    **gamma_beta_norm("decoder.norm", "decoder.norm"),
    "deviation.weight": "encoder.norm.a_2",  # no parameter of ours, only a sign: others have torch's normalisation
    "source_embedding.weight": "src_embed.0.lut.weight",
    "target_embedding.weight": "tgt_embed.0.lut.weight",
    "encoder.positions.weight": ("src_embed.1.pe", transforms.position_table),
    "decoder.positions.weight": ("tgt_embed.1.pe", transforms.position_table),
    "output": "generator.proj",
}
