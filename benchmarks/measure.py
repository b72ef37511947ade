"""Timing of calls with a check for other load on the machine, goals, and Markdown tables of results."""

import ctypes
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import mlx.core as mx

MAX_OTHER_LOAD = 0.10  # share of all cores' time; calls during which other programs used more are discarded
SETTLE_SECONDS = 0.1  # pause before a call, until worker threads of the previous system stop spinning


class Sample(NamedTuple):
    """The measurement of one call.

    Attributes:
        seconds: Wall-clock time.
        other_load: Share of all cores' time that other programs used during the call; None if unavailable.
    """

    seconds: float
    other_load: float | None


class Timing(NamedTuple):
    """Summary of the calls of one system; times in seconds.

    Attributes:
        median: Median time.
        fastest: Shortest time.
        slowest: Longest time.
        calls: Number of calls that count.
        discarded: Number of calls discarded because of other load.
    """

    median: float
    fastest: float
    slowest: float
    calls: int
    discarded: int


class Goal(NamedTuple):
    """A measured figure and the thresholds that were set before the measurement.

    Attributes:
        name: Name of the figure.
        figure: Measured value; None if it could not be measured.
        goal: Threshold that must be reached; None if there is only an aim.
        aim: Threshold that should be reached.
        lower: Whether lower is better.
    """

    name: str
    figure: float | None
    goal: float | None
    aim: float
    lower: bool = False

    def reached(self, threshold: float | None) -> str:
        """Return "yes", "no", "not measured", or "-" if there is no threshold."""
        if threshold is None:
            return "-"
        if self.figure is None:
            return "not measured"
        return "yes" if (self.figure <= threshold if self.lower else self.figure >= threshold) else "no"


@dataclass(frozen=True)
class Result:
    """The result of one part of a benchmark.

    Attributes:
        text: Tables and notes in Markdown.
        goals: Goals of the part.
        data: The same figures as plain data.
    """

    text: str
    goals: list[Goal]
    data: Any


def system_cpu_seconds() -> tuple[float, float] | None:
    """Return the busy and the total CPU seconds of all cores since boot; None if unavailable."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, idle, wait, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    ticks = os.sysconf("SC_CLK_TCK")
    return busy / ticks, (busy + idle + wait) / ticks


def process_cpu_seconds() -> float:
    """Return the CPU seconds used by this process and its children."""
    seconds = sum(os.times()[:4])  # of children only those that have ended
    for child in multiprocessing.active_children():
        with suppress(OSError):  # it has ended, or the system has no /proc
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def time_call(call: Callable[[], Any]) -> tuple[Any, Sample]:
    """Call a function; return its result and the measurement."""
    time.sleep(SETTLE_SECONDS)
    before, process_before, started = system_cpu_seconds(), process_cpu_seconds(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    used, after = process_cpu_seconds() - process_before, system_cpu_seconds()
    if before is None or after is None or after[1] == before[1]:
        return result, Sample(seconds, None)
    other_load = (after[0] - before[0] - used) / (after[1] - before[1])
    return result, Sample(seconds, max(0.0, other_load))


def interleave_calls(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Sample]]:
    """Measure several calls in turn, so that changes of the machine's speed affect all of them.

    Disturbed calls are repeated, up to twice the number of rounds in total.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for round_number in range(2 * repeats):
        enough = all(sum(map(is_undisturbed, taken)) >= repeats for taken in samples.values())
        if round_number >= repeats and enough:
            break
        for name, call in calls.items():
            samples[name].append(time_call(call)[1])
    return samples


def is_undisturbed(sample: Sample) -> bool:
    """Return whether other programs used little CPU time during a call, or whether that is unknown."""
    return sample.other_load is None or sample.other_load <= MAX_OTHER_LOAD


def summarise(samples: list[Sample]) -> Timing:
    """Summarise undisturbed calls, or all calls if fewer than two or fewer than a quarter were undisturbed."""
    clean = [sample for sample in samples if is_undisturbed(sample)]
    counted = clean if len(clean) >= max(min(2, len(samples)), len(samples) / 4) else samples
    seconds = [sample.seconds for sample in counted]
    return Timing(median(seconds), min(seconds), max(seconds), len(counted), len(samples) - len(counted))


def max_other_load(samples: Iterable[Sample]) -> str:
    """Format the largest share of CPU time that other programs used."""
    shares = [sample.other_load for sample in samples if sample.other_load is not None]
    return f"{max(shares):.0%}" if shares else "unknown"


def set_device(name: str) -> None:
    """Select the default device of MLX, "cpu" or "gpu"."""
    device = mx.gpu if name == "gpu" else mx.cpu
    if not mx.is_available(device):
        raise click.ClickException("--device gpu needs a GPU that MLX supports: none was found. Use --device cpu.")
    mx.set_default_device(device)


def set_threads(count: int) -> None:
    """Set the number of threads of OpenBLAS and MKL, if they are loaded."""
    for name, function in ("OPENBLAS", "openblas_set_num_threads"), ("MKL", "MKL_Set_Num_Threads"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)  # for child processes and for the line of conditions
        with suppress(AttributeError):
            ctypes.CDLL(None)[function](count)


def markdown_table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a Markdown table."""
    return "".join(f"{table_row(row)}\n" for row in (header, ["---"] * len(header), *rows))


def table_row(cells: Iterable[object]) -> str:
    """Format a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def format_threshold(value: float | None, lower: bool) -> str:
    """Format a threshold."""
    return "-" if value is None else f"{'<=' if lower else '>='} {value:g}"


def goals_table(goals: list[Goal]) -> str:
    """Format a table of goals with their figures and whether they are reached."""
    rows = [
        (
            goal.name,
            "-" if goal.figure is None else f"{goal.figure:.2f}",
            format_threshold(goal.goal, goal.lower),
            goal.reached(goal.goal),
            format_threshold(goal.aim, goal.lower),
            goal.reached(goal.aim),
        )
        for goal in goals
    ]
    return markdown_table(["goal", "figure", "goal", "reached", "aim", "reached"], rows)
