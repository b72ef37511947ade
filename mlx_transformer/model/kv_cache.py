"""The decoder's key-value cache for step-by-step decoding."""

import mlx.core as mx

from mlx_transformer.model.positions import constant_arange


class KVCache:
    """Preallocated keys and values of the decoder's self-attention.

    Attributes:
        layers: Keys and values of each decoder layer, (rows, num_heads, 2, capacity, head_dims); rows are sentences x
            beams. One array per layer needs one update and one gather a step, and with keys and values on axis 2 fused
            attention reads both without a copy.
        length: Number of filled positions, an int32 scalar on the device, so that one compiled trace serves every step.
    """

    def __init__(self, layers: list[mx.array], length: mx.array) -> None:
        self.layers = layers
        self.length = length

    @property
    def capacity(self) -> int:
        """Maximum number of positions."""
        return self.layers[0].shape[3]

    def update_and_fetch(self, layer: int, key_values: mx.array) -> mx.array:
        """Write a layer's keys and values of the next positions, and return all of its keys and values."""
        self.layers[layer] = mx.slice_update(self.layers[layer], key_values, self.length, axes=(3,))
        return self.layers[layer]

    def mask(self, queries: int) -> mx.array:
        """Return the causal mask of the next `queries` positions, (1, 1, queries, capacity)."""
        positions = self.length + constant_arange(queries)
        return (constant_arange(self.capacity) <= positions[:, None])[None, None]
