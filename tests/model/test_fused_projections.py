"""Fused key and value projections compute the same as the two matrices in a file, and are saved as them."""

import gc
import io
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.layers import fused_linear, linear
from mlx_transformer.model.quantization import quantize_weights
from mlx_transformer.model.transformer import Transformer

WIDE = config(dims=64, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=64))
CROSS = "decoder.layers.0.cross_attention"


@pytest.fixture(params=SETTINGS, scope="module")
def model(request):
    return random_model(SETTINGS[request.param])


def same_bits(first, second):
    return first.keys() == second.keys() and all(mx.array_equal(array, second[name]) for name, array in first.items())


def test_fused_projection_equals_the_two_projections_in_the_file(model, tolerance):
    arrays = {name.removeprefix(f"{CROSS}."): array for name, array in split_projections(model.parameters()).items()}
    attention = model.decoder.layers[0].cross_attention
    x = mx.random.normal((2, 5, model.config.dims), key=mx.random.key(0))
    results = attention.key_values(x)
    num_heads = model.config.decoder.num_heads
    assert results.shape == (2, num_heads, 2, 5, attention.head_dims)
    for side, name in enumerate(("key_proj", "value_proj")):
        expected = x @ arrays[f"{name}.weight"].T + arrays.get(f"{name}.bias", 0)
        for head in range(num_heads):
            columns = slice(head * attention.head_dims, (head + 1) * attention.head_dims)
            assert mx.allclose(results[:, head, side], expected[..., columns], rtol=0, atol=tolerance(1e-5))


def test_keys_and_values_need_one_matmul_and_no_copy():
    graph = io.StringIO()
    attention = random_model(SETTINGS["unequal_stacks"]).decoder.layers[0].self_attention
    mx.export_to_dot(graph, attention.key_values(mx.ones((2, 1, 16))))
    assert graph.getvalue().count("Matmul") == 1
    assert not [name for name in ("Concatenate", "Copy", "Contiguous") if name in graph.getvalue()]


@pytest.mark.cpu
def test_memory_is_contiguous(model):
    memory = model.encode(padded(random_sources(model.config, (3, 7, 5)), model.config))
    mx.eval(memory)
    assert all(np.array(key_values, copy=False).flags.c_contiguous for key_values in memory.key_values)


def test_fuse_inverts_split_in_any_order(model):
    arrays = dict(tree_flatten(model.parameters()))
    files = split_projections(model.parameters())
    assert not any("key_value" in name for name in files)
    for name in ("key_proj", "value_proj"):
        assert {key.replace(name, "query_proj") for key in files if name in key} == {
            key for key in files if "query_proj" in key
        }
    assert same_bits(fuse_projections(files), arrays)
    assert same_bits(fuse_projections(dict(reversed(files.items()))), arrays)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_rows_equal_those_of_separate_matrices(tmp_path, bits):
    model = random_model(WIDE)
    model_folder.save(tmp_path / "model", model, quantize=bits)
    stored = mx.load(str(tmp_path / "model" / "model.safetensors"))
    for name, array in split_projections(model.parameters()).items():
        if name.endswith(("key_proj.weight", "value_proj.weight")):
            layer = name.removesuffix("weight")
            alone = zip(("weight", "scales", "biases"), mx.quantize(array, 64, bits), strict=True)
            assert all(mx.array_equal(stored[layer + leaf], part) for leaf, part in alone), name
    quantised = Transformer(WIDE)
    quantize_weights(quantised, QuantizationConfig(bits))
    model_folder.read_weights(quantised, tmp_path / "model" / "model.safetensors")
    quantize_weights(model, QuantizationConfig(bits))
    assert same_bits(dict(tree_flatten(quantised.parameters())), dict(tree_flatten(model.parameters())))


def test_mismatches_are_reported_by_their_names_in_the_file(tmp_path):
    model_folder.save(tmp_path / "model", random_model(SETTINGS["post_norm"]))
    path = tmp_path / "model" / "model.safetensors"
    weights = mx.load(str(path))
    del weights[f"{CROSS}.value_proj.weight"]
    weights[f"{CROSS}.key_proj.weight"] = mx.zeros((32, 16))
    weights[f"{CROSS}.key_value_proj.bias"] = mx.zeros(32)
    mx.save_safetensors(str(path), weights)
    with pytest.raises(ValueError) as caught:
        model_folder.load(tmp_path / "model")
    message = str(caught.value)
    assert f"1 missing ({CROSS}.value_proj.weight)" in message
    assert f"1 unexpected ({CROSS}.key_value_proj.bias)" in message
    assert f"1 of another shape ({CROSS}.key_proj.weight (32" in message  # a long path leaves no room for more


def test_each_half_is_initialised_as_a_separate_matrix():
    arrays = split_projections(Transformer(config(dims=64, head_dims=16)).parameters())
    limit = math.sqrt(6 / (64 + 32))
    for part in ("query_proj", "key_proj", "value_proj"):
        largest = mx.abs(arrays[f"{CROSS}.{part}.weight"]).max().item()
        assert 0.99 * limit < largest <= limit, part
    mx.random.seed(5)
    apart = [linear(8, 4, bias=True) for _ in range(2)]
    mx.random.seed(5)
    joined = fused_linear(8, 4, bias=True, count=2)
    for leaf in ("weight", "bias"):
        assert mx.array_equal(joined[leaf], mx.concatenate([layer[leaf] for layer in apart]))


@pytest.mark.cpu
def test_loading_needs_little_memory_beyond_the_model(tmp_path):
    small = stack(num_layers=24, mlp_dims=8)
    model_folder.save(tmp_path / "model", Transformer(config(dims=256, encoder=small, decoder=small)))
    gc.collect()  # models of earlier tests must not be freed while the memory is measured
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _ = model_folder.load(tmp_path / "model")
    size = sum(array.nbytes for array in split_projections(model.parameters()).values())
    assert size <= mx.get_peak_memory() - before < 1.2 * size
    assert mx.get_active_memory() - before < 1.01 * size
