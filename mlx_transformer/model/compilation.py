"""What keeps a model whole while its functions are traced, and keeps the traces."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

MAX_COMPILED = 32  # functions that a model keeps the traces of


def restore_weights_on_error(model: nn.Module, function: Callable) -> Callable:
    """A compiled function that gives the model its weights back if tracing breaks off, which leaves placeholders."""
    weights = tree_map(lambda array: array, model.parameters())

    def guard(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException:
            model.update(weights)
            raise

    return guard


def compile_with_weights(
    model: nn.Module, kept: dict[Any, Callable], function: Callable, options: tuple[Any, ...]
) -> Callable:
    """`function(model, *options, ...)` under `mx.compile`; `kept` holds those of earlier calls."""
    key = (function, options, model.training)
    if key not in kept:
        if len(kept) == MAX_COMPILED:
            del kept[next(iter(kept))]  # the oldest
        kept[key] = mx.compile(functools.partial(function, model, *options), inputs=[model.state])
    return restore_weights_on_error(model, kept[key])
