"""`info --tensors` describes any readable file."""

import mlx.core as mx
import pytest
from support.bart_files import BART_CONFIG, bart_tensors, write_checkpoint
from support.own_models import own_tensors, write_tensors, write_torch

from mlx_transformer.weights.inspection import inspect_tensors


def test_tensors_of_like_layers_are_one_entry(tmp_path):
    tensors = own_tensors()
    facts = inspect_tensors(write_tensors(tmp_path / "mine.safetensors", tensors))
    groups = {group["name"]: group for group in facts["tensors"]}
    linear = groups["transformer.encoder.layers.{0-1}.linear1.weight"]
    assert linear == {
        "name": "transformer.encoder.layers.{0-1}.linear1.weight",
        "tensors": 2,
        "shape": [24, 16],
        "dtype": "float32",
        "bytes": 2 * 24 * 16 * 4,
    }
    assert sum(group["tensors"] for group in groups.values()) == len(tensors)
    assert sum(group["bytes"] for group in groups.values()) == sum(array.nbytes for array in tensors.values())
    # Numbers that do not count layers stand apart.
    assert {"transformer.encoder.layers.{0-1}.norm1.bias", "transformer.encoder.layers.{0-1}.norm2.bias"} < set(groups)


def test_families_are_listed_with_what_does_not_fit(tmp_path):
    tensors = own_tensors() | {"transformer.odd.weight": mx.zeros((3, 3)), "criterion.weight": mx.zeros(3)}
    best, *others = inspect_tensors(write_tensors(tmp_path / "mine.safetensors", tensors))["families"]
    assert best == {
        "family": "torch",
        "prefixes": ["transformer."],
        "fitting": len(tensors) - 2,
        "not_fitting": ["transformer.odd.weight"],
        "left_out": ["criterion.weight"],
    }
    assert all(fit["fitting"] <= best["fitting"] for fit in others)


def test_settings_beside_the_weights_are_listed(tmp_path):
    path = write_torch(tmp_path / "mine.pt", own_tensors(), hparams={"model": {"nhead": 4}, "lr": 0.1}, step=7)
    assert inspect_tensors(path)["settings"] == {"model_nhead": 4, "lr": 0.1, "step": 7}
    folder = write_checkpoint(tmp_path / "bart", bart_tensors())
    assert inspect_tensors(folder)["settings"] == BART_CONFIG
    assert inspect_tensors(folder)["families"][0]["fitting"] == len(bart_tensors())


@pytest.mark.parametrize("tensors", [{"a": mx.zeros(3)}, {"a.0.b": mx.zeros(()), "a.7.b": mx.zeros(())}], ids=str)
def test_a_file_of_anything_is_described(tmp_path, tensors):
    facts = inspect_tensors(write_tensors(tmp_path / "any.safetensors", tensors))
    assert facts["families"] == [] and sum(group["tensors"] for group in facts["tensors"]) == len(tensors)
