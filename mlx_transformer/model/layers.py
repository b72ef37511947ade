"""Building blocks of the network: activations, normalisation, and initialised linear layers and embeddings."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_transformer.model.exponential import silu

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_tanh": nn.gelu_approx,
    "silu": silu,
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


def add_linear(layer: nn.Module, x: mx.array, shortcut: mx.array | None) -> mx.array:
    """Return layer(x) and add a shortcut, if there is one: as part of the matrix product where MLX can do so."""
    if shortcut is None:
        return cast(mx.array, layer(x))
    if isinstance(layer, nn.QuantizedLinear):
        return cast(mx.array, shortcut + layer(x))
    if not isinstance(layer, nn.Linear):  # with an adapter
        return cast(mx.array, layer(x, shortcut))
    total = shortcut + layer.bias if "bias" in layer else shortcut
    # As matrices, because on a CPU MLX multiplies each row of a batch on its own.
    return mx.addmm(total.flatten(0, -2), x.flatten(0, -2), layer.weight.T).reshape(shortcut.shape)


QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


SLICE_SIZE = 2**23  # numbers of a dequantised part of a weight, or of its products: 32 MB in float32


def dense_weight(layer: nn.Module, rows: slice | mx.array | None = None, after: Sequence[mx.array] = ()) -> mx.array:
    """Return the weight of a linear layer or an embedding, dequantised if it is quantised (lazily).

    Args:
        layer: The layer.
        rows: Which of its rows; None for all.
        after: Arrays to compute before. Without them all dequantised weights of a graph may be in memory at once, and
            compilation keeps those of a forward pass for the backward pass.
    """
    is_quantized = isinstance(layer, QUANTIZED)
    arrays = [layer[name] for name in (("weight", "scales", "biases") if is_quantized else ("weight",))]
    if rows is not None:
        arrays = [array[rows] for array in arrays]
    if after:
        arrays = mx.depends(arrays, list(after))
    if not is_quantized:
        return arrays[0]
    weight, scales, biases = arrays
    return mx.dequantize(weight, scales, biases, layer.group_size, layer.bits)


def row_slices(num_rows: int, row_size: int) -> list[slice]:
    """Split rows of a matrix into slices of at most SLICE_SIZE numbers."""
    size = max(SLICE_SIZE // max(row_size, 1), 1)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def dense_product(x: mx.array, layer: nn.Module) -> mx.array:
    """Return the product of x and the transposed weight of a quantised layer that is not trained.

    The weight is dequantised slice by slice in the forward pass, and again in the backward pass instead of being kept.
    """
    slices = row_slices(len(layer.weight), x.shape[-1])

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        outputs = list[mx.array]()
        for rows in slices:
            outputs.append(x @ dense_weight(layer, rows, after=[x, *outputs[-1:]]).T)
        return mx.concatenate(outputs, axis=-1)

    @product.vjp
    def product_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        gradient = mx.zeros_like(x)
        for rows in slices:
            gradient = gradient + cotangent[..., rows] @ dense_weight(layer, rows, after=[cotangent, gradient])
        return gradient

    return cast(mx.array, product(x))


class DenseProductLinear(nn.QuantizedLinear):
    """A quantised linear layer that is dequantised for each product."""

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer, (..., input_dims) -> (..., output_dims)."""
        product = dense_product(x, self)
        return product + self.bias if "bias" in self else product


class DenseProductEmbedding(nn.QuantizedEmbedding):
    """A quantised embedding that is dequantised for each product as an output layer."""

    def as_linear(self, x: mx.array) -> mx.array:
        """Apply the embedding as an output layer, (..., dims) -> (..., num_embeddings)."""
        return dense_product(x, self)


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
