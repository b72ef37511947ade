"""What the decoder keeps from step to step: keys and values of self-attention, or cell states of the SSRU.

Both kinds of cache have one array for each layer, with a row for each beam, and the same methods.
"""

import mlx.core as mx

from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.recurrence import linear_recurrence


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

    def grow(self, positions: int) -> None:
        """Make room for more positions."""
        padding = [(0, 0), (0, 0), (0, 0), (0, positions), (0, 0)]
        self.layers = [mx.pad(layer, padding) for layer in self.layers]

    def mask(self, queries: int) -> mx.array | str:
        """Return the causal mask of the next `queries` positions, (1, 1, queries, capacity)."""
        positions = self.length + constant_arange(queries)
        return (constant_arange(self.capacity) <= positions[:, None])[None, None]


class CellCache:
    """The last cell states of the decoder's SSRU sublayers: of one size, however many positions there were.

    Attributes:
        layers: The state of each decoder layer, float32 (rows, dims); rows are sentences x beams.
        length: Number of positions so far, an int32 scalar on the device.
    """

    def __init__(self, layers: list[mx.array], length: mx.array) -> None:
        self.layers = layers
        self.length = length

    def update_and_fetch(self, layer: int, gates: mx.array) -> mx.array:
        """Run a layer's recurrence over the next positions, keep the last state, and return the states of all."""
        cells = linear_recurrence(gates, self.layers[layer])
        self.layers[layer] = cells[:, -1]
        return cells

    def grow(self, positions: int) -> None:
        """Do nothing: any number of positions has room."""

    def mask(self, queries: int) -> str:
        """Return the mask of any number of positions, which a recurrence does not need."""
        return "causal"


DecoderCache = KVCache | CellCache
