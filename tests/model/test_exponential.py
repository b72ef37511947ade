"""Vectorisable functions of exp: close to exact values, and MLX's own functions wherever those are fast."""

import io
import math
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_transformer.model import exponential
from mlx_transformer.model.exponential import (
    LOWEST,
    exp_of_negative,
    gelu,
    gelu_tanh,
    logsumexp,
    quick_gelu,
    silu,
    softmax,
)

NUMBERS = np.concatenate([np.linspace(LOWEST, 0, 100_001), -np.geomspace(1e-8, 40, 10_001)]).astype(np.float32)
EXACT = {
    silu: lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    quick_gelu: lambda x: x / (1 + np.exp(np.minimum(-1.702 * x, 700))),
    gelu_tanh: lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    gelu: np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
}
MLX = {silu: nn.silu, quick_gelu: nn.gelu_fast_approx, gelu_tanh: nn.gelu_approx, gelu: nn.gelu}


@pytest.fixture(params=[True, False], ids=["vectorised", "native"])
def vectorised(request, monkeypatch):
    monkeypatch.setattr(exponential, "is_exp_scalar", lambda: request.param)


def test_exp_has_a_small_error(vectorised):
    exact = np.exp(NUMBERS.astype(np.float64))
    errors = np.abs(np.array(exp_of_negative(mx.array(NUMBERS))) - exact)
    limit = 2e-7 if exponential.is_exp_scalar() else 1e-6
    assert (errors / exact)[NUMBERS > -20].max() < limit and errors[NUMBERS <= -20].max() < 1e-14
    assert exp_of_negative(mx.array([0.0, -math.inf, -1e9])).tolist() == pytest.approx([1, 0, 0])
    assert exp_of_negative(mx.array([-math.inf, -1e9, LOWEST - 60])).tolist() == pytest.approx([0, 0, 0], abs=0)


@pytest.mark.parametrize("scale", [0.01, 6.0, 100.0])
def test_logsumexp(vectorised, scale):
    x = np.random.default_rng(0).standard_normal((5, 3000)).astype(np.float32) * scale
    exact = np.log(np.exp(x.astype(np.float64) - x.max()).sum(axis=1, keepdims=True)) + x.max()
    assert np.abs(np.array(logsumexp(mx.array(x))) - exact).max() < 5e-6 * max(1, np.abs(exact).max())


def test_logsumexp_of_special_rows(vectorised):
    x = mx.array([[1.0, -math.inf, -1e9], [math.nan, 1.0, 2.0], [5.0, 5.0, -math.inf]])
    result = logsumexp(x).flatten().tolist()
    assert result[0] == pytest.approx(1) and math.isnan(result[1]) and result[2] == pytest.approx(5 + math.log(2))
    assert logsumexp(mx.full((1, 4), -math.inf)).item() < -1e38
    assert logsumexp(mx.zeros((1, 8), mx.float16)).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("length", [5, 200])
def test_softmax_and_its_gradient(vectorised, length):
    x = mx.random.normal((4, length), scale=2, key=mx.random.key(0))
    x = mx.where(mx.arange(length) == 1, mx.finfo(mx.float32).min, x)
    weights = mx.random.normal((4, length), key=mx.random.key(1))
    assert mx.allclose(softmax(x), mx.softmax(x, axis=-1), rtol=2e-5, atol=1e-7)
    assert not softmax(x)[:, 1].any()  # masked
    gradient = mx.compile(mx.grad(lambda x: (softmax(x) * weights).sum()))(x)
    expected = mx.grad(lambda x: (mx.softmax(x, axis=-1) * weights).sum())(x)
    assert mx.allclose(gradient, expected, rtol=0, atol=1e-6) and mx.abs(expected).max() > 0.05
    assert mx.allclose(softmax(mx.full((1, 4), mx.finfo(mx.float32).min)), mx.full((1, 4), 0.25))


@pytest.mark.parametrize("activation", EXACT, ids=lambda function: function.__name__)
def test_activations_and_their_gradients(vectorised, activation):
    x = mx.concatenate([mx.array(NUMBERS), -mx.array(NUMBERS), mx.array([0.0, 200.0, -200.0, 1e12, -1e12])])
    exact = EXACT[activation](np.array(x, np.float64))
    assert (np.abs(np.array(activation(x)) - exact) < 2e-6 + 1e-7 * np.abs(exact)).all()
    gradient = mx.grad(lambda x: activation(x).sum())(x)
    assert mx.allclose(gradient, mx.grad(lambda x: MLX[activation](x).sum())(x), rtol=0, atol=2e-6)
    assert math.isnan(activation(mx.array(math.nan)).item())
    assert activation(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("function", [exp_of_negative, *EXACT], ids=lambda function: function.__name__)
@pytest.mark.parametrize("is_gated", [False, True])
def test_no_kernel_begins_with_a_constant(monkeypatch, function, is_gated):
    """A constant that is not computed with the kernel is an array without strides, and the kernel not vectorised."""
    monkeypatch.setattr(exponential, "is_exp_scalar", lambda: True)
    x = mx.array([[0.5, -1.0]])
    compiled = mx.compile(lambda x: function(x) * x if is_gated else function(x))
    graph = io.StringIO()
    mx.export_to_dot(graph, compiled(x))
    primitives = re.findall(r'label ?= ?"([^"]+)", shape=rectangle', graph.getvalue())
    assert primitives and "Broadcast" not in primitives


def test_only_x86_cpus_have_a_scalar_exp(monkeypatch):
    monkeypatch.setattr(exponential.platform, "machine", lambda: "arm64")
    assert not exponential.is_exp_scalar()
    monkeypatch.setattr(exponential.platform, "machine", lambda: "x86_64")
    assert exponential.is_exp_scalar() == (mx.default_device() == mx.cpu)
