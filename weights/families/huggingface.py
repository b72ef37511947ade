"""Checkpoints of transformers: BART, Marian, mBART, M2M100, NLLB, Pegasus, Blenderbot, T5, mT5, UMT5 and others."""

from dataclasses import replace
from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.fairseq import STACK_NAMES
from mlx_transformer.weights.families.spec import (
    OUTPUT_BIAS,
    POST_NORM,
    PRE_NORM,
    STACKS,
    Family,
    NameTable,
    attention_names,
    names_per_stack,
    stack_names,
)

# Embeddings may be shared, and stored under any of these names.
EMBEDDING_NAMES: NameTable = {
    "source_embedding.weight": [f"{name}.weight" for name in ("encoder.embed_tokens", "shared", "lm_head")]
    + ["decoder.embed_tokens.weight"],
    "target_embedding.weight": [f"{name}.weight" for name in ("decoder.embed_tokens", "shared", "lm_head")]
    + ["encoder.embed_tokens.weight"],
    "output.weight": "lm_head.weight",
    "projection": "linear",  # the dense layer of sentence-transformers
}

# BART and its relatives, whose layers are named as in fairseq.
BART_NAMES: NameTable = {
    **STACK_NAMES,
    **EMBEDDING_NAMES,
    "output.bias": ("final_logits_bias", transforms.flatten_bias),
}


def learned_positions(offset: int) -> NameTable:
    """Return the names of learned positions whose first rows, as many as the offset, are never read."""
    return names_per_stack("{stack}.positions.weight", "{stack}.embed_positions.weight", transforms.skip_rows(offset))


BART_FIELDS = {
    "dims": "d_model",
    "encoder.num_layers": "encoder_layers",
    "decoder.num_layers": "decoder_layers",
    "encoder.num_heads": "encoder_attention_heads",
    "decoder.num_heads": "decoder_attention_heads",
    "encoder.mlp_dims": "encoder_ffn_dim",
    "decoder.mlp_dims": "decoder_ffn_dim",
    "max_length": "max_position_embeddings",
    "scale_embeddings": ("scale_embedding", False),
    "activation": ("activation_function", "gelu", transforms.activation),
    "pad_id": "pad_token_id",
    "eos_id": transforms.first_end_id(),
    "extra_eos_ids": transforms.extra_end_ids,
}
SCALED_FIELDS = {**BART_FIELDS, "scale_embeddings": ("scale_embedding", True)}
# Sinusoidal positions that are read if the file has them, as in transformers, and otherwise computed.
STORED_POSITIONS: NameTable = {f"{stack}.positions.weight": f"{stack}.embed_positions.weight" for stack in STACKS}
BART_KEYWORDS: dict[str, Any] = {"fields": BART_FIELDS, "presence": OUTPUT_BIAS}
BART = Family(
    BART_NAMES | learned_positions(2),
    constants=POST_NORM | {"positions": "learned", "embedding_norm": "after"},
    model_types=("bart",),
    **BART_KEYWORDS,
)

