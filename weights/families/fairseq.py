"""Checkpoints of fairseq."""

from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import SIDES, NameTable, packed_projections, stack_names

# Old files have packed projections and counted norms.
FAIRSEQ_ENCODER: NameTable = {
    **packed_projections("self_attention", "self_attn"),
    "self_attention_residual.norm": ["self_attn_layer_norm", "layer_norms.0"],
    "feed_forward.up_proj": "fc1",
    "feed_forward.down_proj": "fc2",
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.1"],
}

FAIRSEQ_DECODER: NameTable = {
    **FAIRSEQ_ENCODER,
    **packed_projections("cross_attention", "encoder_attn"),
    "cross_attention_residual.norm": ["encoder_attn_layer_norm", "layer_norms.1"],
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.2"],
}

FAIRSEQ_NAMES: NameTable = {
    **stack_names(FAIRSEQ_ENCODER, FAIRSEQ_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.embedding_norm": "encoder.layernorm_embedding",
    "decoder.embedding_norm": "decoder.layernorm_embedding",
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
}

# What the names of fairseq's architectures stand for, where a file does not say it itself.
FAIRSEQ_HEADS = {"iwslt": 4, "big": 16}


def fairseq_arch(settings: dict[str, Any]) -> str:
    """The name of the architecture."""
    return str(settings.get("arch") or settings.get("_name"))


def fairseq_heads(side: str) -> Any:
    """The number of heads of a stack."""

    def find(settings: dict[str, Any]) -> int | None:
        usual = next((heads for part, heads in FAIRSEQ_HEADS.items() if part in fairseq_arch(settings)), 8)
        return settings.get(f"{side}_attention_heads") or (usual if settings else None)

    return find


def fairseq_norm_first(side: str) -> Any:
    """Whether a stack is pre-norm."""
    return lambda settings: settings.get(f"{side}_normalize_before", "t2t" in fairseq_arch(settings))


FAIRSEQ_FIELDS = {
    **{f"{side}.num_heads": fairseq_heads(side) for side in SIDES},
    **{f"{side}.norm_first": fairseq_norm_first(side) for side in SIDES},
    "activation": ("activation_fn", "relu", transforms.activation),
    "scale_embeddings": lambda settings: not settings.get("no_scale_embedding"),
    "positions": lambda settings: "none" if settings.get("no_token_positional_embeddings") else None,
    "encoder.max_length": lambda settings: settings.get("max_source_positions", 1024 if settings else None),
    "decoder.max_length": lambda settings: settings.get("max_target_positions", 1024 if settings else None),
}
