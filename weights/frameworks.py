"""Families of checkpoints that training programs and books save, as tables: torch.nn.Transformer, fairseq and others.

What such a file does not say (always the number of heads, for some the special tokens) a user has to.
"""

from typing import Any

from mlx_transformer.weights import transforms as to
from mlx_transformer.weights.family import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    POST_NORM,
    PRE_NORM,
    Family,
    Names,
    attention,
    named,
    packed,
    renamed_norm,
    stacks,
)

# torch.nn.Transformer in a module of someone's own, under the usual names.
TORCH_ENCODER: Names = {
    **packed("self_attention", "self_attn"),
    "self_attention_residual.norm": "norm1",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "feed_forward_residual.norm": "norm2",
}
TORCH_DECODER: Names = {
    **TORCH_ENCODER,
    **packed("cross_attention", "multihead_attn"),
    "cross_attention_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}
POSITION_BUFFERS = [
    (name, to.table)
    for name in (
        *("positional_encoding.pos_embedding", "positional_encoding.pe", "pos_encoder.pe", "pos_encoding.pe"),
        *("pos_embedding.weight", "position_embedding.weight", "positional_encoding.weight"),
    )
]
SHARED_TABLES = ["embedding.weight", "embed.weight", "token_embedding.weight"]
TORCH_NAMES: Names = {
    **stacks(TORCH_ENCODER, TORCH_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    "encoder.positions.weight": POSITION_BUFFERS,
    "decoder.positions.weight": POSITION_BUFFERS,
    "source_embedding.weight": [
        *("src_tok_emb.embedding.weight", "src_tok_emb.weight", "src_embedding.weight", "src_embed.weight"),
        *("encoder_embedding.weight", "source_embedding.weight", "src_emb.weight", *SHARED_TABLES),
    ],
    "target_embedding.weight": [
        *("tgt_tok_emb.embedding.weight", "tgt_tok_emb.weight", "tgt_embedding.weight", "tgt_embed.weight"),
        *("trg_embedding.weight", "decoder_embedding.weight", "target_embedding.weight", "tgt_emb.weight"),
        *SHARED_TABLES,
    ],
    "output": ["generator", "fc_out", "out", "linear", "output_layer", "fc", "projection", "output", "lm_head"],
}
TORCH_FIELDS = {
    "num_heads": ("nhead", None),
    "norm_first": ("norm_first", False),
    "norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("activation", "relu", to.activation),
}

ANNOTATED_ENCODER: Names = {
    **attention("self_attention", "self_attn", *(f"linears.{i}" for i in range(4))),
    **renamed_norm("self_attention_residual.norm", "sublayer.0.norm"),
    "feed_forward.up_proj": "feed_forward.w_1",
    "feed_forward.down_proj": "feed_forward.w_2",
    **renamed_norm("feed_forward_residual.norm", "sublayer.1.norm"),
}
ANNOTATED_DECODER: Names = {
    **ANNOTATED_ENCODER,
    **attention("cross_attention", "src_attn", *(f"linears.{i}" for i in range(4))),
    **renamed_norm("cross_attention_residual.norm", "sublayer.1.norm"),
    **renamed_norm("feed_forward_residual.norm", "sublayer.2.norm"),
}
ANNOTATED_NAMES: Names = {
    **stacks(ANNOTATED_ENCODER, ANNOTATED_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    **renamed_norm("encoder.norm", "encoder.norm"),
    **renamed_norm("decoder.norm", "decoder.norm"),
    "source_embedding.weight": "src_embed.0.lut.weight",
    "target_embedding.weight": "tgt_embed.0.lut.weight",
    "encoder.positions.weight": ("src_embed.1.pe", to.table),
    "decoder.positions.weight": ("tgt_embed.1.pe", to.table),
    "output": "generator.proj",
}

D2L_ENCODER: Names = {
    **attention("self_attention", "attention", "W_q", "W_k", "W_v", "W_o"),
    "self_attention_residual.norm": "addnorm1.ln",
    "feed_forward.up_proj": "ffn.dense1",
    "feed_forward.down_proj": "ffn.dense2",
    "feed_forward_residual.norm": "addnorm2.ln",
}
D2L_DECODER: Names = {
    **D2L_ENCODER,
    **attention("self_attention", "attention1", "W_q", "W_k", "W_v", "W_o"),
    **attention("cross_attention", "attention2", "W_q", "W_k", "W_v", "W_o"),
    "cross_attention_residual.norm": "addnorm2.ln",
    "feed_forward_residual.norm": "addnorm3.ln",
}
D2L_NAMES: Names = {
    **stacks(D2L_ENCODER, D2L_DECODER, "encoder.blks.block{i}", "decoder.blks.block{i}"),
    "source_embedding.weight": "encoder.embedding.weight",
    "target_embedding.weight": "decoder.embedding.weight",
    "output": "decoder.dense",
}

# Old files have packed projections and counted norms.
FAIRSEQ_ENCODER: Names = {
    **packed("self_attention", "self_attn"),
    "self_attention_residual.norm": ["self_attn_layer_norm", "layer_norms.0"],
    "feed_forward.up_proj": "fc1",
    "feed_forward.down_proj": "fc2",
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.1"],
}
FAIRSEQ_DECODER: Names = {
    **FAIRSEQ_ENCODER,
    **packed("cross_attention", "encoder_attn"),
    "cross_attention_residual.norm": ["encoder_attn_layer_norm", "layer_norms.1"],
    "feed_forward_residual.norm": ["final_layer_norm", "layer_norms.2"],
}
FAIRSEQ_NAMES: Names = {
    **stacks(FAIRSEQ_ENCODER, FAIRSEQ_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.embedding_norm": "encoder.layernorm_embedding",
    "decoder.embedding_norm": "decoder.layernorm_embedding",
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
}
# What the names of fairseq's architectures stand for, where a file does not say it itself.
FAIRSEQ_HEADS = {"iwslt": 4, "big": 16}


def fairseq_heads(side: str) -> Any:
    """The number of heads of a stack."""

    def find(settings: dict[str, Any]) -> int | None:
        arch = str(settings.get("arch", settings["_name"] if "_name" in settings else ""))
        usual = next((heads for part, heads in FAIRSEQ_HEADS.items() if part in arch), 8)
        return settings.get(f"{side}_attention_heads") or (usual if settings else None)

    return find


def fairseq_norm_first(side: str) -> Any:
    """Whether a stack is pre-norm."""
    return lambda settings: settings.get(f"{side}_normalize_before", "t2t" in str(settings.get("arch", "")))


FAIRSEQ_FIELDS = {
    "encoder.num_heads": fairseq_heads("encoder"),
    "decoder.num_heads": fairseq_heads("decoder"),
    "encoder.norm_first": fairseq_norm_first("encoder"),
    "decoder.norm_first": fairseq_norm_first("decoder"),
    "activation": ("activation_fn", "relu", to.activation),
    "scale_embeddings": lambda settings: not settings.get("no_scale_embedding"),
    "positions": lambda settings: "none" if settings.get("no_token_positional_embeddings") else None,
    "encoder.max_length": lambda settings: settings.get("max_source_positions", 1024 if settings else None),
    "decoder.max_length": lambda settings: settings.get("max_target_positions", 1024 if settings else None),
}

ONMT_ATTENTION = ("linear_query", "linear_keys", "linear_values", "final_linear")
ONMT_ENCODER: Names = {
    **attention("self_attention", "self_attn", *ONMT_ATTENTION),
    **renamed_norm("self_attention_residual.norm", "layer_norm"),
    "feed_forward.gate_proj": "feed_forward.w_1",
    "feed_forward.up_proj": ["feed_forward.w_3", "feed_forward.w_1"],
    "feed_forward.third": "feed_forward.w_3",  # no parameter of ours, only a sign of a gate
    "feed_forward.down_proj": "feed_forward.w_2",
    **renamed_norm("feed_forward_residual.norm", "feed_forward.layer_norm"),
}
ONMT_DECODER: Names = {
    **ONMT_ENCODER,
    **attention("cross_attention", "context_attn", *ONMT_ATTENTION),
    **renamed_norm("self_attention_residual.norm", "layer_norm_1"),
    **renamed_norm("cross_attention_residual.norm", "layer_norm_2"),
}
ONMT_NAMES: Names = {
    **stacks(ONMT_ENCODER, ONMT_DECODER, "encoder.transformer.{i}", "decoder.transformer_layers.{i}"),
    **renamed_norm("encoder.norm", "encoder.layer_norm"),
    **renamed_norm("decoder.norm", "decoder.layer_norm"),
    "source_embedding.weight": "encoder.embeddings.make_embedding.emb_luts.0.weight",
    "target_embedding.weight": "decoder.embeddings.make_embedding.emb_luts.0.weight",
    "encoder.positions.weight": ("encoder.embeddings.make_embedding.pe.pe", to.table),
    "decoder.positions.weight": ("decoder.embeddings.make_embedding.pe.pe", to.table),
    "output": ["generator", "generator.0"],
}
ONMT_FIELDS = {
    "num_heads": "heads",
    "norm": ("layer_norm", "standard", {"standard": "layer"}),
    "norm_eps": ("norm_eps", 1e-6),
    "activation": ("pos_ffn_activation_fn", "relu", to.exact_gate_activation),
    "pad_id": lambda settings: to.token(settings, "<blank>", 1),
    "start_id": lambda settings: to.token(settings, settings.get("decoder_start_token") or "<s>", 2),
    "eos_id": lambda settings: to.token(settings, "</s>", 3),
}

JOEY_PROJECTIONS = ("q_layer", "k_layer", "v_layer", "output_layer")
JOEY_ENCODER: Names = {
    **attention("self_attention", "src_src_att", *JOEY_PROJECTIONS),
    "self_attention_residual.norm": "layer_norm",
    "feed_forward.up_proj": "feed_forward.pwff_layer.0",
    "feed_forward.down_proj": "feed_forward.pwff_layer.3",
    "feed_forward_residual.norm": "feed_forward.layer_norm",
}
JOEY_DECODER: Names = {
    **JOEY_ENCODER,
    **attention("self_attention", "trg_trg_att", *JOEY_PROJECTIONS),
    **attention("cross_attention", "src_trg_att", *JOEY_PROJECTIONS),
    "self_attention_residual.norm": "x_layer_norm",
    "cross_attention_residual.norm": "dec_layer_norm",
}
JOEY_NAMES: Names = {
    **stacks(JOEY_ENCODER, JOEY_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.layer_norm",
    "decoder.norm": "decoder.layer_norm",
    "source_embedding.weight": "src_embed.lut.weight",
    "target_embedding.weight": "trg_embed.lut.weight",
    "encoder.positions.weight": ("encoder.pe.pe", to.table),
    "decoder.positions.weight": ("decoder.pe.pe", to.table),
    "output.weight": "decoder.output_layer.weight",
}
NORM_FIRST = {"pre": True, "post": False}
JOEY_FIELDS = {
    **{f"{side}.num_heads": f"{side}_num_heads" for side in ("encoder", "decoder")},
    **{f"{side}.scale_embeddings": (f"{side}_embeddings_scale", False) for side in ("encoder", "decoder")},
    **{f"{side}.residual_scale": (f"{side}_alpha", 1.0) for side in ("encoder", "decoder")},
    **{
        f"{side}.norm_first": (f"{side}_layer_norm", None, {"pre": True, "post": False})
        for side in ("encoder", "decoder")
    },
    "activation": ("encoder_activation", "relu", to.activation),
}

FRAMEWORKS: dict[str, Family] = {
    "torch": Family(
        TORCH_NAMES,
        TORCH_FIELDS,
        signature="encoder.layers.0.linear1.weight",
        presence=BIASES | OUTPUT_BIAS | FINAL_NORMS,
    ),
    "annotated": Family(
        ANNOTATED_NAMES,
        constants=PRE_NORM | {"norm": "deviation", "norm_eps": 1e-6, "start_id": 0, "eos_id": 1, "pad_id": 2},
        signature="encoder.layers.0.self_attn.linears.0.weight",
        presence=OUTPUT_BIAS,
    ),
    "d2l": Family(
        D2L_NAMES,
        constants=POST_NORM | {"max_length": 1000},
        signature="encoder.blks.block0.attention.W_q.weight",
        presence=BIASES | OUTPUT_BIAS,
    ),
    "fairseq": Family(
        FAIRSEQ_NAMES
        | named("{side}.positions.weight", "{side}.embed_positions.weight", to.skip(2))
        | {
            "source_embedding.weight": "encoder.embed_tokens.weight",
            "target_embedding.weight": "decoder.embed_tokens.weight",
            "output.weight": ["decoder.output_projection.weight", "decoder.embed_out"],
        },
        FAIRSEQ_FIELDS,
        {"pad_id": 1, "eos_id": 2, "start_id": 2},
        signature="encoder.layers.0.fc1.weight",
        presence=FINAL_NORMS
        | {
            f"{side}.{setting}": (f"{side}.{part}.weight", there, absent)
            for side in ("encoder", "decoder")
            for setting, part, there, absent in (
                ("embedding_norm", "embedding_norm", "after", "none"),
                ("positions", "positions", "learned", "sinusoidal"),
            )
        },
        rows=to.spread_after_padding,
        ignored=("*.version", "*._float_tensor", "*.embed_positions.weights"),
        allowed={
            "adaptive_softmax_cutoff": (),
            "adaptive_input": (False,),
            "no_cross_attention": (False,),
            "cross_self_attention": (False,),
        },
        search={"beam_size": 5, "suppress_ids": (1,)},
    ),
    "opennmt-py": Family(
        ONMT_NAMES,
        ONMT_FIELDS,
        PRE_NORM,
        signature="encoder.transformer.0.self_attn.linear_keys.weight",
        presence=BIASES
        | OUTPUT_BIAS
        | {
            "gated_mlp": ("encoder.layers.0.feed_forward.third.weight", True, False),
            "positions": ("encoder.positions.weight", "sinusoidal", "none"),
            "scale_embeddings": ("encoder.positions.weight", True, False),
        },
        allowed={
            "max_relative_positions": (0,),
            "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
            "parallel_residual": (False,),
            "multiquery": (False,),
            "copy_attn": (False,),
        },
    ),
    "joeynmt": Family(
        JOEY_NAMES,
        JOEY_FIELDS,
        {"norm_eps": 1e-6, "pad_id": 1, "start_id": 2, "eos_id": 3},
        signature="encoder.layers.0.src_src_att.k_layer.weight",
        presence=FINAL_NORMS
        # Without a setting the encoder's layers are pre-norm, and the decoder's where it ends with a norm.
        | {
            "encoder.norm_first": ("encoder.norm.weight", True, True),
            "decoder.norm_first": ("decoder.norm.weight", True, False),
        },
    ),
}
