"""Converted checkpoints of gordicaleksa/pytorch-original-transformer equal a forward pass in torch."""

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

from mlx_transformer.weights.families.gordicaleksa import GORDICALEKSA
from mlx_transformer.weights.inspection import inspect_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ASSUMED = {"num_heads", "norm_first", "norm_eps", "activation", "scale_embeddings", "pad_id", "start_id", "eos_id"}
PARTS = ("qkv_nets.0", "qkv_nets.1", "qkv_nets.2", "out_projection_net")
LAYER = "{s}.{s}_layers.{i}"
GORDIC = {
    **attention_names(
        self="{s}.{s}_layers.{i}.trg_multi_headed_attention",
        cross="{s}.{s}_layers.{i}.src_multi_headed_attention",
        names=PARTS,
    ),
    **{
        f"encoder_self_{letter}": f"encoder.encoder_layers.{{i}}.multi_headed_attention.{part}"
        for letter, part in zip("qkvo", PARTS, strict=True)
    },
    "self_norm": f"{LAYER}.sublayers.0.norm",
    "cross_norm": f"{LAYER}.sublayers.1.norm",
    "encoder_mlp_norm": "encoder.encoder_layers.{i}.sublayers.1.norm",
    "decoder_mlp_norm": "decoder.decoder_layers.{i}.sublayers.2.norm",
    "up": f"{LAYER}.pointwise_net.linear1",
    "down": f"{LAYER}.pointwise_net.linear2",
    "encoder_embedding": "src_embedding.embeddings_table",
    "decoder_embedding": "trg_embedding.embeddings_table",
    "final_norm": "{s}.norm",
    "output": "decoder_generator.linear",
}


def write_checkpoint(path):
    """Write a random model in the project's layout: 8 heads, pre-norm, a table of positions for each side."""
    state = random_state(GORDIC)
    positions = {stack: 0.5 * torch.randn(30, DIMS) for stack in ("encoder", "decoder")}
    tables = {
        f"{side}_pos_embedding.positional_encodings_table": positions[stack]
        for side, stack in (("src", "encoder"), ("trg", "decoder"))
    }
    settings = {"dataset_name": "IWSLT", "language_direction": "E2G", "num_of_epochs": 20, "batch_size": 1500}
    torch.save(settings | {"state_dict": state | tables}, path)
    return Reference(
        state,
        GORDIC,
        heads={"encoder": 8, "decoder": 8},
        pre={"encoder": True, "decoder": True},
        positions=positions,
        pad_id=1,
    )


def test_logits_need_no_settings(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "transformer_000000.pth")
    _, report = inspect_checkpoint(tmp_path / "transformer_000000.pth")
    assert report.family == "gordicaleksa"
    assert {assumption.setting for assumption in report.assumptions} == ASSUMED
    model = check_logits(reference, tmp_path / "transformer_000000.pth", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)


def test_searches(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "transformer_000000.pth")
    check_searches(reference, check_logits(reference, tmp_path / "transformer_000000.pth", tolerance), tolerance)


def test_the_big_model_has_more_heads():
    heads = {dims: GORDICALEKSA.default_values({"dims": dims})["num_heads"] for dims in (512, 1024)}
    assert heads == {512: 8, 1024: 16}


def test_nothing_is_around_a_source(tmp_path):
    write_checkpoint(tmp_path / "transformer_000000.pth")
    assert encode_source(tmp_path / "transformer_000000.pth", tmp_path, ("<unk>", "<pad>")) == [9, 8]
