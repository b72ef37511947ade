"""Checkpoints of the Transformer notebook of bentrevett/pytorch-seq2seq."""

from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS
from mlx_transformer.weights.families.spec import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    Family,
    NameTable,
    attention_names,
    stack_names,
)

PROJECTIONS = ("fc_q", "fc_k", "fc_v", "fc_o")

# Early versions normalise all sublayers of a layer with one norm.
ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "self_attention", *PROJECTIONS),
    "self_attention_residual.norm": ["self_attn_layer_norm", "layer_norm"],
    "feed_forward.up_proj": "positionwise_feedforward.fc_1",
    "feed_forward.down_proj": "positionwise_feedforward.fc_2",
    "feed_forward_residual.norm": ["ff_layer_norm", "layer_norm"],
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("cross_attention", "encoder_attention", *PROJECTIONS),
    "cross_attention_residual.norm": ["enc_attn_layer_norm", "layer_norm"],
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "source_embedding.weight": "encoder.tok_embedding.weight",
    "target_embedding.weight": "decoder.tok_embedding.weight",
    "encoder.positions.weight": "encoder.pos_embedding.weight",
    "decoder.positions.weight": "decoder.pos_embedding.weight",
    "output": "decoder.fc_out",
}

BENTREVETT = Family(
    NAMES,
    OWN_FIELDS,
    constants={"positions": "learned"},
    presence=BIASES | OUTPUT_BIAS | FINAL_NORMS,
    defaults=OWN_DEFAULTS,
    defaults_from="bentrevett/pytorch-seq2seq",
    source_specials=("start", "end"),
)
