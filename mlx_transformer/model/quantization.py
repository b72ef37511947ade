"""Quantisation of linear layers and embeddings, and its inverse."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model.transformer import Transformer


def quantize_weights(model: Transformer, config: QuantizationConfig) -> None:
    """Quantise linear layers and token embeddings in place, but not positions, relative biases or norms.

    Raises:
        ValueError: If the width of a weight is not a multiple of the group size.
    """

    def is_quantizable(path: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear | nn.Embedding) or path.endswith(("positions", "relative_bias")):
            return False
        width = module.weight.shape[-1]
        if width % config.group_size:
            raise ValueError(f"Widths to quantise must be multiples of {config.group_size}: {path} has {width}.")
        return True

    nn.quantize(model, config.group_size, config.bits, class_predicate=is_quantizable)


def quantization_of(model: nn.Module) -> QuantizationConfig | None:
    """Return how a model is quantised, or None if it is not."""
    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return QuantizationConfig(module.bits, module.group_size)
    return None


def dequantize(model: nn.Module) -> None:
    """Replace quantised layers by plain ones, in place."""
    leaves = []
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            layer = nn.Linear(1, 1) if isinstance(module, nn.QuantizedLinear) else nn.Embedding(1, 1)
            layer.weight = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
            layer.pop("bias", None)
            if "bias" in module:
                layer.bias = module.bias
            leaves.append((path, layer))
    model.update_modules(tree_unflatten(leaves))
