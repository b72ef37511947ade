"""Checkpoints of jadore801120/attention-is-all-you-need-pytorch, of its code since June 2020 and of 2018 and 2019.

Between December 2019 and June 2020 its normalisations were elsewhere, under the same names: such a file cannot be
told from a later one, and it does not convert correctly.
"""

from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS, option, special_id
from mlx_transformer.weights.families.spec import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    STACKS,
    Family,
    NameTable,
    attention_names,
    presence_per_stack,
    stack_names,
)

PROJECTIONS = ("w_qs", "w_ks", "w_vs", "fc")

# Until November 2019, feed-forward networks are convolutions of width 1, and positions begin with one for padding.
ENCODER_LAYER: NameTable = {
    **attention_names("self_attention", "slf_attn", *PROJECTIONS),
    "self_attention_residual.norm": "slf_attn.layer_norm",
    "feed_forward.up_proj": ("pos_ffn.w_1", transforms.squeeze_kernel),
    "feed_forward.down_proj": ("pos_ffn.w_2", transforms.squeeze_kernel),
    "feed_forward_residual.norm": "pos_ffn.layer_norm",
}

DECODER_LAYER: NameTable = {
    **ENCODER_LAYER,
    **attention_names("cross_attention", "enc_attn", *PROJECTIONS),
    "cross_attention_residual.norm": "enc_attn.layer_norm",
}

NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layer_stack.{i}", "decoder.layer_stack.{i}"),
    **{
        f"{stack}.positions.weight": [
            (f"{stack}.position_enc.pos_table", transforms.position_table),
            (f"{stack}.position_enc.weight", transforms.skip_rows(1)),
        ]
        for stack in STACKS
    },
    "encoder.embedding_norm": "encoder.layer_norm",
    "decoder.embedding_norm": "decoder.layer_norm",
    "source_embedding.weight": "encoder.src_word_emb.weight",
    "target_embedding.weight": ["decoder.trg_word_emb.weight", "decoder.tgt_word_emb.weight"],
    "output": ["trg_word_prj", "tgt_word_prj"],
}


def head_dims(settings: dict[str, Any]) -> Any:
    """Return the width of an attention head, which must be the same for values as for queries and keys."""
    keys, values = (option(name)(settings) for name in ("d_k", "d_v"))
    if None not in (keys, values) and keys != values:
        raise ValueError(
            f"d_v must be d_k, {keys}, not {values}: a model whose attention values have another width than its keys "
            "cannot be converted."
        )
    return keys


def scaling(tensors: dict[str, Any], scaled: str) -> dict[str, Any]:
    """Return the settings that scale "emb", "prj" or "none"; unless the output is tied, nothing is scaled."""
    scaled = scaled if tensors.get("tie_output") else "none"
    scale = tensors.get("dims", 1) ** -0.5 if scaled == "prj" else 1.0
    return {"scale_embeddings": scaled == "emb", "logit_scale": scale}


def default_scaling(setting: str) -> Any:
    """Return a function from the fields that tensors determine to the usual value of a setting that scales."""
    return lambda tensors: scaling(tensors, "prj")[setting]


def configured_scaling(setting: str) -> Any:
    """Return a function from the checkpoint's settings to a setting that scales; None if they do not determine it."""

    def read(settings: dict[str, Any]) -> Any:
        scaled = option("scale_emb_or_prj")(settings)
        return None if scaled is None else scaling(settings["tensors"], scaled)[setting]

    return read


def before_2020(early: Any, late: Any) -> Any:
    """Return a function from the fields that tensors determine to one of two values, the first until November 2019."""
    return lambda tensors: early if tensors.get("encoder.embedding_norm") == "none" else late


SCALING = ("scale_embeddings", "logit_scale")

JADORE = Family(
    NAMES,
    OWN_FIELDS
    | {
        **{name: configured_scaling(name) for name in SCALING},
        "head_dims": head_dims,
        "pad_id": special_id("src_pad", "trg_pad", "pad"),
    },
    presence=BIASES
    | OUTPUT_BIAS
    | FINAL_NORMS
    | presence_per_stack("embedding_norm", "embedding_norm", "after", "none"),
    supported={"scale_emb_or_prj": ("emb", "prj", "none")},
    defaults=OWN_DEFAULTS
    | {"norm_eps": before_2020(1e-5, 1e-6), "pad_id": before_2020(0, 1), "max_length": 200}
    | {name: default_scaling(name) for name in SCALING},
    defaults_from="jadore801120/attention-is-all-you-need-pytorch",
    source_specials=("start", "end"),
)
