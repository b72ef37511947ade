"""Building blocks of the network: activations, normalisation, and initialised linear layers and embeddings."""

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_transformer.model import exponential

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "relu": nn.relu,
    "gelu": exponential.gelu,
    "gelu_tanh": exponential.gelu_tanh,
    "quick_gelu": exponential.quick_gelu,
    "silu": exponential.silu,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
}


class StdNorm(nn.Module):
    """Normalisation by the unbiased standard deviation plus epsilon (Rush 2018, "The Annotated Transformer")."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones(dims)
        self.bias = mx.zeros(dims)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise every position, (rows, length, dims)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        return self.weight * centred / (x.std(axis=-1, keepdims=True, ddof=1) + self.eps) + self.bias


NORMS = {
    "layer": lambda config: nn.LayerNorm(config.dims, eps=config.norm_eps, bias=config.norm_bias),
    "rms": lambda config: nn.RMSNorm(config.dims, eps=config.norm_eps),
    "deviation": lambda config: StdNorm(config.dims, config.norm_eps),
}


def linear(input_dims: int, output_dims: int, bias: bool) -> nn.Linear:
    """Create a linear layer with Glorot uniform weights and zero bias."""
    layer = nn.Linear(input_dims, output_dims, bias)
    limit = math.sqrt(6 / (input_dims + output_dims))
    layer.weight = mx.random.uniform(-limit, limit, (output_dims, input_dims))
    if bias:
        layer.bias = mx.zeros(output_dims)
    return layer


def add_linear(layer: nn.Module | None, x: mx.array, shortcut: mx.array | None) -> mx.array:
    """Return layer(x) and add a shortcut, if there is one: as part of the matrix product where MLX can do so.

    Without a layer, x itself takes the place of layer(x).
    """
    if layer is None:
        return x if shortcut is None else shortcut + x
    if shortcut is None:
        return cast(mx.array, layer(x))
    if isinstance(layer, nn.QuantizedLinear):
        return cast(mx.array, shortcut + layer(x))
    if not isinstance(layer, nn.Linear):  # with an adapter
        return cast(mx.array, layer(x, shortcut))
    total = shortcut + layer.bias if "bias" in layer else shortcut
    # As matrices, because on a CPU MLX multiplies each row of a batch on its own.
    return mx.addmm(total.flatten(0, -2), x.flatten(0, -2), layer.weight.T).reshape(shortcut.shape)


def fused_linear(input_dims: int, output_dims: int, bias: bool, count: int) -> nn.Linear:
    """Create `count` linear layers fused into one, each initialised as on its own."""
    layers = [linear(input_dims, output_dims, bias) for _ in range(count)]
    layers[0].update(tree_map(lambda *rows: mx.concatenate(list(rows)), *(layer.parameters() for layer in layers)))
    return layers[0]


def embedding(vocab_size: int, dims: int) -> nn.Embedding:
    """Create token embeddings with standard deviation dims**-0.5, as scaled inputs and a tied output layer need."""
    table = nn.Embedding(vocab_size, dims)
    table.weight = mx.random.normal((vocab_size, dims), scale=dims**-0.5)
    return table
