"""Layers with the weights that they begin with."""

import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


def linear(input_dims: int, output_dims: int, bias: bool) -> nn.Linear:
    """A linear layer with Glorot's uniform initialisation and no bias at first."""
    layer = nn.Linear(input_dims, output_dims, bias)
    limit = math.sqrt(6 / (input_dims + output_dims))
    layer.weight = mx.random.uniform(-limit, limit, (output_dims, input_dims))
    if bias:
        layer.bias = mx.zeros(output_dims)
    return layer


def linears(input_dims: int, output_dims: int, bias: bool, count: int) -> nn.Linear:
    """Several such layers as one, their rows one after another; each begins as it would alone."""
    layers = [linear(input_dims, output_dims, bias) for _ in range(count)]
    layers[0].update(tree_map(lambda *rows: mx.concatenate(list(rows)), *(layer.parameters() for layer in layers)))
    return layers[0]


def embedding(vocab_size: int, dims: int) -> nn.Embedding:
    """Token embeddings of standard deviation dims**-0.5: of size one when scaled, and fit for an output layer."""
    table = nn.Embedding(vocab_size, dims)
    table.weight = mx.random.normal((vocab_size, dims), scale=dims**-0.5)
    return table
