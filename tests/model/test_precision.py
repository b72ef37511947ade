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
NATIVE = ("applegpu_g15s", "applegpu_g16s", "applegpu_g17p", "sm_80", "sm_90", "sm_120", "unknown")
EMULATED = ("applegpu_g13g", "applegpu_g14d", "sm_75")
PLAIN, WIDE = config(), config(overflows_float16=True)


@pytest.mark.parametrize(
    "model, architecture, expected",
    [
        (PLAIN, None, {F32: F32, F16: F32, BF16: F32}),
        (WIDE, None, {F32: F32, F16: F32, BF16: F32}),
        *((PLAIN, chip, {F32: F16, F16: F16, BF16: BF16}) for chip in NATIVE),
        *((PLAIN, chip, {F32: F16, F16: F16, BF16: F16}) for chip in EMULATED),
        *((WIDE, chip, {F32: BF16, F16: BF16, BF16: BF16}) for chip in NATIVE),
        *((WIDE, chip, {F32: F32, F16: F32, BF16: F32}) for chip in EMULATED),
    ],
)
def test_choose_dtype(model, architecture, expected):
    assert {stored: precision.choose_dtype(stored, model, architecture) for stored in expected} == expected


@pytest.mark.parametrize(
    "architecture, model, stored, expected",
    [
        (None, PLAIN, F32, "float32 on the CPU: lower precision is slow here"),
        (
            "applegpu_g13g",
            PLAIN,
            F32,
            "float16 on this GPU: half the bytes of float32, and the model stays in its range",
        ),
        ("applegpu_g15s", PLAIN, BF16, "bfloat16 on this GPU: the model is stored in it"),
        ("sm_90", WIDE, F32, "bfloat16 on this GPU: the model overflows float16"),
        ("sm_75", WIDE, F32, "float32 on this GPU: the model overflows float16, and this GPU has no native bfloat16"),
    ],
)
def test_the_default_is_explained(architecture, model, stored, expected, monkeypatch):
    monkeypatch.setattr(precision, "gpu_architecture", lambda: architecture)
    assert precision.explain_default(precision.default_dtype(stored, model), model) == expected


def test_models_are_prepared_in_the_default_of_the_gpu(monkeypatch):
    monkeypatch.setattr(precision, "gpu_architecture", lambda: "applegpu_g16s")
    for model, expected in ((random_model(PLAIN), F16), (random_model(WIDE), BF16)):
        precision.prepare_for_inference(model)
        assert model.dtype == expected
    model = random_model(PLAIN)
    precision.prepare_for_inference(model, "float32")
    assert model.dtype == F32


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
