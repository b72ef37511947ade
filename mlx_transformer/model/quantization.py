"""Quantisation of linear layers and embeddings, and its inverse."""

import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.model.dense_weights import QUANTIZED, dense_weight
from mlx_transformer.model.transformer import Transformer

NOT_QUANTIZED = ("positions", "relative_bias", "projection")  # ends of the names of modules


def quantize_weights(model: Transformer, config: QuantizationConfig) -> None:
    """Quantise linear layers and token embeddings in place, but not NOT_QUANTIZED or norms.

    Raises:
        ValueError: If the width of a weight is not a multiple of the group size.
    """

    def is_quantizable(path: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear | nn.Embedding) or path.endswith(NOT_QUANTIZED):
            return False
        width = module.weight.shape[-1]
        if width % config.group_size:
            raise ValueError(f"Widths to quantise must be multiples of {config.group_size}: {path} has {width}.")
        return True

    nn.quantize(model, config.group_size, config.bits, class_predicate=is_quantizable)


def quantization_of(model: nn.Module) -> QuantizationConfig | None:
    """Return how a model is quantised, or None if it is not."""
    for module in model.modules():
        if isinstance(module, QUANTIZED):
            return QuantizationConfig(module.bits, module.group_size)
    return None


def dequantize(model: nn.Module) -> None:
    """Replace quantised layers by plain ones, in place."""
    leaves = [(path, plain_layer(module)) for path, module in model.named_modules() if isinstance(module, QUANTIZED)]
    model.update_modules(tree_unflatten(leaves))


def plain_layer(layer: nn.Module) -> nn.Module:
    """Return a new linear layer or embedding with the weights of another one, dequantised if it is quantised."""
    is_linear = isinstance(layer, nn.Linear | nn.QuantizedLinear)
    plain = nn.Linear(1, 1) if is_linear else nn.Embedding(1, 1)
    plain.weight = dense_weight(layer)
    plain.pop("bias", None)
    if "bias" in layer:
        plain.bias = layer.bias
    return plain
