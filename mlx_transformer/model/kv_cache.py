"""What the decoder keeps from step to step: keys and values of self-attention, or the states of a recurrence."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import mlx.core as mx

from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.recurrence import linear_recurrence, running_sums

Recurrence = Callable[[mx.array, mx.array | None], mx.array]  # inputs of positions, the state before -> their states


def fit(array: mx.array, axis: int, size: int, first: int = 0, value: int = 0) -> mx.array:
    """Return `size` entries of an axis from `first` on, with padding of a value at the end if there are fewer."""
    if (first, size) == (0, array.shape[axis]):
        return array
    kept = array[(slice(None),) * axis + (slice(first, first + size),)]
    missing = size - kept.shape[axis]
    return mx.pad(kept, [(0, missing if i == axis else 0) for i in range(array.ndim)], constant_values=value)


class DecoderCache(ABC):
    """What the decoder's layers keep of the positions so far.

    Attributes:
        layers: An array for each decoder layer, with a row for each beam of each sentence.
        length: Number of positions so far, an int32 scalar on the device, so that one compiled trace serves every step.
        starts: The position at which the sequence of each row begins, int32 (rows, 1); (1, 1), zero, if all begin at 0.
    """

    def __init__(self, layers: list[mx.array], length: mx.array, starts: mx.array | None = None) -> None:
        self.layers = layers
        self.length = length
        self.starts = mx.zeros((1, 1), mx.int32) if starts is None else starts

    @property
    def lengths(self) -> mx.array:
        """Number of positions of the sequence of each row, int32 (rows, 1), or (1, 1) for all."""
        return self.length.reshape(1, 1) if self.starts.shape[0] == 1 else self.length - self.starts

    @abstractmethod
    def update_and_fetch(self, layer: int, update: mx.array) -> mx.array:
        """Add what a layer keeps of the next positions; return what it attends to."""

    @abstractmethod
    def resize(self, first: int, capacity: int) -> None:
        """Keep the positions from `first` on, with room for `capacity` positions; `length` and `starts` stay."""

    @abstractmethod
    def mask(self, queries: int) -> mx.array | str:
        """Return the causal mask of the next `queries` positions."""


class KVCache(DecoderCache):
    """Preallocated keys and values of the decoder's self-attention.

    Its layers are (rows, num_heads, 2, capacity, head_dims). One array per layer needs one update and one gather a
    step, and with keys and values on axis 2 fused attention reads both without a copy.
    """

    @property
    def capacity(self) -> int:
        """Maximum number of positions."""
        return self.layers[0].shape[3]

    def update_and_fetch(self, layer: int, key_values: mx.array) -> mx.array:
        """Write a layer's keys and values of the next positions, and return all of its keys and values."""
        self.layers[layer] = mx.slice_update(self.layers[layer], key_values, self.length, axes=(3,))
        return self.layers[layer]

    def resize(self, first: int, capacity: int) -> None:
        """Slice or pad the layers."""
        self.layers = [fit(layer, 3, capacity, first) for layer in self.layers]

    def mask(self, queries: int) -> mx.array | str:
        """Return the causal mask of the next `queries` positions, (rows or 1, 1, queries, capacity)."""
        keys, positions = constant_arange(self.capacity), self.length + constant_arange(queries)
        mask = (keys <= positions[:, None])[None, None]
        return mask if self.starts.shape[0] == 1 else mask & (keys >= self.starts[:, None, None])


class CellCache(DecoderCache):
    """The last cell states of the decoder's SSRU sublayers, zero where a sequence begins.

    Its layers are float32 (rows, dims), however many positions there were.
    """

    recurrence: Recurrence = staticmethod(linear_recurrence)

    def update_and_fetch(self, layer: int, inputs: mx.array) -> mx.array:
        """Run a layer's recurrence over the next positions, keep the last state, and return the states of all."""
        states = self.recurrence(inputs, self.layers[layer])
        self.layers[layer] = states[:, -1]
        return states

    def resize(self, first: int, capacity: int) -> None:
        """Do nothing: any number of positions has room."""

    def mask(self, queries: int) -> str:
        """Return the mask of any number of positions, which a recurrence does not need."""
        return "causal"


class SumCache(CellCache):
    """The last sums of the decoder's average attention and their counts, float32 (rows, dims + 1)."""

    recurrence: Recurrence = staticmethod(running_sums)


CACHES: dict[str, type[DecoderCache]] = {"attention": KVCache, "ssru": CellCache, "average": SumCache}
