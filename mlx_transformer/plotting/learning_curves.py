"""Learning curves: loss and validation metrics of training runs by step."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mlx_transformer.plotting.figures import DPI
from mlx_transformer.plotting.fonts import render_labels, text_width
from mlx_transformer.training.run_directory import RunDirectory

Log = list[dict[str, Any]]
Point = tuple[float, float]  # a step and a value

LOSS = "loss (nats per token)"
# Panel title -> the log field that it shows, and the log events that have it.
PANELS = {
    LOSS: ("loss", ("step", "validation")),
    "BLEU": ("bleu", ("validation",)),
    "chrF": ("chrf", ("validation",)),
    "learning rate": ("learning_rate", ("step",)),
}
MAX_SCORES = {"BLEU": 100, "chrF": 100}
MIN_SPANS = {LOSS: 0.5, "BLEU": 5.0, "chrF": 5.0}  # of a vertical axis, so that noise does not look like change
MAX_NUMBER = 1e30  # far above any loss; matplotlib overflows near the largest float
PANEL_SIZE = (3.1, 2.1)  # inches
# Distinguishable with colour vision deficiency (Okabe and Ito 2008, Color Universal Design).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")  # one for every len(COLOURS) runs
LINE_PROPERTIES: dict[str, dict[str, Any]] = {
    "step": {"linewidth": 0.9, "alpha": 0.55, "zorder": 2},
    "validation": {"linewidth": 1.4, "marker": "o", "markersize": 2.5, "zorder": 3},
    "best": {"linestyle": "none", "marker": "*", "markersize": 10, "markeredgecolor": "white", "zorder": 4},
}


def plot_learning_curves(runs: str | Path | Sequence[str | Path]) -> Figure:
    """Plot loss, BLEU, chrF and learning rate of training runs by step, one panel for each.

    The training loss includes label smoothing; the validation loss does not. A star marks the best validation, whose
    model was kept.

    Args:
        runs: One run folder, or several; a run may still be in progress.

    Returns:
        The figure; `figure.savefig("curves.svg")` writes it.

    Raises:
        FileNotFoundError: If a folder has no log.jsonl.
        ValueError: If a log has no losses yet.
    """
    runs = [runs] if isinstance(runs, str | os.PathLike) else runs
    logs = [read_log(run) for run in runs]
    titles = [
        title for title, (field, events) in PANELS.items() if any(curve(log, e, field) for log in logs for e in events)
    ]
    columns = min(2, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows + 0.4), dpi=DPI, layout="constrained")
    for index, title in enumerate(titles, start=1):
        axes = figure.add_subplot(rows, columns, index, sharex=figure.axes[0] if figure.axes else None)
        for number, log in enumerate(logs):
            _draw_curve(axes, log, *PANELS[title], line_style(number))
        _format_axes(axes, title, "step" if index > len(titles) - columns else "")
    _add_legend(figure, logs, run_names(runs))
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Return colour and line style of a run."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
    }


def _draw_curve(axes: Axes, log: Log, field: str, events: tuple[str, ...], style: dict[str, Any]) -> None:
    """Draw the curves of a run, with a star at the best validation."""
    for event in events:
        points = curve(log, event, field)
        axes.plot([step for step, _ in points], [value for _, value in points], **style | LINE_PROPERTIES[event])
    if best := best_point(log, field):
        axes.plot(*best, **style | LINE_PROPERTIES["best"])


def _format_axes(axes: Axes, title: str, label: str) -> None:
    """Set title, ticks and grid; losses over a wide range get a logarithmic scale."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = axes.dataLim.intervaly
    is_logarithmic = title == LOSS and 0 < 4 * low < high
    if not is_logarithmic and (missing := MIN_SPANS.get(title, 0) - (high - low)) > 0:
        axes.set_ylim(max(0, low - missing / 2), high + missing / 2)
    if title in MAX_SCORES:  # the axis may end above, with room for the star
        bottom, top = axes.get_ylim()
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(top, MAX_SCORES[title])])
    if is_logarithmic:
        axes.set_yscale("log")
        subs = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3) if high < 1000 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _add_legend(figure: Figure, logs: Sequence[Log], names: list[str]) -> None:
    """Add a legend of runs and kinds of lines above the panels."""
    texts, families = render_labels(names, max_length=60)
    runs = [Line2D([], [], linewidth=2.5, **line_style(number)) for number in range(len(names))]
    validated = any(curve(log, "validation", "loss") for log in logs)
    training = "training, with label smoothing" if any(map(has_label_smoothing, logs)) else "training"
    kinds = {training: "step"} | ({"validation": "validation", "best validation": "best"} if validated else {})
    grey = [Line2D([], [], **{"color": "0.3"} | LINE_PROPERTIES[kind]) for kind in kinds.values()]
    labels = [*texts, *kinds]
    line_length = int(figure.get_figwidth() * 15)  # characters
    legend = figure.legend(
        handles=runs + grey,
        labels=labels,
        loc="outside upper left",
        ncols=max(1, min(len(labels), line_length // (max(map(text_width, labels)) + 7))),
        prop={"family": families, "size": 9},
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def read_log(folder: str | Path) -> Log:
    """Read the entries of a run's log; the run may still be in progress.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If it has no losses yet.
    """
    run = RunDirectory(folder)
    if not run.log_file.is_file():
        raise FileNotFoundError(
            f"A run must have a log, but there is no {run.log_file}: give the folder that `train --output` named."
        )
    log = run.log_entries()
    if not any(curve(log, event, "loss") for event in ("step", "validation")):
        raise ValueError(
            f"A log must hold losses, but {run.log_file} has none yet: wait for the first steps of the run."
        )
    return log


def has_label_smoothing(log: Log) -> bool:
    """Whether the training losses of a log include label smoothing."""
    configs = (entry.get("config") for entry in log)
    return any(isinstance(config, dict) and bool(config.get("label_smoothing")) for config in configs)


def curve(log: Log, event: str, field: str) -> list[Point]:
    """Return steps and values of a field of an event, sorted; a repeated step keeps the last value."""
    points: Iterator[tuple[Any, Any]] = ((e.get("step"), e.get(field)) for e in log if e.get("event") == event)
    return sorted({step: value for step, value in points if is_number(step) and is_number(value)}.items())


def best_point(log: Log, field: str) -> Point | None:
    """Return step and value of a field at the best validation, if it has one there."""
    steps = [step for step, best in curve(log, "validation", "best") if best]
    points = dict(curve(log, "validation", field))
    return (steps[-1], points[steps[-1]]) if steps and steps[-1] in points else None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that can be drawn, or a boolean."""
    return isinstance(value, (int, float)) and -MAX_NUMBER < value < MAX_NUMBER


def run_names(folders: Sequence[str | Path]) -> list[str]:
    """Name runs by their folders, or by their paths if two folders have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]
