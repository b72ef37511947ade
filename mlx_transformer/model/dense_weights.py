"""Dense weights of layers that may be quantised, and products that dequantise them slice by slice."""

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

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


def use_dense_products(model: nn.Module) -> None:
    """Let the quantised layers of a model compute with weights that are dequantised for each product, in place.

    The CPU multiplies a dense matrix with many vectors fifty times as fast as a quantised one.
    """
    leaves = []
    for path, module in model.named_modules():
        if isinstance(module, QUANTIZED):
            kind = DenseProductLinear if isinstance(module, nn.QuantizedLinear) else DenseProductEmbedding
            layer = kind(module.group_size, module.group_size, group_size=module.group_size, bits=module.bits)
            dict.clear(layer)
            dict.update(layer, module)
            leaves.append((path, layer))
    model.update_modules(tree_unflatten(leaves))
