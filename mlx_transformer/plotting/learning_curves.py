"""The logs of training runs, read back as curves."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_transformer.training.run_directory import RunDirectory

Log = list[dict[str, Any]]
Point = tuple[float, float]  # a step and a value


def read_log(folder: str | Path) -> Log:
    """The entries of a run's log; the run may still be going on.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If it holds no losses yet.
    """
    run = RunDirectory(folder)
    if not run.log.is_file():
        raise FileNotFoundError(f"A run must have a log: there is no {run.log}; give the --output of a training.")
    log = run.entries()
    if not any(curve(log, event, "loss") for event in ("step", "validation")):
        raise ValueError(f"A log must hold losses: {run.log} has none yet; wait for the first steps of the run.")
    return log


def curve(log: Log, event: str, field: str) -> list[Point]:
    """Steps and values of a field of an event, sorted; of a step that was done twice, the last."""
    found: Iterator[tuple[Any, Any]] = ((e.get("step"), e.get(field)) for e in log if e.get("event") == event)
    return sorted({step: value for step, value in found if is_number(step) and is_number(value)}.items())


def best_point(log: Log, field: str) -> Point | None:
    """The step and value of a field at the last validation whose model was kept as the best, if it has one there."""
    steps = [step for step, best in curve(log, "validation", "best") if best]
    points = dict(curve(log, "validation", field))
    return (steps[-1], points[steps[-1]]) if steps and steps[-1] in points else None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number, or true or false."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def run_names(folders: Sequence[str | Path]) -> list[str]:
    """What to call runs: by their folders, or by their paths where two folders have one name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]
