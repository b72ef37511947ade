"""The keys and values of the target so far, kept by the decoder from step to step."""

import mlx.core as mx

from mlx_transformer.model.positions import constant_arange


class KVCache:
    """Preallocated keys and values of the decoder's self-attention.

    Attributes:
        layers: For each decoder layer its keys and values, (rows, num_heads, 2, capacity, head_dims). One array, so
            that a step costs one update and one gather; keys and values side by side on axis 2, so that each of them
            is a view that fused attention reads without a copy. Rows are sentences x beams.
        length: Number of positions filled, an int32 scalar on the device: every position runs the same compiled trace.
    """

    def __init__(self, layers: list[mx.array], length: mx.array) -> None:
        self.layers = layers
        self.length = length

    @property
    def capacity(self) -> int:
        """Most positions that fit."""
        return self.layers[0].shape[3]

    def update_and_fetch(self, layer: int, key_values: mx.array) -> mx.array:
        """Write keys and values of the next positions; returns the layer's whole array."""
        self.layers[layer] = mx.slice_update(self.layers[layer], key_values, self.length, axes=(3,))
        return self.layers[layer]

    def mask(self, queries: int) -> mx.array:
        """Which positions the next `queries` ones may attend to, (1, 1, queries, capacity)."""
        positions = self.length + constant_arange(queries)
        return (constant_arange(self.capacity) <= positions[:, None])[None, None]
