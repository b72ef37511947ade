"""Checkpoints of fairseq."""

from collections.abc import Callable
from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import (
    FINAL_NORMS,
    STACKS,
    Family,
    NameTable,
    names_per_stack,
    packed_projections,
    presence_per_stack,
    stack_names,
)

# Old files pack query, key and value in one tensor and number the norms.
ENCODER_LAYER: NameTable = {
    **packed_projections("self_attention", "self_attn"),
    "self_attention_residual.norm": ["self_attn_layer_norm", "layer_norms.0"],
    "feed_forward.up_proj": "fc1",
    "feed_forward.down_proj": "fc2",
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.1"],
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **packed_projections("cross_attention", "encoder_attn"),
    "cross_attention_residual.norm": ["encoder_attn_layer_norm", "layer_norms.1"],
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.2"],
}

# Shared with BART and its relatives in transformers.
STACK_NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.embedding_norm": "encoder.layernorm_embedding",
    "decoder.embedding_norm": "decoder.layernorm_embedding",
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
}

NAMES: NameTable = {
    **STACK_NAMES,
    **names_per_stack("{stack}.positions.weight", "{stack}.embed_positions.weight", transforms.skip_rows(2)),
    "source_embedding.weight": "encoder.embed_tokens.weight",
    "target_embedding.weight": "decoder.embed_tokens.weight",
    "output.weight": ["decoder.output_projection.weight", "decoder.embed_out"],
}

# Part of an architecture's name -> its number of heads, for files without that setting; 8 for all others.
ARCHITECTURE_HEADS = {"iwslt": 4, "big": 16}
DEFAULT_HEADS = 8
DEFAULT_LENGTH = 1024


def architecture(settings: dict[str, Any]) -> str:
    """Return the name of fairseq's architecture, such as transformer_wmt_en_de_big."""
    return str(settings.get("arch") or settings.get("_name"))


def has_options(settings: dict[str, Any]) -> bool:
    """Return whether a checkpoint has fairseq's options, where absent ones have the architecture's values."""
    return any(key in ("arch", "_name") or key.startswith(("encoder_", "decoder_")) for key in settings)


def num_heads(stack: str) -> Callable[[dict[str, Any]], int | None]:
    """Return a function from fairseq's settings to the number of heads of a stack."""

    def read(settings: dict[str, Any]) -> int | None:
        name = architecture(settings)
        default = next((heads for part, heads in ARCHITECTURE_HEADS.items() if part in name), DEFAULT_HEADS)
        return settings.get(f"{stack}_attention_heads") or (default if has_options(settings) else None)

    return read


def norm_first(stack: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function from fairseq's settings to whether a stack is pre-norm."""
    return lambda settings: settings.get(f"{stack}_normalize_before", "t2t" in architecture(settings))


def max_length(key: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function from fairseq's settings to the maximum length under a key."""
    return lambda settings: settings.get(key, DEFAULT_LENGTH if has_options(settings) else None)


FIELDS = {
    **{f"{stack}.num_heads": num_heads(stack) for stack in STACKS},
    **{f"{stack}.norm_first": norm_first(stack) for stack in STACKS},
    "activation": ("activation_fn", "relu", transforms.activation),
    "scale_embeddings": lambda settings: not settings.get("no_scale_embedding"),
    "positions": lambda settings: "none" if settings.get("no_token_positional_embeddings") else None,
    "encoder.max_length": max_length("max_source_positions"),
    "decoder.max_length": max_length("max_target_positions"),
}

FAIRSEQ = Family(
    NAMES,
    FIELDS,
    {"pad_id": 1, "eos_id": 2, "start_id": 2},
    presence=FINAL_NORMS
    | presence_per_stack("embedding_norm", "embedding_norm", "after", "none")
    | presence_per_stack("positions", "positions", "learned", "sinusoidal"),
    sinusoids=transforms.sinusoidal_after_padding,
    ignored=("*._float_tensor", "*.embed_positions.weights"),
    supported={
        "adaptive_softmax_cutoff": (),
        "adaptive_input": (False,),
        "no_cross_attention": (False,),
        "cross_self_attention": (False,),
    },
    search={"beam_size": 5},
)
