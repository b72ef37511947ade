"""Tests of the speed limits set by memory: bytes of a decode step."""

from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from benchmarks import roofline
from benchmarks.roofline import Format, Workload
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model.quantization import quantize_weights

WIDE = config(dims=64, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=128, num_layers=2), output_bias=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_step_bytes_of_weights_equal_the_sizes_of_the_arrays(name):
    model = random_model(SETTINGS[name])
    sizes = roofline.step_bytes(model.config, roofline.FORMATS["float32"], Workload())
    assert roofline.loaded_bytes(model) == {part: sizes[part] for part in ("layers", "output")}


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_step_bytes_of_quantised_weights_equal_the_sizes_of_the_arrays(bits, gated):
    model = random_model(replace(WIDE, gated_mlp=gated))
    model.set_dtype(mx.float16)
    if bits:
        quantize_weights(model, QuantizationConfig(bits))
    sizes = roofline.step_bytes(model.config, Format(2, bits), Workload())
    assert roofline.loaded_bytes(model) == {part: sizes[part] for part in ("layers", "output")}


@pytest.mark.parametrize("name", ["post_norm", "unequal_stacks", "ssru", "average"])
def test_step_bytes_of_keys_and_values_equal_the_sizes_of_the_arrays(name):
    model, workload = random_model(SETTINGS[name]), Workload(batch=3, beams=2, source_length=7, length=16)
    sizes = roofline.step_bytes(model.config, roofline.FORMATS["float32"], workload)
    memory = model.encode(padded(random_sources(model.config, [7, 7, 7]), model.config))
    assert sizes["cross keys and values"] == sum(array.nbytes for array in memory.key_values)
    cache = model.new_cache(workload.batch * workload.beams, workload.length)
    assert sizes["self keys and values"] == sum(array.nbytes for array in cache.layers)


def test_every_parameter_read_by_a_step_is_counted_once():
    model = random_model(SETTINGS["unequal_stacks"])
    loaded = roofline.loaded_bytes(model)
    unread = [
        array.nbytes
        for name, array in tree_flatten(model.parameters())
        if name.startswith(("encoder", "source_embedding", "decoder.positions"))
        or "cross_attention.key" in name
        or "cross_attention.value" in name
    ]
    total = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert sum(loaded.values()) + sum(unread) == total


def test_max_tokens_per_second():
    assert roofline.max_tokens_per_second(100, 500_000_000, batch=8) == 1600
