"""Data types by device and model, and quantisation."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.tiny_models import config, random_model, stack

from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model import precision, quantization

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
PLAIN, WIDE = config(), config(overflows_float16=True)


@pytest.mark.parametrize(
    "stored, model, on_cpu, architecture, expected",
    [
        *((stored, model, True, "arm", F32) for stored in (F32, F16, BF16) for model in (PLAIN, WIDE)),
        *((stored, PLAIN, False, "applegpu_g16s", stored) for stored in (F32, F16, BF16)),
        *((stored, PLAIN, False, "sm_90", stored) for stored in (F32, F16, BF16)),
        *((BF16, PLAIN, False, chip, F16) for chip in ("applegpu_g13g", "applegpu_g14d")),
        (BF16, PLAIN, False, "applegpu_g15s", BF16),
        *((F16, PLAIN, False, chip, F16) for chip in ("applegpu_g13g", "applegpu_g14d")),
        *((stored, WIDE, False, "applegpu_g17p", BF16) for stored in (F16, BF16)),
        *((stored, WIDE, False, "applegpu_g14s", F32) for stored in (F16, BF16)),
        *((F32, model, False, chip, F32) for model in (PLAIN, WIDE) for chip in ("applegpu_g13g", "applegpu_g16s")),
    ],
)
def test_choose_dtype(stored, model, on_cpu, architecture, expected):
    assert precision.choose_dtype(stored, model, on_cpu, architecture) == expected


def test_float16_is_rejected_for_overflowing_models_unless_allowed():
    model = random_model(WIDE)
    with pytest.raises(ValueError, match="overflow float16: use bfloat16 or float32, or insist with --allow-overflow"):
        precision.prepare_for_inference(model, "float16")
    assert model.dtype == F32
    precision.prepare_for_inference(model, "float16", allow_overflow=True)
    assert model.dtype == F16
    plain = random_model(PLAIN)
    precision.prepare_for_inference(plain, "float16")
    assert plain.dtype == F16


@pytest.mark.parametrize("bits", [4, 8])
def test_positions_relative_biases_and_norms_are_not_quantised(bits):
    model = random_model(
        config(
            dims=64,
            encoder=stack(mlp_dims=128, positions="learned", embedding_norm="after"),
            decoder=stack(mlp_dims=64, positions="relative", num_buckets=8, max_distance=9, bias_each_layer=True),
            share_embeddings=False,
            tie_output=False,
            output_bias=True,
            gated_mlp=True,
        )
    )
    before = dict(tree_flatten(model.parameters()))
    quantization.quantize_weights(model, QuantizationConfig(bits))
    after = dict(tree_flatten(model.parameters()))
    quantised = {name.removesuffix(".scales") for name in after if name.endswith(".scales")}
    for name, array in before.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer.endswith(("_proj", "output", "_embedding")):
            assert layer in quantised and after[name].dtype == mx.uint32, name
        else:
            assert layer not in quantised or leaf == "bias", name
            assert mx.array_equal(after[name], array), name
    quantization.dequantize(model)
    plain = dict(tree_flatten(model.parameters()))
    assert plain.keys() == before.keys()
    errors = [float(mx.abs(plain[name] - before[name]).max()) for name in before]
    largest = max(float(mx.abs(array).max()) for array in before.values())
    assert 0 < max(errors) < largest * (0.2 if bits == 4 else 0.02)


def test_unquantisable_widths_are_named():
    odd = dataclasses.replace(PLAIN, dims=64, encoder=stack(mlp_dims=96))
    with pytest.raises(ValueError, match=r"must be multiples of 64: encoder.layers.0.feed_forward.down_proj has 96"):
        quantization.quantize_weights(random_model(odd), QuantizationConfig(8))


def test_parse_dtype():
    assert precision.parse_dtype("bfloat16") == precision.parse_dtype(BF16) == BF16
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, not 'int8'"):
        precision.parse_dtype("int8")
    assert np.array(mx.zeros(2, precision.DTYPES["float16"])).dtype == np.float16
