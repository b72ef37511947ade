"""Normalisations by the names that a ModelConfig has for them."""

import mlx.core as mx
import mlx.nn as nn


class DeviationNorm(nn.Module):
    """Normalisation by the unbiased standard deviation plus epsilon (Rush 2018, "The Annotated Transformer")."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones(dims)
        self.bias = mx.zeros(dims)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise each position, (rows, length, dims)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        return self.weight * centred / (x.std(axis=-1, keepdims=True, ddof=1) + self.eps) + self.bias


NORMS = {
    "layer": lambda config: nn.LayerNorm(config.dims, eps=config.norm_eps, bias=config.norm_bias),
    "rms": lambda config: nn.RMSNorm(config.dims, eps=config.norm_eps),
    "deviation": lambda config: DeviationNorm(config.dims, config.norm_eps),
}