# T5 and its relatives.
T5_ENCODER: NameTable = {
    **attention_names("self_attention", "layer.0.SelfAttention", "q", "k", "v", "o"),
    "self_attention_residual.norm": "layer.0.layer_norm",
    "self_attention.relative_bias": "layer.0.SelfAttention.relative_attention_bias",
    "feed_forward.gate_proj": "layer.1.DenseReluDense.wi_0",
    "feed_forward.up_proj": ["layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wi"],
    "feed_forward.down_proj": "layer.1.DenseReluDense.wo",
    "feed_forward_residual.norm": "layer.1.layer_norm",
}
T5_DECODER: NameTable = {
    **T5_ENCODER,
    **attention_names("cross_attention", "layer.1.EncDecAttention", "q", "k", "v", "o"),
    "cross_attention_residual.norm": "layer.1.layer_norm",
    "feed_forward.gate_proj": "layer.2.DenseReluDense.wi_0",
    "feed_forward.up_proj": ["layer.2.DenseReluDense.wi_1", "layer.2.DenseReluDense.wi"],
    "feed_forward.down_proj": "layer.2.DenseReluDense.wo",
    "feed_forward_residual.norm": "layer.2.layer_norm",
}
T5_NAMES: NameTable = {
    **stack_names(T5_ENCODER, T5_DECODER, "encoder.block.{i}", "decoder.block.{i}"),
    **EMBEDDING_NAMES,
    "encoder.relative_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "decoder.relative_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "encoder.norm": "encoder.final_layer_norm",
    "decoder.norm": "decoder.final_layer_norm",
}
T5_FIELDS = {
    "dims": "d_model",
    "head_dims": "d_kv",
    "mlp_dims": "d_ff",
    "num_heads": "num_heads",
    "encoder.num_layers": "num_layers",
    "decoder.num_layers": lambda settings: settings.get("num_decoder_layers") or settings["num_layers"],
    "num_buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "activation": ("feed_forward_proj", "relu", transforms.gate_activation),
    "gated_mlp": ("feed_forward_proj", "relu", transforms.is_gated),
    "logit_scale": transforms.scale_if_tied,
    "pad_id": ("pad_token_id", 0),
    "eos_id": transforms.first_end_id(1),
    "extra_eos_ids": transforms.extra_end_ids,
}
MT5_FIELDS = {
    **{setting: rule for setting, rule in T5_FIELDS.items() if setting != "logit_scale"},
    "activation": ("feed_forward_proj", "gated-gelu", transforms.gate_activation),
    "gated_mlp": ("feed_forward_proj", "gated-gelu", transforms.is_gated),
}
T5_CONSTANTS = {
    **PRE_NORM,
    "norm": "rms",
    "norm_bias": False,
    "attention_bias": False,
    "attention_scale": 1.0,
    "mlp_bias": False,
    "positions": "relative",
    "max_length": 8192,  # relative positions have no limit: this only bounds memory
    "scale_embeddings": False,
    "overflows_float16": True,
}
T5_KEYWORDS: dict[str, Any] = {"ignored": ("*.EncDecAttention.relative_attention_bias.weight",)}

HUGGINGFACE_FAMILIES: dict[str, Family] = {
    "marian": Family(
        BART_NAMES | STORED_POSITIONS,
        constants=POST_NORM,
        sinusoids=transforms.sinusoidal_halves,
        model_types=("marian",),
        **BART_KEYWORDS,
    ),
    "bart": BART,
    "plbart": replace(BART, fields=SCALED_FIELDS, model_types=("plbart",)),
    "mbart": Family(
        BART_NAMES | learned_positions(2),
        constants=PRE_NORM | {"positions": "learned", "embedding_norm": "after"},
        model_types=("mbart",),
        **BART_KEYWORDS,
    ),
    "m2m100": Family(
        BART_NAMES,
        {**SCALED_FIELDS, "activation": ("activation_function", "relu", transforms.activation)},
        constants=PRE_NORM,
        sinusoids=transforms.sinusoidal_after_padding,
        ignored=("*.embed_positions.weight*",),  # transformers ignores them too
        model_types=("m2m_100",),
    ),
    "pegasus": Family(
        BART_NAMES | STORED_POSITIONS,
        constants=PRE_NORM | {"overflows_float16": True},
        sinusoids=transforms.sinusoidal_halves,
        model_types=("pegasus",),
        **BART_KEYWORDS,
    ),
    "blenderbot": Family(
        BART_NAMES | learned_positions(0),
        constants=PRE_NORM | {"positions": "learned"},
        model_types=("blenderbot",),
        **BART_KEYWORDS,
    ),
    "blenderbot-small": Family(
        BART_NAMES | learned_positions(0),
        # The decoder's embeddings are normalised before positions are added, so that a scale has no effect.
        constants=POST_NORM
        | {
            "positions": "learned",
            "encoder.embedding_norm": "after",
            "decoder.embedding_norm": "before",
            "decoder.scale_embeddings": False,
        },
        model_types=("blenderbot-small",),
        **BART_KEYWORDS,
    ),
    "t5": Family(T5_NAMES, T5_FIELDS, T5_CONSTANTS, ("t5",), **T5_KEYWORDS),
    "mt5": Family(T5_NAMES, MT5_FIELDS, T5_CONSTANTS, ("mt5",), **T5_KEYWORDS),
    "umt5": Family(
        T5_NAMES,
        MT5_FIELDS | {"logit_scale": transforms.scale_if_tied},
        T5_CONSTANTS | {"bias_each_layer": True},
        ("umt5",),
        **T5_KEYWORDS,
    ),
}
