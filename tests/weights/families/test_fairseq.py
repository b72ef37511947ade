"""Converted checkpoints of fairseq equal a forward pass in torch."""

import argparse

import pytest
from support.framework_reference import (
    DIMS,
    TARGET_VOCAB,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    fairseq_sinusoids,
    random_state,
    without,
)

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.weights import convert
from mlx_transformer.weights.conversion_plan import fields_from_config
from mlx_transformer.weights.families import FAMILIES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


FAIRSEQ = {
    **attention_names(
        self="{s}.layers.{i}.self_attn",
        cross="{s}.layers.{i}.encoder_attn",
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    "self_norm": "{s}.layers.{i}.self_attn_layer_norm",
    "cross_norm": "{s}.layers.{i}.encoder_attn_layer_norm",
    "mlp_norm": "{s}.layers.{i}.final_layer_norm",
    "up": "{s}.layers.{i}.fc1",
    "down": "{s}.layers.{i}.fc2",
    "embedding": "{s}.embed_tokens",
    "embedding_norm": "{s}.layernorm_embedding",
    "final_norm": "{s}.layer_norm",
    "output": "decoder.output_projection",
}


def with_tied_embeddings(state):
    """Tie both embeddings and the output layer, as fairseq saves them: three names of one storage."""
    table = torch.randn(TARGET_VOCAB, DIMS) * 0.6
    return state | dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"), table
    )


def with_old_names(state):
    """Rename tensors as in old versions: packed projections, numbered norms and a bare output embedding."""
    stored = {}
    counts = {"self_attn_layer_norm": 0, "encoder_attn_layer_norm": 1, "final_layer_norm": None}
    for name, value in state.items():
        stack, *_ = name.split(".")
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            stored[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        elif norm := next((part for part in counts if f".{part}." in name), None):
            number = counts[norm] if counts[norm] is not None else {"encoder": 1, "decoder": 2}[stack]
            stored[name.replace(norm, f"layer_norms.{number}")] = value
        elif name == "decoder.output_projection.weight":
            stored["decoder.embed_out"] = value
        else:
            stored[name] = value
    return stored


@pytest.mark.parametrize("kind", ["legacy args", "cfg", "learned", "old names"])
@pytest.mark.slow
def test_fairseq(kind, tmp_path, tolerance):
    pre = kind in ("cfg", "learned")
    names = FAIRSEQ if kind == "learned" else without(FAIRSEQ, "embedding_norm")
    names = names if pre else without(names, "final_norm")
    state = random_state(names, output_bias=False)
    options = {
        "arch": "transformer",
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_normalize_before": pre,
        "decoder_normalize_before": pre,
        "activation_fn": "gelu_accurate" if kind == "cfg" else "relu",
        "no_scale_embedding": kind == "learned",
        "max_source_positions": 30,
        "max_target_positions": 40,
    }
    positions = {"encoder": fairseq_sinusoids(30, 2), "decoder": fairseq_sinusoids(40, 2)}
    extra = {"encoder.version": torch.tensor([3.0]), "encoder.embed_positions._float_tensor": torch.zeros(1)}
    extra |= {"decoder.embed_positions.weights": torch.zeros(7, DIMS)}
    if kind == "learned":
        positions = {"encoder": torch.randn(30, DIMS), "decoder": torch.randn(40, DIMS)}
        extra = {f"{s}.embed_positions.weight": torch.cat([torch.randn(2, DIMS), t]) for s, t in positions.items()}
    if kind == "legacy args":
        state = with_tied_embeddings(state)
    stored = dict(state)
    if kind == "old names":
        stored = with_old_names(stored)
    reference = Reference(
        state,
        names,
        heads={"encoder": 2, "decoder": 4},
        pre={"encoder": pre, "decoder": pre},
        activation=torch.nn.GELU("tanh") if kind == "cfg" else torch.relu,
        scale=kind != "learned",
        positions=positions,
        pad_id=1,
    )
    saved = {"model": stored | extra, "args": argparse.Namespace(**options), "extra_state": {"epoch": 3}}
    if kind == "cfg":
        saved |= {"args": None, "cfg": {"model": options, "task": {"_name": "translation"}}}
    path = tmp_path / "checkpoint_best.pt"
    torch.save(saved, path)
    model = check_logits(reference, path, tolerance)
    config = model.config
    assert config.share_embeddings == config.tie_output == (kind == "legacy args")
    expected = "learned" if kind == "learned" else "sinusoidal"
    assert config.encoder.positions == config.decoder.positions == expected
    assert (config.pad_id, config.start_id, config.eos_id) == (1, 2, 2)
    assert model.search_defaults == SearchConfig(beam_size=5)
    check_searches(reference, model, tolerance)


@pytest.mark.parametrize(
    "options, heads, pre",
    [
        ({"arch": "transformer"}, 8, False),
        ({"arch": "transformer_iwslt_de_en"}, 4, False),
        ({"_name": "transformer_vaswani_wmt_en_de_big"}, 16, False),
        ({"arch": "transformer_wmt_en_de_big_t2t"}, 16, True),
        ({"arch": "transformer_wmt_en_de_big_t2t", "encoder_normalize_before": False}, 16, False),
        ({"arch": "transformer", "encoder_attention_heads": 2, "encoder_normalize_before": True}, 2, True),
    ],
    ids=str,
)
def test_fairseq_architecture_defaults(options, heads, pre):
    fields = fields_from_config(FAMILIES["fairseq"], options)
    assert (fields["encoder.num_heads"], fields["encoder.norm_first"]) == (heads, pre)
    assert fields["decoder.max_length"] == fields["encoder.max_length"] == 1024


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_fairseq_without_options_or_positions(positions, tmp_path, tolerance):
    names = without(FAIRSEQ, "embedding_norm", "final_norm")
    state = random_state(names, output_bias=False)
    tables = {"encoder": torch.randn(30, DIMS), "decoder": torch.randn(40, DIMS)} if positions == "learned" else None
    reference = Reference(
        state,
        names,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": False, "decoder": False},
        positions=tables,
        pad_id=1,
    )
    if tables:
        state |= {f"{s}.embed_positions.weight": torch.cat([torch.zeros(2, DIMS), t]) for s, t in tables.items()}
        torch.save(state, tmp_path / "model.pt")
        check_logits(reference, tmp_path / "model.pt", tolerance, settings={"num_heads": 4})
        with pytest.raises(ValueError, match="does not specify num_heads"):
            convert.load(tmp_path / "model.pt")
    else:
        options = {"arch": "transformer_iwslt_de_en", "no_token_positional_embeddings": True}
        torch.save({"model": state, "args": argparse.Namespace(**options)}, tmp_path / "model.pt")
        assert check_logits(reference, tmp_path / "model.pt", tolerance).config.encoder.positions == "none"


# Option -> its supported values, and last an unsupported one.
OPTIONS = {
    "adaptive_softmax_cutoff": (None, "10,20"),
    "adaptive_input": (False, True),
    "no_cross_attention": (False, True),
    "cross_self_attention": (False, True),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_unsupported_options_of_fairseq(key):
    family, (*supported, unsupported) = FAMILIES["fairseq"], OPTIONS[key]
    for value in supported:
        fields_from_config(family, {"heads": 4, key: value})
    with pytest.raises(ValueError, match=f"A checkpoint with {key} {unsupported!r} cannot be converted"):
        fields_from_config(family, {key: unsupported})
