"""Compiled functions of a model: kept from call to call, and safe if tracing fails."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

MAX_COMPILED = 32  # compiled functions kept per model


def restore_weights_on_error(model: nn.Module, function: Callable) -> Callable:
    """Wrap a compiled function so that the model keeps its weights if tracing fails, which leaves placeholders."""
    weights = tree_map(lambda array: array, model.parameters())

    def wrapper(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException:
            model.update(weights)
            raise

    return wrapper


def compile_with_weights(
    model: nn.Module, cache: dict[Any, Callable], function: Callable, options: tuple[Any, ...]
) -> Callable:
    """Compile `function(model, *options, ...)` with the model's weights as inputs.

    Args:
        model: The model; later updates of its weights are seen.
        cache: Compiled functions of earlier calls; updated in place.
        function: The function.
        options: Its constant arguments; each combination is traced separately.
    """
    key = (function, options, model.training)
    if key not in cache:
        if len(cache) == MAX_COMPILED:
            del cache[next(iter(cache))]  # the oldest
        cache[key] = mx.compile(functools.partial(function, model, *options), inputs=[model.state])
    return restore_weights_on_error(model, cache[key])
