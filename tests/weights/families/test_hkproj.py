"""Converted checkpoints of hkproj/pytorch-transformer equal a forward pass in torch."""

import numpy as np
import pytest
from support.framework_reference import (
    DIMS,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    random_state,
    rename_norms,
)

import mlx_transformer as mt
from mlx_transformer.weights import convert
from mlx_transformer.weights.inspection import inspect_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

HKPROJ = {
    **attention_names(
        self="{s}.layers.{i}.self_attention_block",
        cross="{s}.layers.{i}.cross_attention_block",
        names=("w_q", "w_k", "w_v", "w_o"),
    ),
    "self_norm": "{s}.layers.{i}.residual_connections.0.norm",
    "cross_norm": "{s}.layers.{i}.residual_connections.1.norm",
    "encoder_mlp_norm": "encoder.layers.{i}.residual_connections.1.norm",
    "decoder_mlp_norm": "decoder.layers.{i}.residual_connections.2.norm",
    "up": "{s}.layers.{i}.feed_forward_block.linear_1",
    "down": "{s}.layers.{i}.feed_forward_block.linear_2",
    "encoder_embedding": "src_embed.embedding",
    "decoder_embedding": "tgt_embed.embedding",
    "final_norm": "{s}.norm",
    "output": "projection_layer.proj",
}


def write_checkpoint(path, bias=False, one_value_norms=False):
    """Write a random model in the project's layout: 8 heads, pre-norm, norms by the standard deviation."""
    state = random_state(HKPROJ, bias=bias)
    if one_value_norms:
        state = {name: value[:1] if "norm" in name else value for name, value in state.items()}
    positions = {stack: 0.5 * torch.randn(30, DIMS) for stack in ("encoder", "decoder")}
    reference = Reference(
        rename_norms(state, "a_2", "b_2"),
        HKPROJ,
        heads={"encoder": 8, "decoder": 8},
        pre={"encoder": True, "decoder": True},
        norm="deviation",
        eps=1e-6,
        positions=positions,
        pad_id=1,
    )
    buffers = {"src_pos.pe": positions["encoder"][None], "tgt_pos.pe": positions["decoder"][None]}
    optimizer = {"state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    model = rename_norms(state, "alpha", "bias") | buffers
    saved = {"epoch": 3, "model_state_dict": model, "optimizer_state_dict": optimizer, "global_step": 40}
    torch.save(saved, path)
    return reference


def test_logits_need_no_settings(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt")
    assert inspect_checkpoint(tmp_path / "tmodel_03.pt")[1].family == "hkproj"
    model = check_logits(reference, tmp_path / "tmodel_03.pt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    assert not model.config.attention_bias and model.config.mlp_bias


def test_searches(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt")
    check_searches(reference, check_logits(reference, tmp_path / "tmodel_03.pt", tolerance), tolerance)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biases"])
def test_early_versions(bias, tmp_path, tolerance):
    """Early versions have biases in attention, and norms with one value for all features."""
    reference = write_checkpoint(tmp_path / "tmodel_03.pt", bias=bias, one_value_norms=True)
    model = check_logits(reference, tmp_path / "tmodel_03.pt", tolerance)
    assert model.config.attention_bias == bias


def test_norms_of_one_value_are_written_in_full(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt", one_value_norms=True)
    convert.convert(tmp_path / "tmodel_03.pt", tmp_path / "folder")
    model, _ = mt.load(tmp_path / "folder")
    weight = np.array(model.encoder.norm.weight)
    assert weight.tolist() == [reference.state["encoder.norm.a_2"].item()] * DIMS
