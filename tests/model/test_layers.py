"""Layers: a shortcut that a linear layer adds."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from benchmarks.kernels import count_kernels
from mlx_transformer.model.layers import add_linear


class TestAddLinear:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("bits", [None, 8])
    def test_the_shortcut_is_added(self, bias, bits):
        mx.random.seed(1)
        layer = nn.Linear(64, 64, bias)
        layer = layer if bits is None else nn.QuantizedLinear.from_linear(layer, bits=bits)
        x, shortcut = mx.random.normal((3, 2, 64)), mx.random.normal((3, 2, 64))
        assert mx.allclose(add_linear(layer, x, shortcut), shortcut + layer(x), atol=1e-5)
        assert mx.array_equal(add_linear(layer, x, None), layer(x))

    def test_a_plain_layer_needs_no_kernel_for_the_addition(self):
        layer = nn.Linear(64, 64, bias=False)
        x = mx.ones((3, 2, 64))
        mx.eval(layer.parameters(), x)
        assert count_kernels(add_linear(layer, x, x)) == {"AddMM": 1}
