"""Checkpoints of gordicaleksa/pytorch-original-transformer."""

from typing import Any

from mlx_transformer.weights.families import transforms
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

PROJECTIONS = ("qkv_nets.0", "qkv_nets.1", "qkv_nets.2", "out_projection_net")
BIG_DIMS = 1024

FEED_FORWARD: NameTable = {
    "feed_forward.up_proj": "pointwise_net.linear1",
    "feed_forward.down_proj": "pointwise_net.linear2",
}

ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "multi_headed_attention", *PROJECTIONS),
    "self_attention_residual.norm": "sublayers.0.norm",
    **FEED_FORWARD,
    "feed_forward_residual.norm": "sublayers.1.norm",
}

DECODER_LAYER: NameTable = {
    **attention_names("self_attention", "trg_multi_headed_attention", *PROJECTIONS),
    "self_attention_residual.norm": "sublayers.0.norm",
    **attention_names("cross_attention", "src_multi_headed_attention", *PROJECTIONS),
    "cross_attention_residual.norm": "sublayers.1.norm",
    **FEED_FORWARD,
    "feed_forward_residual.norm": "sublayers.2.norm",
}

POSITIONS = "{side}_pos_embedding.positional_encodings_table"

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.encoder_layers.{i}", "decoder.decoder_layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    "source_embedding.weight": "src_embedding.embeddings_table.weight",
    "target_embedding.weight": "trg_embedding.embeddings_table.weight",
    "encoder.positions.weight": (POSITIONS.format(side="src"), transforms.position_table),
    "decoder.positions.weight": (POSITIONS.format(side="trg"), transforms.position_table),
    "output": "decoder_generator.linear",
}


def num_heads(tensors: dict[str, Any]) -> int:
    """Return the number of heads of its baseline or its big model, by the width of the embeddings."""
    return 16 if tensors.get("dims", 0) >= BIG_DIMS else 8


GORDICALEKSA = Family(
    NAMES,
    OWN_FIELDS,
    presence=BIASES | OUTPUT_BIAS | FINAL_NORMS,
    defaults=OWN_DEFAULTS | {"norm_first": True, "num_heads": num_heads},
    defaults_from="gordicaleksa/pytorch-original-transformer",
)
