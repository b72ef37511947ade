"""Compiled functions of a model, with its weights as inputs; any number of threads may call them."""

import copy
import functools
import logging
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_transformer.storage import kernel_cache

logger = logging.getLogger(__name__)

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
        compiled = functions.pop(key, None) or mx.compile(_with_weights_as_input(model, function, options))
        if len(functions) == MAX_COMPILED:
            del functions[next(iter(functions))]  # the least recently used
        functions[key] = compiled
        return compiled


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


def check_kernel_cache() -> None:
    """Turn compilation off, with a warning, if other users could put kernels where MLX loads them."""
    if sys.platform == "linux" and "MLX_DISABLE_COMPILE" not in os.environ:
        _check_temporary_folder(kernel_cache.temporary_folder())


@functools.cache
def _check_temporary_folder(folder: Path) -> None:
    if risk := kernel_cache.find_risk(folder):
        mx.disable_compile()  # for the whole process, because MLX also compiles functions of its own, such as nn.gelu
        logger.warning(
            "Functions are not compiled, which is slower, because %s: set TMPDIR to a folder to which only you can "
            "write before the first model is made.",
            risk,
        )


def describe_compilation_error(error: RuntimeError) -> str | None:
    """Return one line for an error of MLX's compilation for the CPU, such as a full disk; None for other errors."""
    message = str(error)
    if "[Compile::eval_cpu]" not in message and "Could not load C++ shared library" not in message:
        return None
    reason = re.search(r"^.*(?:error|failed): .*", message, re.MULTILINE) or re.search(r".*\Z", message)
    return (
        f"MLX cannot compile functions in {kernel_cache.temporary_folder() / 'mlx'}: {reason and reason[0]}. Free disk "
        "space, set TMPDIR to another folder, or set MLX_DISABLE_COMPILE=1."
    )
