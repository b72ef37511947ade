"""Families of checkpoints that training programs and books save, as tables: torch.nn.Transformer, fairseq and others.

What such a file does not say (always the number of heads, for some the special tokens) a user has to.
"""

import itertools
from typing import Any

from mlx_transformer.weights import transforms as to
from mlx_transformer.weights.family import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    POST_NORM,
    PRE_NORM,
    SIDES,
    Family,
    Names,
    attention,
    named,
    on_each_side,
    packed,
    renamed_norm,
    stacks,
)

# torch.nn.Transformer in a module of someone's own, under the usual names.
TORCH_ENCODER: Names = {
    **packed("self_attention", "self_attn", "_proj_{leaf}"),
    "self_attention_residual.norm": "norm1",
    "feed_forward.up_proj": "linear1",
    "feed_forward.down_proj": "linear2",
    "feed_forward_residual.norm": "norm2",
}
TORCH_DECODER: Names = {
    **TORCH_ENCODER,
    **packed("cross_attention", "multihead_attn", "_proj_{leaf}"),
    "cross_attention_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}
# What such modules call their parts, behind a word for the side where each side has its own.
SIDE_WORDS = {
    "encoder": ("src_", "source_", "encoder_", "enc_", ""),
    "decoder": ("tgt_", "trg_", "target_", "decoder_", "dec_", ""),
}
TABLE_WORDS = ("tok_emb", "token_embedding", "word_embedding", "embedding", "embed", "emb")
POSITION_WORDS = (
    *("positional_encoding", "positional_embedding", "position_embedding", "position_embeddings"),
    *("pos_encoding", "pos_encoder", "pos_embedding", "pos_embed", "pos_emb", "pos", "pe"),
)
TABLE_LEAVES = (".weight", ".embedding.weight", ".lut.weight")
BUFFER_LEAVES = (".pos_embedding", ".pe", "")


def spelled(side: str, words: tuple[str, ...], leaves: tuple[str, ...]) -> list[str]:
    """The names that a part of a side may have, those of this side alone first."""
    return ["".join(name) for name in itertools.product(SIDE_WORDS[side], words, leaves)]


def torch_embeddings(side: str, table: str) -> Names:
    """Tokens and positions of a side: rows of an nn.Embedding are learned, those of a buffer are not."""
    learned = spelled(side, POSITION_WORDS, TABLE_LEAVES)
    buffers = [(name, to.table) for name in spelled(side, POSITION_WORDS, BUFFER_LEAVES)]
    return {
        f"{table}.weight": spelled(side, TABLE_WORDS, TABLE_LEAVES),
        f"{side}.positions.weight": [*learned, *buffers],
        f"{side}.learned.weight": learned,  # no parameter of ours, only a sign
    }


TORCH_NAMES: Names = {
    **stacks(TORCH_ENCODER, TORCH_DECODER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    **torch_embeddings("encoder", "source_embedding"),
    **torch_embeddings("decoder", "target_embedding"),
    "output": ["generator", "fc_out", "out", "linear", "output_layer", "fc", "projection", "output", "lm_head"],
}
TORCH_FIELDS = {
    "num_heads": ("nhead", None),
    "norm_first": ("norm_first", False),
    "norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("activation", "relu"),
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
    "deviation.weight": "encoder.norm.a_2",  # no parameter of ours, only a sign: others have torch's normalisation
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
    "gate": "encoder.transformer.0.feed_forward.w_3",  # no parameter of ours, only a sign
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
JOEY_FIELDS = {
    f"{side}.{ours}": rule
    for side in SIDES
    for ours, rule in {
        "num_heads": f"{side}_num_heads",
        "scale_embeddings": (f"{side}_embeddings_scale", False),
        "residual_scale": (f"{side}_alpha", 1.0),
        "norm_first": (f"{side}_layer_norm", None, {"pre": True, "post": False}),
    }.items()
} | {"activation": to.agreed("encoder_activation", "decoder_activation", "relu")}

FRAMEWORKS: dict[str, Family] = {
    "torch": Family(
        TORCH_NAMES,
        TORCH_FIELDS,
        signature="encoder.layers.0.linear1.weight",
        presence=BIASES | OUTPUT_BIAS | FINAL_NORMS | on_each_side("positions", "learned", "learned", "sinusoidal"),
    ),
    "annotated": Family(
        ANNOTATED_NAMES,
        constants=PRE_NORM | {"output_bias": True, "start_id": 0, "eos_id": 1, "pad_id": 2},
        signature="encoder.layers.0.self_attn.linears.0.weight",
        presence={"norm": ("deviation.weight", "deviation", "layer"), "norm_eps": ("deviation.weight", 1e-6, 1e-5)},
    ),
    "d2l": Family(
        D2L_NAMES,
        constants=POST_NORM | {"attention_bias": False, "output_bias": True, "max_length": 1000},
        signature="encoder.blks.block0.attention.W_q.weight",
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
        | on_each_side("embedding_norm", "embedding_norm", "after", "none")
        | on_each_side("positions", "positions", "learned", "sinusoidal"),
        rows=to.spread_after_padding,
        ignored=("*._float_tensor", "*.embed_positions.weights"),
        allowed={
            "adaptive_softmax_cutoff": (),
            "adaptive_input": (False,),
            "no_cross_attention": (False,),
            "cross_self_attention": (False,),
        },
        search={"beam_size": 5},
    ),
    "opennmt-py": Family(
        ONMT_NAMES,
        ONMT_FIELDS,
        PRE_NORM | {"output_bias": True},
        signature="encoder.transformer.0.self_attn.linear_keys.weight",
        presence=BIASES
        | {
            "attention_out_bias": ("encoder.layers.0.self_attention.out_proj.bias", True, False),
            "gated_mlp": ("gate.weight", True, False),
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
        search={"beam_size": 5},
    ),
    "joeynmt": Family(
        JOEY_NAMES,
        JOEY_FIELDS,
        {"norm_eps": 1e-6, "encoder.norm_first": True, "pad_id": 1, "start_id": 2, "eos_id": 3},
        signature="encoder.layers.0.src_src_att.k_layer.weight",
        # Without a setting the encoder's layers are pre-norm, and the decoder's where it ends with a norm.
        presence=FINAL_NORMS | {"decoder.norm_first": ("decoder.norm.weight", True, False)},
        # Its scores are divided by another power of another length: only the width of its beam is taken over.
        search={"beam_size": "testing_beam_size"},
    ),
}
