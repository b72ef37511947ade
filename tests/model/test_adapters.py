"""Adapters: a new one changes nothing, training changes only it, and merged weights compute the same."""

import math
import re
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, random_targets, stack
from support.training_cases import bitwise_equal

import mlx_transformer as mt
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model.adapters import (
    LoRALinear,
    LowRankUpdate,
    adapter_arrays,
    add_adapter,
    fuse_adapter,
    remove_adapter,
    set_adapter_arrays,
)
from mlx_transformer.model.dense_weights import QUANTIZED, dense_weight, use_dense_products
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.precision import prepare_for_inference
from mlx_transformer.model.quantization import quantization_of, quantize_weights
from mlx_transformer.training.losses import batch_loss

WIDE = config(dims=32, encoder=stack(mlp_dims=32), decoder=stack(mlp_dims=64, num_layers=2))  # can be quantised
CONFIGS = {
    "lora": AdapterConfig(rank=3, alpha=6),
    "rslora": AdapterConfig(rank=4, alpha=6, rslora=True, targets=("query_proj", "value_proj")),
    "dora": AdapterConfig(rank=2, alpha=6, dora=True),
    "dora of keys": AdapterConfig(rank=2, alpha=6, dora=True, targets=("key_proj",), layers=1),
    "embeddings": AdapterConfig(rank=2, alpha=6, targets=("mlp",), modules_to_save=("embeddings",)),
    "keys": AdapterConfig(rank=2, alpha=6, targets=("value_proj",), modules_to_save=("self_attention.key_proj",)),
    "output layer": AdapterConfig(rank=2, alpha=6, targets=("mlp",), modules_to_save=("output",)),
    "target embeddings": AdapterConfig(rank=2, alpha=6, targets=("mlp",), modules_to_save=("target_embedding",)),
}
kinds = pytest.mark.parametrize("adapter", CONFIGS.values(), ids=CONFIGS)


def batch(config):
    source = padded(random_sources(config, (7, 4, 5)), config)
    return source, random_targets(config, 3, 6)


def logits(model):
    return np.array(model(*batch(model.config)).astype(mx.float32))


