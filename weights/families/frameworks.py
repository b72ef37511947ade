"""Checkpoint families of training frameworks, as tables."""

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.annotated_transformer import ANNOTATED_NAMES
from mlx_transformer.weights.families.d2l import D2L_NAMES
from mlx_transformer.weights.families.fairseq import FAIRSEQ_FIELDS, FAIRSEQ_NAMES
from mlx_transformer.weights.families.joeynmt import JOEY_FIELDS, JOEY_NAMES
from mlx_transformer.weights.families.opennmt import ONMT_FIELDS, ONMT_NAMES
from mlx_transformer.weights.families.spec import (
    BIASES,
    FINAL_NORMS,
    OUTPUT_BIAS,
    POST_NORM,
    PRE_NORM,
    Family,
    on_both_sides,
    on_each_side,
)
from mlx_transformer.weights.families.torch_nn import TORCH_FIELDS, TORCH_NAMES

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
        | on_both_sides("{side}.positions.weight", "{side}.embed_positions.weight", transforms.skip_rows(2))
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
        rows=transforms.spread_after_padding,
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
