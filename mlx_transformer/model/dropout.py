"""Dropout, and gradient checkpointing that repeats the same dropout masks."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Random key of the layer that is running under `grad_checkpoint`; None elsewhere: MLX's global random state is used.
_key: ContextVar[mx.array | None] = ContextVar("key", default=None)


def dropout(x: mx.array, rate: float) -> mx.array:
    """Set a random share `rate` of x to 0 and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014)."""
    if rate == 0:
        return x
    mask = mx.random.bernoulli(1 - rate, x.shape, key=_split_key())
    return mask * x * mx.array(1 / (1 - rate), x.dtype)


def _split_key() -> mx.array | None:
    key = _key.get()
    if key is None:
        return None
    remaining, key = mx.random.split(key)
    _key.set(remaining)
    return key


def grad_checkpoint(layer: nn.Module) -> Callable[..., mx.array]:
    """Wrap a layer so that the backward pass recomputes its activations from its input (Chen et al. 2016).

    `mx.checkpoint` runs the layer twice. Both runs draw dropout masks from the same key, so that the gradients are
    those of the forward pass.
    """

    def run(
        x: mx.array, mask: mx.array | str, update_cache: Any = None, memory: Any = None, attend: Any = None
    ) -> mx.array:
        def body(weights: dict, key: mx.array, x: mx.array, masks: list[mx.array], memory: list) -> mx.array:
            token = _key.set(mx.stop_gradient(key))
            layer.update(weights)
            try:
                return layer(x, masks[0] if masks else mask, **options, memory=memory[0] if memory else None)
            finally:
                _key.reset(token)

        options = {name: value for name, value in {"update_cache": update_cache, "attend": attend}.items() if value}
        key = mx.stop_gradient(mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32))
        masks = [] if isinstance(mask, str) else [mask]
        return mx.checkpoint(body)(layer.trainable_parameters(), key, x, masks, [] if memory is None else [memory])

    return run