def randomize(model, seed=0):
    """Give the adapter of a model random values, as after training."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: mx.array((np.array(array) + 0.2 * rng.standard_normal(array.shape)).astype(np.float32))
        for name, array in adapter_arrays(model).items()
    }
    set_adapter_arrays(model, arrays, "test")
    model.eval()


def adapted_model(adapter, model_config=WIDE, bits=None, seed=0):
    model = random_model(model_config, seed=seed)
    if bits is not None:
        quantize_weights(model, QuantizationConfig(bits, 32))
    add_adapter(model, adapter)
    randomize(model)
    return model


@kinds
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("settings", ["pre_norm", "unequal_stacks", "ssru", "average", "queries_only"])
def test_a_new_adapter_changes_no_bit(adapter, bits, settings):
    model = random_model(WIDE if bits else SETTINGS[settings])
    if bits:
        quantize_weights(model, QuantizationConfig(bits, 32))
    before = logits(model)
    add_adapter(model, adapter)
    model.eval()
    # Dequantised weights round differently, and on some CPUs keys that are not computed in one product with values.
    if adapter.modules_to_save and (bits or adapter == CONFIGS["keys"]):
        assert np.abs(before - logits(model)).max() < 1e-5
    else:
        assert bitwise_equal(before, logits(model))
    randomize(model)
    assert np.abs(before - logits(model)).max() > 0.01


@kinds
def test_removing_an_adapter_restores_the_base(adapter):
    model = random_model(WIDE)
    before, arrays = logits(model), split_projections(model.parameters())
    add_adapter(model, adapter)
    randomize(model)
    remove_adapter(model)
    assert bitwise_equal(before, logits(model))
    assert bitwise_equal(arrays, split_projections(model.parameters())) and model.adapter is None


@kinds
def test_fused_weights_compute_what_the_adapter_does(adapter):
    model = adapted_model(adapter)
    expected = logits(model)
    fuse_adapter(model)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert np.abs(expected - logits(model)).max() < 1e-4


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.03), (4, 0.6)])
@kinds
def test_fusing_into_a_quantised_base_quantises_again(adapter, bits, tolerance):
    model = adapted_model(adapter, bits=bits)
    expected = logits(model)
    fuse_adapter(model)
    assert quantization_of(model) == QuantizationConfig(bits, 32)
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in model.leaf_modules().values())
    difference = np.abs(expected - logits(model)).mean() / expected.std()
    assert 0 < difference < tolerance, difference


@kinds
@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapter_computes_the_same_prepared_for_inference(adapter, bits):
    model = adapted_model(adapter, bits=bits)
    expected = logits(model)
    prepare_for_inference(model, "float32")
    assert quantization_of(model) is None or mx.default_device() == mx.gpu
    assert np.abs(expected - logits(model)).max() < 1e-4


def test_an_update_is_that_of_the_papers():
    """Both factors, the scale, and the norms of DoRA, by hand."""
    for adapter in (CONFIGS["lora"], CONFIGS["rslora"], CONFIGS["dora"]):
        model = adapted_model(adapter)
        layer = model.decoder.layers[1].cross_attention.query_proj
        arrays = {name: np.array(array) for name, array in adapter_arrays(model).items()}
        name = "decoder.layers.1.cross_attention.query_proj"
        scale = adapter.alpha / (math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)
        weight = np.array(layer.linear.weight) + scale * (arrays[f"{name}.lora_a"] @ arrays[f"{name}.lora_b"]).T
        if adapter.dora:
            weight *= (arrays[f"{name}.m"] / np.linalg.norm(weight, axis=1))[:, None]
        x = np.random.default_rng(1).standard_normal((2, 5, 32)).astype(np.float32)
        expected = x @ weight.T + np.array(layer.linear.bias)
        assert np.abs(expected - np.array(layer(mx.array(x)))).max() < 1e-5


def test_names_in_files_have_keys_and_values():
    model = adapted_model(AdapterConfig(rank=3, alpha=3, targets=("decoder.*.value_proj", "query_proj"), layers=1))
    names = adapter_arrays(model)
    sides = [("encoder", 0, "self"), ("decoder", 1, "self"), ("decoder", 1, "cross")]
    projections = [f"{side}.layers.{i}.{kind}_attention.query_proj" for side, i, kind in sides]
    projections += [f"decoder.layers.1.{kind}_attention.value_proj" for kind in ("self", "cross")]
    assert set(names) == {f"{name}.lora_{factor}" for name in projections for factor in "ab"}
    assert names["decoder.layers.1.self_attention.value_proj.lora_a"].shape == (32, 3)
    assert names["decoder.layers.1.self_attention.value_proj.lora_b"].shape == (3, 32)


def test_ranks_may_differ():
    model = adapted_model(CONFIGS["lora"])
    arrays = adapter_arrays(model)
    name = "encoder.layers.0.self_attention.value_proj"
    wider = {f"{name}.lora_a": mx.random.normal((32, 5)), f"{name}.lora_b": mx.random.normal((5, 32))}
    set_adapter_arrays(model, arrays | wider, "test")
    expected = logits(model)
    fuse_adapter(model)
    assert np.abs(expected - logits(model)).max() < 1e-4


@kinds
@pytest.mark.parametrize("bits", [None, 4])
def test_training_changes_only_the_adapter(adapter, bits):
    model = random_model(WIDE)
    if bits:
        quantize_weights(model, QuantizationConfig(bits, 32))
    model.freeze()
    add_adapter(model, adapter)
    model.train()
    before, trained = dict(tree_flatten(model.parameters())), adapter_arrays(model)
    assert model.num_parameters == sum(array.size for array in trained.values())
    source, target = batch(model.config)
    optimizer = optim.SGD(0.5)
    for _ in range(2):  # the first step changes lora_b only, because its zeros stop the gradient of lora_a
        _, gradients = nn.value_and_grad(model, lambda model: batch_loss(model, source, target, 0.1)[0])(model)
        optimizer.update(model, gradients)
    after = dict(tree_flatten(model.parameters()))
    changed = {name for name, array in before.items() if not mx.array_equal(array, after[name])}
    new = adapter_arrays(model)
    assert all(not mx.array_equal(array, new[name]) for name, array in trained.items())
    assert len(changed) == len(trained)


def test_the_norms_of_dora_are_constants_in_the_gradient():
    weight, x = mx.array(np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)), mx.ones((1, 4))
    update = LowRankUpdate(weight, AdapterConfig(rank=2, alpha=4.0, dora=True))
    update.lora_b = mx.ones((2, 5))
    norms = mx.linalg.norm(weight + 2 * (update.lora_a @ update.lora_b).T, axis=1)

    def output(lora_b):
        update.lora_b = lora_b
        return update(x, x @ weight.T, weight, mx.zeros(5)).sum()

    expected = (2 * x @ update.lora_a).T * (update.m / norms)
    assert mx.allclose(mx.grad(output)(mx.ones((2, 5))), expected, rtol=1e-4)


def test_dropout_is_for_training_only():
    model = adapted_model(replace(CONFIGS["lora"], dropout=0.5), replace(WIDE, dropout=0))
    expected = logits(model)
    assert bitwise_equal(expected, logits(model))
    model.train()
    assert np.abs(expected - logits(model)).max() > 0.01


def test_compiled_functions_see_other_adapters():
    """Adapters of the same shapes, but with another scale, and the base between them."""
    model = random_model(WIDE)
    source, target = batch(model.config)
    call = model.compiled(type(model).__call__)
    base = np.array(call(source, target))
    results = []
    for scale in (1, 5):
        add_adapter(model, replace(CONFIGS["lora"], alpha=scale))
        randomize(model)
        assert np.abs(np.array(call(source, target)) - logits(model)).max() < 1e-5
        results.append(np.array(call(source, target)))
        remove_adapter(model)
        assert np.abs(np.array(call(source, target)) - base).max() < 1e-5
    assert np.abs(results[0] - results[1]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q_proj",)}, "'q_proj' matches none. Similar ones are .*query_proj"),
        ({"targets": ("attention", "encoder.layers.7.*")}, r"'encoder.layers.7.\*' matches none"),
        ({"rank": 33}, "rank must be at most the width of each layer, 32 of .*, not 33."),
        ({"layers": 3}, "layers must be at most 2, as the model has, not 3."),
        ({"modules_to_save": ("embedings",)}, "'embedings' matches none. Similar ones are embeddings"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(changes, message):
    model = random_model(WIDE)
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        add_adapter(model, replace(CONFIGS["lora"], **changes))
    assert model.adapter is None and bitwise_equal(before, logits(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be more than 0"),
        ({"alpha": math.nan}, "alpha must be a finite number"),
        ({"alpha": 0.0}, "alpha must be more than 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"layers": 0}, "layers must be more than 0"),
        ({"targets": ("*",) * 10_001}, "targets must be at most 10000 names, not 10001"),
        ({"targets": ()}, "targets must name a layer, unless other parts"),
    ],
)
def test_configurations_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIGS["lora"], **changes)


def test_arrays_that_do_not_fit_are_refused():
    model = adapted_model(CONFIGS["lora"])
    arrays = adapter_arrays(model)
    name = "decoder.layers.0.feed_forward.up_proj.lora_a"
    without = {other: array for other, array in arrays.items() if other != name}
    cases = {
        f"1 missing ({name})": without,
        "1 unexpected (other.lora_a)": arrays | {"other.lora_a": arrays[name]},
        f"{name} must have the shape (32, 3)": arrays | {name: arrays[name][1:]},
        f"{name} must have the shape (32, 0)": arrays | {name: mx.array(1.0)},
        f"{name} must be finite": arrays | {name: arrays[name] * math.inf},
        "not (32, 3) of int32": arrays | {name: arrays[name].astype(mx.int32)},
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            set_adapter_arrays(model, wrong, "a file")


def test_a_model_has_one_adapter_at_a_time():
    model = random_model(WIDE)
    with pytest.raises(ValueError, match="The model has no adapter"):
        remove_adapter(model)
    with pytest.raises(ValueError, match="The model has no adapter"):
        adapter_arrays(model)
    add_adapter(model, CONFIGS["lora"])
    with pytest.raises(ValueError, match="one adapter at a time"):
        add_adapter(model, CONFIGS["lora"])


def test_a_model_with_an_adapter_is_not_saved_as_a_model(tmp_path):
    with pytest.raises(ValueError, match="call fuse_adapter or remove_adapter first"):
        mt.save(tmp_path / "model", adapted_model(CONFIGS["lora"]))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("bits", [8, 4])
@kinds
def test_dense_products_give_the_same_results_and_gradients(adapter, bits):
    def loss_and_gradients(use_dense):
        model = adapted_base(adapter, bits, use_dense)
        source, target = batch(model.config)
        return nn.value_and_grad(model, lambda model: batch_loss(model, source, target, 0.1)[0])(model)

    (loss, gradients), (dense_loss, dense_gradients) = map(loss_and_gradients, (False, True))
    assert abs(loss.item() - dense_loss.item()) < 1e-4
    gradients, dense_gradients = dict(tree_flatten(gradients)), dict(tree_flatten(dense_gradients))
    assert gradients.keys() == dense_gradients.keys()
    for name, gradient in gradients.items():
        assert mx.allclose(gradient, dense_gradients[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dequantised_weights_are_not_kept_for_the_backward_pass(name):
    model = random_model(config(dims=256, encoder=stack(mlp_dims=1024, num_layers=8), decoder=stack(mlp_dims=64)))
    quantize_weights(model, QuantizationConfig(4, 32))
    use_dense_products(model)
    model.freeze()
    add_adapter(model, CONFIGS[name])
    model.recompute = True
    model.train()

    def loss(trained, source, target):
        model.update(trained)
        return batch_loss(model, source, target, 0.1)[0]

    trained = model.trainable_parameters()
    mx.eval(model.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.compile(mx.grad(loss))(trained, *batch(model.config)))
    dequantised = sum(4 * dense_weight(layer).size for layer in model.encoder.modules() if isinstance(layer, QUANTIZED))
    assert mx.get_peak_memory() - before < dequantised / 2


def adapted_base(adapter, bits, use_dense):
    model = random_model(WIDE)
    quantize_weights(model, QuantizationConfig(bits, 32))
    if use_dense:
        use_dense_products(model)
        assert quantization_of(model) == QuantizationConfig(bits, 32)
    model.freeze()
    mx.random.seed(3)
    add_adapter(model, adapter)
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ("ssru", ["ssru.input_proj", "ssru.forget_proj", "ssru.out_proj"]),
        ("average", [f"average_attention.{name}" for name in ("network.up_proj", "input_gate", "mean_gate")]),
    ],
)
def test_attention_targets_include_what_replaces_self_attention(settings, targets):
    model = random_model(SETTINGS[settings])
    add_adapter(model, AdapterConfig(rank=2, alpha=4, targets=("attention",)))
    names = {name.rpartition(".")[0] for name in adapter_arrays(model)}
    assert {f"decoder.layers.{i}.{target}" for i in (0, 1) for target in targets} <= names
    assert not any("feed_forward" in name for name in names)


def test_mlp_targets_include_the_layers_of_deep_feed_forward_networks():
    adapter = AdapterConfig(rank=2, alpha=4, targets=("mlp",), dora=True)
    model = adapted_model(adapter, SETTINGS["queries_only"])
    layers = {"up_proj", "hidden_projs.0", "hidden_projs.1", "down_proj"}
    names = {name.rpartition(".")[0] for name in adapter_arrays(model)}
    assert {f"decoder.layers.1.feed_forward.{layer}" for layer in layers} <= names
    expected = logits(model)
    fuse_adapter(model)
    assert np.abs(expected - logits(model)).max() < 1e-4
