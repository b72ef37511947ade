"""Where the time of a decode step goes: building its graph, handing it to the device, waiting for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from benchmarks.peers import Ours
from mlx_transformer.decoding import running_search

FIRST_STEP = 5  # the first step measured: the encoder runs before it
MIN_TOKENS = FIRST_STEP + running_search.STEPS_PER_STOP_TEST + 1


class Timestamps(NamedTuple):
    """Times of the steps of a search, in seconds.

    Attributes:
        issued: When the graph of each step was built and given to MLX.
        returned: When MLX returned.
        waits: How long the host then waited for the device before it built the next step.
    """

    issued: list[float]
    returned: list[float]
    waits: list[float]


@contextmanager
def record_steps(wait: bool) -> Iterator[Timestamps]:
    """Yield the times of the steps of a search in the block.

    Args:
        wait: Whether to wait for the end of each step, so that it runs alone; a search works ahead of the device.
    """
    times = Timestamps([], [], [])
    issue, read = mx.eval if wait else mx.async_eval, running_search.to_host

    def timed_issue(*arrays: Any) -> None:
        times.issued.append(perf_counter())
        issue(*arrays)
        times.returned.append(perf_counter())
        times.waits.append(0.0)

    def timed_read(*arrays: mx.array) -> list[np.ndarray]:
        started = perf_counter()
        result = read(*arrays)
        times.waits[-1] += perf_counter() - started
        return result

    with patch.object(mx, "async_eval", timed_issue), patch.object(running_search, "to_host", timed_read):
        yield times


def milliseconds_per_step(times: Timestamps) -> dict[str, float]:
    """Return the mean milliseconds of a step: their sum, "wall", and its parts "build", "issue" and "wait".

    Raises:
        ValueError: If there are fewer steps than `MIN_TOKENS`.
    """
    if len(times.issued) < MIN_TOKENS:
        raise ValueError(f"A profile needs at least {MIN_TOKENS} steps: there are {len(times.issued)}.")
    issued, returned, waits = (np.array(values[FIRST_STEP:]) for values in times)
    steps = slice(0, (len(issued) - 1) // running_search.STEPS_PER_STOP_TEST * running_search.STEPS_PER_STOP_TEST)
    parts = {
        "wall": np.diff(issued),
        "build": issued[1:] - returned[:-1] - waits[:-1],
        "issue": (returned - issued)[:-1],
        "wait": waits[:-1],
    }
    return {name: 1e3 * float(values[steps].mean()) for name, values in parts.items()}


def profile_steps(system: Ours, source: np.ndarray, beams: int, tokens: int, repeats: int) -> dict[str, float]:
    """Measure where the time of a decode step goes, in milliseconds.

    Args:
        system: Our system.
        source: Token ids, int32 (batch, length).
        beams: Beam size.
        tokens: New tokens of each output, at least `MIN_TOKENS`.
        repeats: Searches of each kind, whose median counts.

    Returns:
        "wall" and its parts (see `milliseconds_per_step`), the time of the "evaluation" of a step that runs alone, and
        the "gap" between both: what the device waits for the host, or, if negative, what they gain by overlapping.
    """
    system.generate(source, beams, tokens)  # warm up: trace and compile
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(repeats):
        for wait, taken in runs.items():
            with record_steps(wait) as times:
                system.generate(source, beams, tokens)
            taken.append(milliseconds_per_step(times))
    profile = {name: median(run[name] for run in runs[False]) for name in runs[False][0]}
    profile["evaluation"] = median(run["issue"] for run in runs[True])
    return profile | {"gap": profile["wall"] - profile["evaluation"]}
