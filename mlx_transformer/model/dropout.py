"""Dropout, and layers that are computed a second time for the gradient, with the same numbers dropped."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# The key that the layer now running draws from; without one MLX's own random state is drawn from.
_key: ContextVar[mx.array | None] = ContextVar("key", default=None)


def dropout(x: mx.array, rate: float) -> mx.array:
    """Set a share of numbers to 0 and enlarge the others to make up for it (Srivastava et al. 2014)."""
    if rate == 0:
        return x
    kept = mx.random.bernoulli(1 - rate, x.shape, key=_split_key())
    return kept * x * mx.array(1 / (1 - rate), x.dtype)


def _split_key() -> mx.array | None:
    key = _key.get()
    if key is None:
        return None
    rest, key = mx.random.split(key)
    _key.set(rest)
    return key


def grad_checkpoint(layer: nn.Module) -> Callable[..., mx.array]:
    """A layer that keeps nothing of its work for the gradient, but its input: it is run again (Chen et al. 2016).

    `mx.checkpoint` runs it a second time, in which it must drop the same numbers: so they follow from a key.
    """

    def run(
        x: mx.array, mask: mx.array | str, update_cache: Any = None, memory: Any = None, attend: Any = None
    ) -> mx.array:
        def body(weights: dict, key: mx.array, x: mx.array, masks: list[mx.array], memory: list) -> mx.array:
            before = _key.set(mx.stop_gradient(key))
            layer.update(weights)
            try:
                return layer(x, masks[0] if masks else mask, **options, memory=memory[0] if memory else None)
            finally:
                _key.reset(before)

        options = {name: value for name, value in {"update_cache": update_cache, "attend": attend}.items() if value}
        key = mx.stop_gradient(mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32))
        masks = [] if isinstance(mask, str) else [mask]
        return mx.checkpoint(body)(layer.trainable_parameters(), key, x, masks, [] if memory is None else [memory])

    return run
