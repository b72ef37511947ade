"""Checkpoints of OpenNMT-py."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import (
    BIASES,
    PRE_NORM,
    Family,
    NameTable,
    attention_names,
    gamma_beta_norm,
    stack_names,
)

PROJECTIONS = ("linear_query", "linear_keys", "linear_values", "final_linear")

ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "self_attn", *PROJECTIONS),
    **gamma_beta_norm("self_attention_residual.norm", "layer_norm"),
    "feed_forward.gate_proj": "feed_forward.w_1",
    "feed_forward.up_proj": ["feed_forward.w_3", "feed_forward.w_1"],
    "feed_forward.down_proj": "feed_forward.w_2",
    **gamma_beta_norm("feed_forward_residual.norm", "feed_forward.layer_norm"),
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("cross_attention", "context_attn", *PROJECTIONS),
    **gamma_beta_norm("self_attention_residual.norm", "layer_norm_1"),
    **gamma_beta_norm("cross_attention_residual.norm", "layer_norm_2"),
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.transformer.{i}", "decoder.transformer_layers.{i}"),
    **gamma_beta_norm("encoder.norm", "encoder.layer_norm"),
    **gamma_beta_norm("decoder.norm", "decoder.layer_norm"),
    "source_embedding.weight": "encoder.embeddings.make_embedding.emb_luts.0.weight",
    "target_embedding.weight": "decoder.embeddings.make_embedding.emb_luts.0.weight",
    "encoder.positions.weight": ("encoder.embeddings.make_embedding.pe.pe", transforms.position_table),
    "decoder.positions.weight": ("decoder.embeddings.make_embedding.pe.pe", transforms.position_table),
    "output": ["generator", "generator.0"],
    "gate": "encoder.transformer.0.feed_forward.w_3",  # only for `presence`
}

FIELDS = {
    "num_heads": "heads",
    "norm": ("layer_norm", "standard", {"standard": "layer"}),
    "norm_eps": ("norm_eps", 1e-6),
    "activation": ("pos_ffn_activation_fn", "relu", transforms.exact_gate_activation),
    "pad_id": lambda settings: transforms.vocabulary_id(settings, "<blank>", 1),
    "start_id": lambda settings: transforms.vocabulary_id(settings, settings.get("decoder_start_token") or "<s>", 2),
    "eos_id": lambda settings: transforms.vocabulary_id(settings, "</s>", 3),
}

OPENNMT_PY = Family(
    NAMES,
    FIELDS,
    PRE_NORM | {"output_bias": True},
    presence=BIASES
    | {
        "attention_out_bias": ("encoder.layers.0.self_attention.out_proj.bias", True, False),
        "gated_mlp": ("gate.weight", True, False),
        "positions": ("encoder.positions.weight", "sinusoidal", "none"),
        "scale_embeddings": ("encoder.positions.weight", True, False),
    },
    supported={
        "max_relative_positions": (0,),
        "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
        "parallel_residual": (False,),
        "multiquery": (False,),
        "copy_attn": (False,),
    },
    search={"beam_size": 5},
)
