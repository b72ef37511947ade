"""Converted checkpoints of OpenNMT-py equal a forward pass in torch."""

import argparse

import pytest
from support.framework_reference import (
    LAYERS,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    interleaved_sinusoids,
    random_state,
    with_old_norms,
)

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.weights import convert
from mlx_transformer.weights.conversion_plan import fields_from_config
from mlx_transformer.weights.families import FAMILIES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


ONMT_ATTENTION = ("linear_query", "linear_keys", "linear_values", "final_linear")


ONMT = {
    f"{stack}_{part}": name.replace("LAYER", f"{stack}.{layers}.{{i}}")
    for stack, layers, norms in (
        ("encoder", "transformer", {"self_norm": "layer_norm"}),
        ("decoder", "transformer_layers", {"self_norm": "layer_norm_1", "cross_norm": "layer_norm_2"}),
    )
    for part, name in {
        **attention_names(self="LAYER.self_attn", cross="LAYER.context_attn", names=ONMT_ATTENTION),
        **{norm: f"LAYER.{name}" for norm, name in norms.items()},
        "up": "LAYER.feed_forward.w_1",
        "gated": "LAYER.feed_forward.w_3",
        "down": "LAYER.feed_forward.w_2",
        "mlp_norm": "LAYER.feed_forward.layer_norm",
        "embedding": f"{stack}.embeddings.make_embedding.emb_luts.0",
        "final_norm": f"{stack}.layer_norm",
    }.items()
} | {"output": "generator"}


@pytest.mark.parametrize("kind", ["standard", "rms, gated, half biases", "no positions", "no biases", "old norms"])
@pytest.mark.slow
def test_opennmt_py(kind, tmp_path, tolerance):
    gated = kind.startswith("rms")
    bias = not gated and kind != "no biases"
    state = random_state(ONMT, bias=bias, out_bias=gated or None, mlp_bias=bias, norm_bias=not gated, gated=gated)
    table = None if kind == "no positions" else interleaved_sinusoids(60)
    reference = Reference(
        state,
        ONMT,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": True, "decoder": True},
        norm="rms" if gated else "layer",
        eps=1e-6,
        activation=torch.nn.functional.gelu if gated else torch.relu,
        scale=table is not None,
        positions=None if table is None else {"encoder": table, "decoder": table},
        pad_id=1,
    )
    model = {name: value for name, value in state.items() if not name.startswith("generator")}
    if table is not None:
        model |= {f"{s}.embeddings.make_embedding.pe.pe": table[:, None] for s in LAYERS}
    options = {
        "heads": 4,
        "layer_norm": "rms" if gated else "standard",
        "pos_ffn_activation_fn": "gated-gelu" if gated else "relu",
        "position_encoding": table is not None,
        "max_relative_positions": 0,
        "self_attn_type": "scaled-dot",
    }
    numbered = "0." if gated else ""
    if kind == "old norms":
        model = with_old_norms(model)
    if kind == "no positions":  # and the defaults of all other options
        options = {"heads": 4}
    generator = {f"{numbered}{leaf}": state[f"generator.{leaf}"] for leaf in ("weight", "bias")}
    vocab = {"src": ["<unk>", "<blank>", "a"], "tgt": ["<blank>", "<unk>", "<s>", "</s>"]} if gated else None
    saved = {
        "model": model,
        "generator": generator,
        "opt": argparse.Namespace(**options),
        "vocab": vocab,
        "optim": {"step": 3},
    }
    reference.pad_id = 0 if gated else 1
    path = tmp_path / "model_step_10.pt"
    torch.save(saved, path)
    model = check_logits(reference, path, tolerance)
    assert (model.config.gated_mlp, model.config.pad_id) == (gated, 0 if gated else 1)
    assert model.search_defaults == SearchConfig(beam_size=5)
    check_searches(reference, model, tolerance)
    saved["opt"].max_relative_positions = -1
    torch.save(saved, path)
    with pytest.raises(ValueError, match="max_relative_positions -1 cannot be converted"):
        convert.load(path)


# Option -> its supported values, and last an unsupported one.
OPTIONS = {
    "max_relative_positions": (0, 20),
    "self_attn_type": ("scaled-dot", "scaled-dot-flash", "average"),
    "parallel_residual": (False, True),
    "multiquery": (False, True),
    "copy_attn": (False, True),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_unsupported_options_of_opennmt(key):
    family, (*supported, unsupported) = FAMILIES["opennmt-py"], OPTIONS[key]
    for value in supported:
        fields_from_config(family, {"heads": 4, key: value})
    with pytest.raises(ValueError, match=f"A checkpoint with {key} {unsupported!r} cannot be converted"):
        fields_from_config(family, {key: unsupported})
