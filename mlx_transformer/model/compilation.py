"""Compiled functions of a model, with its weights as inputs; any number of threads may call them."""

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

MAX_COMPILED = 32  # compiled functions kept per model and thread


class CompiledFunctions:
    """The compiled functions of one model, kept from call to call.

    Each thread compiles for itself: MLX keeps the traces of a compiled function per thread, and frees those of the last
    caller only. Copies of a model compile anew.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, model: nn.Module, function: Callable, options: tuple[Any, ...]) -> Callable:
        """Return the function of weights and arguments that calls `function(model, *options, *arguments)`."""
        functions: dict[Any, Callable] = self._local.__dict__.setdefault("functions", {})
        key = (function, options, model.training)
        if key not in functions:
            if len(functions) == MAX_COMPILED:
                del functions[next(iter(functions))]  # the oldest
            functions[key] = mx.compile(_with_weights_as_input(model, function, options))
        return functions[key]


def _with_weights_as_input(model: nn.Module, function: Callable, options: tuple[Any, ...]) -> Callable:
    reference = weakref.ref(model)  # compiled functions do not keep a model alive

    def run(weights: Any, *arguments: Any) -> Any:
        # Tracing sees a copy, so that the model never holds placeholders: other threads may be using it.
        return function(with_arrays(reference(), weights), *options, *arguments)

    return run


def with_arrays(tree: Any, arrays: Any) -> Any:
    """Return a copy of a module, or of a tree of modules, that holds the arrays of another tree."""
    if isinstance(tree, list):
        return [with_arrays(*pair) for pair in zip(tree, arrays, strict=True)]
    if isinstance(tree, dict):  # modules are dicts
        clone = copy.copy(tree)
        for name, child in tree.items():
            clone[name] = with_arrays(child, arrays[name])
        return clone
    return arrays
