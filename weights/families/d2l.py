"""Checkpoints of Dive into Deep Learning."""

from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS
from mlx_transformer.weights.families.spec import FINAL_NORMS, Family, NameTable, attention_names, stack_names

PROJECTIONS = ("W_q", "W_k", "W_v", "W_o")

ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "attention", *PROJECTIONS),
    "self_attention_residual.norm": "addnorm1.ln",
    "feed_forward.up_proj": "ffn.dense1",
    "feed_forward.down_proj": "ffn.dense2",
    "feed_forward_residual.norm": "addnorm2.ln",
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("self_attention", "attention1", *PROJECTIONS),
    **attention_names("cross_attention", "attention2", *PROJECTIONS),
    "cross_attention_residual.norm": "addnorm2.ln",
    "feed_forward_residual.norm": "addnorm3.ln",
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.blks.block{i}", "decoder.blks.block{i}"),
    "source_embedding.weight": "encoder.embedding.weight",
    "target_embedding.weight": "decoder.embedding.weight",
    "output": "decoder.dense",
}

D2L = Family(
    NAMES,
    OWN_FIELDS,
    constants={"attention_bias": False, "output_bias": True},
    presence=FINAL_NORMS,
    # The ids of its special tokens depend on the vocabulary.
    defaults={name: value for name, value in OWN_DEFAULTS.items() if not name.endswith("_id")}
    | {"num_heads": 4, "max_length": 1000},
    defaults_from="Dive into Deep Learning",
    source_specials=("end",),
)
