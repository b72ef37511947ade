"""Converted checkpoints of hkproj/pytorch-transformer equal a forward pass in torch."""

import numpy as np
import pytest
from support.framework_reference import (
    DIMS,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    encode_source,
    random_state,
    rename_norms,
)

import mlx_transformer as mt
from mlx_transformer.weights import convert
from mlx_transformer.weights.inspection import inspect_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ASSUMED = {"num_heads", "norm_first", "norm_eps", "activation", "scale_embeddings", "pad_id", "start_id", "eos_id"}
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


def write_checkpoint(path, bias=False, one_value=None, heads=8, **extras):
    """Write a random model in the project's layout: pre-norm, norms by the standard deviation.

    Args:
        path: The file.
        bias: Attention has biases.
        one_value: The shape of one value, of the parameters of norms.
        heads: Number of heads.
        **extras: What else the file has.
    """
    state = random_state(HKPROJ, bias=bias)
    if one_value is not None:
        state = {name: value[0].reshape(one_value) if "norm" in name else value for name, value in state.items()}
    positions = {stack: 0.5 * torch.randn(30, DIMS) for stack in ("encoder", "decoder")}
    reference = Reference(
        rename_norms(state, "a_2", "b_2"),
        HKPROJ,
        heads={"encoder": heads, "decoder": heads},
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
    torch.save(saved | extras, path)
    return reference


def test_logits_need_no_settings(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt")
    _, report = inspect_checkpoint(tmp_path / "tmodel_03.pt")
    assert report.family == "hkproj"
    assert {assumption.setting for assumption in report.assumptions} == ASSUMED
    model = check_logits(reference, tmp_path / "tmodel_03.pt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    assert not model.config.attention_bias and model.config.mlp_bias


def test_searches(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt")
    check_searches(reference, check_logits(reference, tmp_path / "tmodel_03.pt", tolerance), tolerance)


def test_heads_of_a_config_are_used(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "tmodel_03.pt", heads=4, config={"h": 4, "seq_len": 350, "lang_src": "en"})
    check_logits(reference, tmp_path / "tmodel_03.pt", tolerance)


@pytest.mark.parametrize("bias, one_value", [(False, (1,)), (True, (1,)), (True, ())])
def test_early_versions(bias, one_value, tmp_path, tolerance):
    """Early versions have biases in attention, and norms with one value for all features."""
    reference = write_checkpoint(tmp_path / "tmodel_03.pt", bias, one_value)
    assert check_logits(reference, tmp_path / "tmodel_03.pt", tolerance).config.attention_bias == bias
    convert.convert(tmp_path / "tmodel_03.pt", tmp_path / "folder")
    weight = np.array(mt.load_model(tmp_path / "folder").encoder.norm.weight)
    assert weight.tolist() == [reference.state["encoder.norm.a_2"].item()] * DIMS


def test_start_and_end_tokens_are_around_a_source(tmp_path):
    write_checkpoint(tmp_path / "tmodel_03.pt")
    specials = ("[UNK]", "[PAD]", "[SOS]", "[EOS]")
    assert encode_source(tmp_path / "tmodel_03.pt", tmp_path, specials, specials) == [2, 9, 8, 3]
