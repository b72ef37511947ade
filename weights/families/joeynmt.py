"""Checkpoints of JoeyNMT."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import SIDES, NameTable, attention_names, stack_names

JOEY_PROJECTIONS = ("q_layer", "k_layer", "v_layer", "output_layer")

JOEY_ENCODER: NameTable = {
    **attention_names("self_attention", "src_src_att", *JOEY_PROJECTIONS),
    "self_attention_residual.norm": "layer_norm",
    "feed_forward.up_proj": "feed_forward.pwff_layer.0",
    "feed_forward.down_proj": "feed_forward.pwff_layer.3",
    "feed_forward_residual.norm": "feed_forward.layer_norm",
}

JOEY_DECODER: NameTable = {
    **JOEY_ENCODER,
    **attention_names("self_attention", "trg_trg_att", *JOEY_PROJECTIONS),
    **attention_names("cross_attention", "src_trg_att", *JOEY_PROJECTIONS),
    "self_attention_residual.norm": "x_layer_norm",
    "cross_attention_residual.norm": "dec_layer_norm",
}

JOEY_NAMES: NameTable = {
    **stack_names(JOEY_ENCODER, JOEY_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
    "source_embedding.weight": "src_embed.lut.weight",
    "target_embedding.weight": "trg_embed.lut.weight",
    "encoder.positions.weight": ("encoder.pe.pe", transforms.position_table),
    "decoder.positions.weight": ("decoder.pe.pe", transforms.position_table),
    "output.weight": "decoder.output_layer.weight",
}

JOEY_FIELDS = {
    f"{side}.{ours}": rule
    for side in SIDES
    for ours, rule in {
        "num_heads": f"{side}_num_heads",
        "scale_embeddings": (f"{side}_embeddings_scale", False),
        "residual_scale": (f"{side}_alpha", 1.0),
        "norm_first": (f"{side}_layer_norm", None, {"pre": True, "post": False}),
    }.items()
} | {"activation": transforms.require_equal("encoder_activation", "decoder_activation", "relu")}
