"""Converted checkpoints of the notebook of bentrevett/pytorch-seq2seq equal a forward pass in torch."""

import re

import pytest
from support.framework_reference import (
    DIMS,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    encode_source,
    random_state,
)

from mlx_transformer.weights.inspection import inspect_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ASSUMED = {"num_heads", "norm_first", "norm_eps", "activation", "scale_embeddings", "pad_id", "start_id", "eos_id"}
BENTREVETT = {
    **attention_names(
        self="{s}.layers.{i}.self_attention",
        cross="{s}.layers.{i}.encoder_attention",
        names=("fc_q", "fc_k", "fc_v", "fc_o"),
    ),
    "self_norm": "{s}.layers.{i}.self_attn_layer_norm",
    "cross_norm": "{s}.layers.{i}.enc_attn_layer_norm",
    "mlp_norm": "{s}.layers.{i}.ff_layer_norm",
    "up": "{s}.layers.{i}.positionwise_feedforward.fc_1",
    "down": "{s}.layers.{i}.positionwise_feedforward.fc_2",
    "embedding": "{s}.tok_embedding",
    "output": "decoder.fc_out",
}


def make_reference():
    """Return a random model of the notebook: 8 heads, post-norm, learned positions."""
    state = random_state(BENTREVETT)
    positions = {"encoder": 0.5 * torch.randn(30, DIMS), "decoder": 0.5 * torch.randn(40, DIMS)}
    state |= {f"{stack}.pos_embedding.weight": table for stack, table in positions.items()}
    options = {"heads": {"encoder": 8, "decoder": 8}, "pre": {"encoder": False, "decoder": False}, "pad_id": 1}
    return Reference(state, BENTREVETT, positions=positions, **options)


def test_logits_need_no_settings(tmp_path, tolerance):
    reference = make_reference()
    torch.save(reference.state, tmp_path / "tut6-model.pt")
    _, report = inspect_checkpoint(tmp_path / "tut6-model.pt")
    assert report.family == "bentrevett"
    assert {assumption.setting for assumption in report.assumptions} == ASSUMED
    model = check_logits(reference, tmp_path / "tut6-model.pt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    assert model.config.encoder.positions == model.config.decoder.positions == "learned"


def test_searches(tmp_path, tolerance):
    reference = make_reference()
    torch.save(reference.state, tmp_path / "tut6-model.pt")
    check_searches(reference, check_logits(reference, tmp_path / "tut6-model.pt", tolerance), tolerance)


def test_one_norm_for_all_sublayers(tmp_path, tolerance):
    reference = make_reference()
    reference.names = reference.names | dict.fromkeys(
        ("self_norm", "cross_norm", "mlp_norm"), "{s}.layers.{i}.layer_norm"
    )
    reference.state = {
        re.sub("ff_layer_norm", "layer_norm", name): value
        for name, value in reference.state.items()
        if "attn_layer_norm" not in name
    }
    torch.save(reference.state, tmp_path / "tut6-model.pt")
    check_logits(reference, tmp_path / "tut6-model.pt", tolerance)


def test_start_and_end_tokens_are_around_a_source(tmp_path):
    torch.save(make_reference().state, tmp_path / "tut6-model.pt")
    assert encode_source(tmp_path / "tut6-model.pt", tmp_path) == [2, 9, 8, 3]
