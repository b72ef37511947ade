"""Checkpoints of hyunwoongko/transformer.

A padding token inside a target, which generation never writes, attends to all of the target there.
"""

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

PROJECTIONS = ("w_q", "w_k", "w_v", "w_concat")


def layer_norm(norm: str, source: str) -> NameTable:
    """Return the names of a normalisation."""
    return norm_names(norm, source, "gamma", "beta")


ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "attention", *PROJECTIONS),
    **layer_norm("self_attention_residual.norm", "norm1"),
    "feed_forward.up_proj": "ffn.linear1",
    "feed_forward.down_proj": "ffn.linear2",
    **layer_norm("feed_forward_residual.norm", "norm2"),
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("self_attention", "self_attention", *PROJECTIONS),
    **attention_names("cross_attention", "enc_dec_attention", *PROJECTIONS),
    **layer_norm("cross_attention_residual.norm", "norm2"),
    **layer_norm("feed_forward_residual.norm", "norm3"),
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "source_embedding.weight": "encoder.emb.tok_emb.weight",
    "target_embedding.weight": "decoder.emb.tok_emb.weight",
    "output": "decoder.linear",
}

HYUNWOONGKO = Family(
    NAMES,
    OWN_FIELDS,
    presence=BIASES | OUTPUT_BIAS | FINAL_NORMS,
    defaults=OWN_DEFAULTS | {"norm_eps": 1e-12, "scale_embeddings": False, "max_length": 256},
    defaults_from="hyunwoongko/transformer",
    source_specials=("start", "end"),
)
