"""Vectorisable exp, log-sum-exp and SiLU: close to exact values, and MLX's own functions wherever those are fast."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_transformer.model import exponential
from mlx_transformer.model.exponential import LOWEST, exp_of_negative, logsumexp, silu

NUMBERS = np.concatenate([np.linspace(LOWEST, 0, 100_001), -np.geomspace(1e-8, 87, 10_001)]).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["vectorised", "native"])
def vectorised(request, monkeypatch):
    monkeypatch.setattr(exponential, "is_exp_scalar", lambda: request.param)


def test_exp_has_a_small_relative_error():
    errors = np.abs(np.array(exp_of_negative(mx.array(NUMBERS))) / np.exp(NUMBERS.astype(np.float64)) - 1)
    assert errors.max() < 4e-5 and errors[NUMBERS > -20].max() < 1e-5
    assert exp_of_negative(mx.array([0.0, -math.inf])).tolist() == pytest.approx([1, 0], abs=1e-6)


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


def test_silu_and_its_gradient(vectorised):
    x = mx.concatenate([mx.array(NUMBERS), -mx.array(NUMBERS), mx.array([0.0, 200.0, -200.0])])
    exact = np.array(x, np.float64) / (1 + np.exp(-np.array(x, np.float64)))
    assert np.abs(np.array(silu(x)) - exact).max() < 2e-5
    gradient, expected = mx.grad(lambda x: silu(x).sum())(x), mx.grad(lambda x: nn.silu(x).sum())(x)
    assert mx.allclose(gradient, expected, rtol=0, atol=5e-5)
    assert math.isnan(silu(mx.array(math.nan)).item())


def test_only_x86_cpus_have_a_scalar_exp(monkeypatch):
    monkeypatch.setattr(exponential.platform, "machine", lambda: "arm64")
    assert not exponential.is_exp_scalar()
    monkeypatch.setattr(exponential.platform, "machine", lambda: "x86_64")
    assert exponential.is_exp_scalar() == (mx.default_device() == mx.cpu)
