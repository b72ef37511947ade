"""Adapters that are written for PEFT give the same logits there, and load here again."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from support.peft_adapters import base_model, converted_base, load_in_peft, our_logits, peft_model, their_logits
from support.tiny_families import MODELS
from support.tiny_models import SETTINGS

import mlx_transformer as mt
from mlx_transformer.model.adapters import adapter_arrays, set_adapter_arrays

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]
METHODS = {
    "lora": {"targets": ("attention",)},
    "dora": {"targets": ("key_proj", "mlp"), "dora": True},
    "rslora": {"targets": ("decoder.*.value_proj", "up_proj"), "rslora": True, "dropout": 0.2},
    "parts in full": {"targets": ("query_proj",), "modules_to_save": ("embeddings", "norm")},
}


def add_random_adapter(model, **options):
    """Add an adapter to one of our models, all of whose values are random."""
    mt.add_adapter(model, mt.AdapterConfig(rank=3, alpha=7.0, **options))
    rng = np.random.default_rng(0)
    arrays = adapter_arrays(model)
    for name, array in arrays.items():
        values = mx.array(rng.standard_normal(array.shape).astype(np.float32))
        arrays[name] = array * (1 + 0.1 * values) if name.endswith(".m") else 0.1 * values
    set_adapter_arrays(model, arrays, "here")
    model.eval()


@pytest.mark.torch
@pytest.mark.parametrize("name", [*MODELS])
def test_logits_in_peft_are_ours(name, tmp_path, tolerance):
    pytest.importorskip("peft")
    base = converted_base(name, tmp_path / "base")
    for method, options in METHODS.items():
        before = our_logits(base, base_model(name))
        add_random_adapter(base, **options)
        mt.save_peft_adapter(tmp_path / method, base)
        theirs = load_in_peft(name, tmp_path / method)
        logits = our_logits(base, theirs)
        assert np.abs(logits - before).max() > 1e-3
        np.testing.assert_array_less(np.abs(their_logits(theirs) - logits), tolerance(1e-5) * np.abs(logits).max())
        mt.load_adapter(base, tmp_path / method)
        np.testing.assert_allclose(our_logits(base, theirs), logits, atol=tolerance(1e-5))
        mt.remove_adapter(base)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q": 2, "wo": 1}, "alpha_pattern": {"v": 20}},
        {"rank_pattern": {"q": 2, "wo": 1}, "use_rslora": True, "use_dora": True},
        {"modules_to_save": ["lm_head", "final_layer_norm"]},
    ],
    ids=str,
)
def test_adapters_of_peft_return_to_peft(options, tmp_path, tolerance):
    theirs = peft_model("t5-untied", **options)
    theirs.save_pretrained(tmp_path / "theirs")
    base = converted_base("t5-untied", tmp_path / "base")
    mt.load_adapter(base, tmp_path / "theirs")
    mt.save_peft_adapter(tmp_path / "again", base, base_model="owner/base")
    expected = their_logits(theirs)
    again = their_logits(load_in_peft("t5-untied", tmp_path / "again"))
    np.testing.assert_array_less(np.abs(again - expected), tolerance(1e-5) * np.abs(expected).max())
    assert (
        json.loads((tmp_path / "again" / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/base"
    )


def test_the_bundled_model_has_a_counterpart_in_transformers(tmp_path):
    model = mt.load_model()
    add_random_adapter(model, targets=("query_proj",))
    mt.save_peft_adapter(tmp_path / "peft", model)
    arrays = adapter_arrays(model)
    mt.load_adapter(model, tmp_path / "peft")
    loaded = adapter_arrays(model)
    assert arrays.keys() == loaded.keys() and all(mx.array_equal(arrays[name], loaded[name]) for name in arrays)


@pytest.mark.parametrize(
    "targets,ours,theirs",
    [
        (
            ("attention",),
            ["key_proj", "out_proj", "query_proj", "value_proj"],
            ["k_proj", "out_proj", "q_proj", "v_proj"],
        ),
        (("encoder.*.up_proj",), ["encoder.layers.0.feed_forward.up_proj"], ["model.encoder.layers.0.fc1"]),
    ],
)
def test_targets_are_ends_of_names_where_these_mean_the_same(targets, ours, theirs, tmp_path):
    model = mt.Transformer(SETTINGS["post_norm"])
    add_random_adapter(model, targets=targets)
    mt.save_peft_adapter(tmp_path / "peft", model)
    assert (
        json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"][: len(theirs)] == theirs
    )
    assert list(mt.load_adapter(model, tmp_path / "peft").targets[: len(ours)]) == ours


def test_files_of_others_are_not_replaced(tmp_path):
    model = mt.Transformer(SETTINGS["post_norm"])
    with pytest.raises(ValueError, match="has no adapter"):
        mt.save_peft_adapter(tmp_path / "peft", model)
    add_random_adapter(model)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "notes.txt").touch()
    for _ in range(2):
        with pytest.raises(FileExistsError, match="exists: choose another name"):
            mt.save_peft_adapter(tmp_path / "peft", model)
        assert [path.name for path in (tmp_path / "peft").iterdir()] == ["notes.txt"]
    mt.save_peft_adapter(tmp_path / "new", model)
    with pytest.raises(FileExistsError):
        mt.save_peft_adapter(tmp_path / "new", model)


def test_what_peft_cannot_have_is_refused(tmp_path):
    config = SETTINGS["post_norm"]
    stack = dataclasses.replace(config.encoder, positions="none")
    other = mt.Transformer(dataclasses.replace(config, encoder=stack, decoder=stack))
    add_random_adapter(other)
    with pytest.raises(ValueError, match="none with the norms and positions of this one: save it by save_adapter"):
        mt.save_peft_adapter(tmp_path / "peft", other)
    learned = dataclasses.replace(config.encoder, positions="learned")
    model = mt.Transformer(dataclasses.replace(config, encoder=learned, decoder=learned))
    add_random_adapter(model, modules_to_save=("positions",))
    with pytest.raises(ValueError, match="cannot have decoder.positions.weight, encoder.positions.weight, which"):
        mt.save_peft_adapter(tmp_path / "peft", model)
    assert not (tmp_path / "peft").exists()
