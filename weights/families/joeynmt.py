"""Checkpoints of JoeyNMT."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import (
    FINAL_NORMS,
    STACKS,
    Family,
    NameTable,
    attention_names,
    stack_names,
)

PROJECTIONS = ("q_layer", "k_layer", "v_layer", "output_layer")

ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "src_src_att", *PROJECTIONS),
    "self_attention_residual.norm": "layer_norm",
    "feed_forward.up_proj": "feed_forward.pwff_layer.0",
    "feed_forward.down_proj": "feed_forward.pwff_layer.3",
    "feed_forward_residual.norm": "feed_forward.layer_norm",
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("self_attention", "trg_trg_att", *PROJECTIONS),
    **attention_names("cross_attention", "src_trg_att", *PROJECTIONS),
    "self_attention_residual.norm": "x_layer_norm",
    "cross_attention_residual.norm": "dec_layer_norm",
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
    "source_embedding.weight": "src_embed.lut.weight",
    "target_embedding.weight": "trg_embed.lut.weight",
    "encoder.positions.weight": ("encoder.pe.pe", transforms.position_table),
    "decoder.positions.weight": ("decoder.pe.pe", transforms.position_table),
    "output.weight": "decoder.output_layer.weight",
}

FIELDS = {
    f"{stack}.{field}": rule
    for stack in STACKS
    for field, rule in {
        "num_heads": f"{stack}_num_heads",
        "scale_embeddings": (f"{stack}_embeddings_scale", False),
        "residual_scale": (f"{stack}_alpha", 1.0),
        "norm_first": (f"{stack}_layer_norm", None, {"pre": True, "post": False}),
    }.items()
} | {"activation": transforms.same_activation("encoder_activation", "decoder_activation", "relu")}

JOEYNMT = Family(
    NAMES,
    FIELDS,
    {"norm_eps": 1e-6, "encoder.norm_first": True, "pad_id": 1, "start_id": 2, "eos_id": 3},
    # By default the encoder is pre-norm; the decoder is too if it ends with a norm.
    presence=FINAL_NORMS | {"decoder.norm_first": ("decoder.norm.weight", True, False)},
    # Only the beam size carries over: JoeyNMT's length penalty divides by another function of another length.
    search={"beam_size": "testing_beam_size"},
)
