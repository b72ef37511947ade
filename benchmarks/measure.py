"""Measuring: what a call takes, what other programs took meanwhile, calls of several systems in turn, goals, tables."""

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import mlx.core as mx

FOREIGN = 0.10  # share of all cores' time: a call beside which other programs took more is discarded
PAUSE = 0.1  # seconds before a call, in which the threads of the system before it stop waiting busily


class Sample(NamedTuple):
    """One call.

    Attributes:
        seconds: How long it took.
        foreign: The share of all cores' time that other programs took meanwhile; None where the system does not tell.
    """

    seconds: float
    foreign: float | None


class Timing(NamedTuple):
    """Calls of one system, in seconds.

    Attributes:
        median: Of the calls that count.
        least: Of them.
        most: Of them.
        counted: How many count.
        discarded: How many do not.
    """

    median: float
    least: float
    most: float
    counted: int
    discarded: int


class Goal(NamedTuple):
    """A figure that was set before it was measured.

    Attributes:
        name: What is measured.
        figure: What it came to; None where it could not be measured.
        goal: What it must reach; None where there is only an aim.
        aim: What it should.
        lower: Whether less is better.
    """

    name: str
    figure: float | None
    goal: float | None
    aim: float
    lower: bool = False

    def reached(self, bar: float | None) -> str:
        """Whether the figure is as good as a bar."""
        if bar is None:
            return "-"
        if self.figure is None:
            return "not measured"
        return "yes" if (self.figure <= bar if self.lower else self.figure >= bar) else "no"


def busy() -> tuple[float, float] | None:
    """Seconds that all programs took of all cores since the machine started, and that there were."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, idle, wait, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    taken = user + nice + system + irq + softirq + steal
    ticks = os.sysconf("SC_CLK_TCK")
    return taken / ticks, (taken + idle + wait) / ticks


def own() -> float:
    """Seconds that this program and its finished children took of all cores."""
    return sum(os.times()[:4])


def timed(call: Callable[[], Any]) -> tuple[Any, Sample]:
    """What a call returns, and what it took."""
    time.sleep(PAUSE)
    before, mine, started = busy(), own(), time.perf_counter()
    result = call()
    seconds, mine, after = time.perf_counter() - started, own() - mine, busy()
    if before is None or after is None or after[1] == before[1]:
        return result, Sample(seconds, None)
    foreign = (after[0] - before[0] - mine) / (after[1] - before[1])
    return result, Sample(seconds, max(0.0, foreign))


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Sample]]:
    """Samples of each call; they take turns, so that a change of the machine meets all of them.

    Where calls were disturbed there are more rounds, up to as many again.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for number in range(2 * repeats):
        if number >= repeats and all(sum(map(undisturbed, taken)) >= repeats for taken in samples.values()):
            break
        for name, call in calls.items():
            samples[name].append(timed(call)[1])
    return samples


def undisturbed(sample: Sample) -> bool:
    """Whether other programs took little meanwhile, as far as the system tells."""
    return sample.foreign is None or sample.foreign <= FOREIGN


def summary(samples: list[Sample]) -> Timing:
    """The calls that were not disturbed; all of them where fewer than two were not, or less than a quarter."""
    clean = [sample for sample in samples if undisturbed(sample)]
    kept = clean if len(clean) >= max(min(2, len(samples)), len(samples) / 4) else samples
    seconds = [sample.seconds for sample in kept]
    return Timing(median(seconds), min(seconds), max(seconds), len(kept), len(samples) - len(kept))


def greatest_foreign(samples: Iterable[Sample]) -> str:
    """The largest share that other programs took, for a reader."""
    shares = [sample.foreign for sample in samples if sample.foreign is not None]
    return f"{max(shares):.0%}" if shares else "not known"


def set_device(name: str) -> None:
    """Compute on the "cpu" or the "gpu"."""
    device = mx.gpu if name == "gpu" else mx.cpu
    if not mx.is_available(device):
        raise click.ClickException("MLX finds no GPU here: leave --device gpu out.")
    mx.set_default_device(device)


def set_threads(count: int) -> None:
    """As many threads for the BLAS that MLX's Linux CPU back end calls, where it is one that can be told."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(count)  # for programs started from here, and for the line of conditions
    try:
        ctypes.CDLL(None).openblas_set_num_threads(count)
    except (AttributeError, OSError):
        return


def table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def bar(value: float | None, lower: bool) -> str:
    """What a figure must reach, for a reader."""
    return "-" if value is None else f"{'<=' if lower else '>='} {value:g}"


def goals_table(goals: list[Goal]) -> str:
    """Each goal, its figure, and whether it is reached."""
    rows = [
        (
            goal.name,
            "-" if goal.figure is None else f"{goal.figure:.2f}",
            bar(goal.goal, goal.lower),
            goal.reached(goal.goal),
            bar(goal.aim, goal.lower),
            goal.reached(goal.aim),
        )
        for goal in goals
    ]
    return table(["goal", "figure", "goal", "reached", "aim", "reached"], rows)
