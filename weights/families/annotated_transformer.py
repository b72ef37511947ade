"""Checkpoints of The Annotated Transformer."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import Names, attention, renamed_norm, stacks

ANNOTATED_ENCODER: Names = {
    **attention("self_attention", "self_attn", *(f"linears.{i}" for i in range(4))),
    **renamed_norm("self_attention_residual.norm", "sublayer.0.norm"),
    "feed_forward.up_proj": "feed_forward.w_1",
    "feed_forward.down_proj": "feed_forward.w_2",
    **renamed_norm("feed_forward_residual.norm", "sublayer.1.norm"),
}

ANNOTATED_DECODER: Names = {
    **ANNOTATED_ENCODER,
    **attention("cross_attention", "src_attn", *(f"linears.{i}" for i in range(4))),
    **renamed_norm("cross_attention_residual.norm", "sublayer.1.norm"),
    **renamed_norm("feed_forward_residual.norm", "sublayer.2.norm"),
}

ANNOTATED_NAMES: Names = {
    **stacks(ANNOTATED_ENCODER, ANNOTATED_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    **renamed_norm("encoder.norm", "encoder.norm"),
    **renamed_norm("decoder.norm", "decoder.norm"),
    "deviation.weight": "encoder.norm.a_2",  # no parameter of ours, only a sign: others have torch's normalisation
    "source_embedding.weight": "src_embed.0.lut.weight",
    "target_embedding.weight": "tgt_embed.0.lut.weight",
    "encoder.positions.weight": ("src_embed.1.pe", transforms.table),
    "decoder.positions.weight": ("tgt_embed.1.pe", transforms.table),
    "output": "generator.proj",
}
