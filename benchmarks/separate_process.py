"""A system in a process of its own, where it computes as it does alone.

In one process the BLAS that is loaded for MLX replaces that of torch and CTranslate2, and their OpenMP threads, which
spin for a while after each product, slow each other down.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np

from mlx_transformer.blas import VARIABLE

_systems: list[Any] = []  # of this process


def start_system(construct: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, bool]:
    """Construct the system of this process; return its attributes `name` and `exact`."""
    _systems.append(construct(*arguments))
    return _systems[0].name, _systems[0].exact


def call_system(method: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method of the system of this process."""
    return getattr(_systems[0], method)(*arguments)


class SeparateSystem:
    """A system (`peers.System`) in a process of its own, without a BLAS from outside."""

    def __init__(self, construct: Callable[..., Any], *arguments: Any) -> None:
        self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with patch.dict(os.environ, {VARIABLE: "none"}):
            os.environ.pop("LD_PRELOAD", None)
            self.name, self.exact = self._executor.submit(start_system, construct, arguments).result()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._executor.submit(call_system, method, arguments).result()

    def supports(self, beams: int, batch: int) -> bool:
        """See `peers.System`."""
        return bool(self._call("supports", beams, batch))

    def generate(self, source: np.ndarray, beams: int, tokens: int) -> list[list[int]]:
        """See `peers.System`."""
        ids: list[list[int]] = self._call("generate", source, beams, tokens)
        return ids

    def token_timestamps(self, source: np.ndarray, tokens: int) -> dict[int, float]:
        """See `peers.System`."""
        timestamps: dict[int, float] = self._call("token_timestamps", source, tokens)
        return timestamps
