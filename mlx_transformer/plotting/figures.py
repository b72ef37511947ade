"""Pictures, drawn by matplotlib: learning curves of training runs, and attention weights.

Without matplotlib importing this file raises ValueError.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.inference.attention_weights import AttentionWeights, attention
from mlx_transformer.metrics import INSTALL_HINT
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.plotting.learning_curves import Log, best_point, curve, read_log, run_names
from mlx_transformer.tokenization.tokenizer import Tokenizer

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    from mlx_transformer.plotting.fonts import piece_labels, render_labels, text_width
except ModuleNotFoundError as error:
    raise ValueError(f"Pictures need matplotlib, which is not installed: {INSTALL_HINT}.") from error

FORMATS = (".png", ".svg", ".pdf")
DPI = 200

LOSS = "loss, nats a token"
# Title of a panel -> the field of the log that it shows, and the events that have it.
PANELS = {
    LOSS: ("loss", ("step", "validation")),
    "BLEU": ("bleu", ("validation",)),
    "chrF": ("chrf", ("validation",)),
    "learning rate": ("learning_rate", ("step",)),
}
PANEL = (3.1, 2.1)  # inches
# Told apart by readers who see colours otherwise (Okabe and Ito 2008, Color Universal Design).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
LINES = ("-", "--", ":", "-.")  # for the first runs, for as many more, and so on
LOOKS: dict[str, dict[str, Any]] = {
    "step": {"linewidth": 0.9, "alpha": 0.55, "zorder": 2},
    "validation": {"linewidth": 1.4, "marker": "o", "markersize": 2.5, "zorder": 3},
    "best": {"linestyle": "none", "marker": "*", "markersize": 10, "markeredgecolor": "white", "zorder": 4},
}

# Kind of attention -> what it is called, and what its rows (queries) and columns (keys) are.
ATTENTION_KINDS = {
    "encoder": ("encoder self-attention", "source", "source"),
    "cross": ("cross-attention", "target", "source"),
    "decoder": ("decoder self-attention", "target", "target so far"),
}
CELL = (0.08, 0.2)  # inches of a token, at least and at most; what is around the cells shrinks with them
ROOM = 24  # inches that a picture grows to before cells shrink
MOST = 50  # inches of a picture, which takes some 400 MB to draw
ABREAST = 4  # panels
MANY = 10_000  # cells of a panel, which .svg and .pdf then hold as an image, not one by one
TICKS = (0, 0.05, 0.2, 0.5, 1)


class AttentionPanel(NamedTuple):
    """A matrix of attention weights.

    Attributes:
        kind: A key of KINDS.
        title: Its layer and head.
        weights: (queries, keys).
    """

    kind: str
    title: str
    weights: np.ndarray


def check_format(path: str | Path) -> None:
    """Say early that a file cannot be written.

    Raises:
        ValueError: If its name does not end in one of FORMATS.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"The name of a picture must end in one of {', '.join(FORMATS)}: {path} does not.")


def save(figure: Figure, path: str | Path) -> None:
    """Write a picture into a file that is there whole or as it was; the ending of its name says how.

    Raises:
        ValueError: If the name does not end in one of FORMATS.
        OSError: If the file cannot be written.
    """
    check_format(path)
    path = Path(path).resolve()
    new = path.with_name(f".{path.name}.new")
    try:
        figure.savefig(new, format=path.suffix.lower()[1:], dpi=DPI, bbox_inches="tight")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def learning_curves(runs: Sequence[str | Path]) -> Figure:
    """Losses, BLEU, chrF and learning rate of training runs by step: a panel for each that a run has.

    The training loss contains label smoothing, the validation loss does not. A star marks the validation whose model
    was kept as the best.

    Args:
        runs: Folders of runs, at least one; a run may still be going on.

    Raises:
        FileNotFoundError: If a folder has no log.jsonl.
        ValueError: If that holds no losses yet.
    """
    logs = [read_log(run) for run in runs]
    titles = [
        title for title, (field, events) in PANELS.items() if any(curve(log, e, field) for log in logs for e in events)
    ]
    columns = min(2, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    for place, title in enumerate(titles, start=1):
        axes = figure.add_subplot(rows, columns, place, sharex=figure.axes[0] if figure.axes else None)
        for number, log in enumerate(logs):
            _draw_curve(axes, log, *PANELS[title], line_style(number))
        _format_axes(axes, title, "step" if place > len(titles) - columns else "")
    _add_legend(figure, logs, run_names(runs))
    return figure


def line_style(number: int) -> dict[str, Any]:
    """How the lines of one run differ from those of others."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def _draw_curve(axes: Axes, log: Log, field: str, events: tuple[str, ...], own: dict[str, Any]) -> None:
    """The curves of a run in a panel, with a star on the validation that was kept as the best."""
    for event in events:
        points = curve(log, event, field)
        axes.plot([step for step, _ in points], [value for _, value in points], **own | LOOKS[event])
    if best := best_point(log, field):
        axes.plot(*best, **own | LOOKS["best"])


def _format_axes(axes: Axes, title: str, label: str) -> None:
    """Title, ticks and grid of a panel of curves; values that lie far apart on a logarithmic scale."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = axes.dataLim.intervaly
    if title == LOSS and 0 < 4 * low < high:
        axes.set_yscale("log")
        subs = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3) if high < 1000 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _add_legend(figure: Figure, logs: Sequence[Log], names: list[str]) -> None:
    """The runs by colour, then what the kinds of lines are, above all panels."""
    texts, families = render_labels(names, longest=60)
    runs = [Line2D([], [], linewidth=2.5, **line_style(number)) for number in range(len(names))]
    validated = any(curve(log, "validation", "loss") for log in logs)
    kinds = {"training": "step"} | ({"validation": "validation", "best validation": "best"} if validated else {})
    grey = [Line2D([], [], **{"color": "0.3"} | LOOKS[kind]) for kind in kinds.values()]
    labels = [*texts, *kinds]
    room = int(figure.get_figwidth() * 15)  # letters of a line
    legend = figure.legend(
        handles=runs + grey,
        labels=labels,
        loc="outside upper left",
        ncols=max(1, min(len(labels), room // (max(map(text_width, labels)) + 7))),
        prop={"family": families, "size": 9},
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def attention_figure(
    model: Transformer,
    tokenizer: Tokenizer,
    source: Sequence[int],
    target: Sequence[int],
    kinds: Sequence[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
) -> Figure:
    """The attention weights of one teacher-forced pass, a panel for each kind, layer and head.

    A row is a query and a column a key. A row of the target is the token that the decoder predicts there, its columns
    are the tokens that it has read by then.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        source: The ids of a source.
        target: The ids of its target, beginning with the decoder's first input; the last one is only predicted.
        kinds: Which of KINDS; none for all.
        layers: Which layers, from 0; none for the last one.
        heads: Which heads, from 0; none for the mean of all.

    Raises:
        ValueError: If there is no such kind, layer or head, or the picture would be too large.
    """
    if unknown := [kind for kind in kinds if kind not in ATTENTION_KINDS]:
        raise ValueError(f"Kinds of attention are {', '.join(ATTENTION_KINDS)}: {unknown[0]!r} is none.")
    weights = attention(model, mx.array([source], mx.int32), mx.array([target[:-1]], mx.int32))
    chosen = [kind for kind in ATTENTION_KINDS if kind in (kinds or ATTENTION_KINDS)]
    rows = arrange_panels([panel for kind in chosen for panel in select_panels(weights, kind, layers, heads)])
    texts, families = render_labels(
        piece_labels(tokenizer.source, source) + piece_labels(tokenizer.target, target), longest=24
    )
    read, written = texts[: len(source)], texts[len(source) :]
    labels = {"source": read, "target": written[1:], "target so far": written[:-1]}
    return _draw_panel_grid(rows, labels, 0.4 * max(map(text_width, texts)) + 2, families)


def select_panels(
    weights: AttentionWeights, kind: str, layers: Sequence[int], heads: Sequence[int]
) -> Iterator[AttentionPanel]:
    """The panels of a kind of attention; ValueError if it has no such layer or head."""
    stack = weights._asdict()[kind]
    for layer in layers or [len(stack) - 1]:
        check_number("layer", kind, layer, len(stack))
        matrices = np.array(stack[layer][0])
        if not heads:
            yield AttentionPanel(kind, f"layer {layer}, mean of heads", matrices.mean(axis=0))
        for head in heads:
            check_number("head", kind, head, len(matrices))
            yield AttentionPanel(kind, f"layer {layer}, head {head}", matrices[head])


def check_number(name: str, kind: str, number: int, count: int) -> None:
    """Refuse a layer or head that a model does not have."""
    if not 0 <= number < count:
        raise ValueError(f"A {name} of {ATTENTION_KINDS[kind][0]} must be one of 0 to {count - 1}: {number} is none.")


def arrange_panels(found: Sequence[AttentionPanel]) -> list[list[AttentionPanel]]:
    """Rows of panels: those that have the same queries stand abreast."""
    groups = [
        [panel for panel in found if ATTENTION_KINDS[panel.kind][1] == queries] for queries in ("source", "target")
    ]
    return [group[i : i + ABREAST] for group in groups for i in range(0, len(group), ABREAST)]


def cell_size(across: float, down: float) -> float:
    """Inches of a cell of a picture that is so many cells wide and high; ValueError if it is too large."""
    least, most = CELL
    if max(across, down) * least > MOST:
        raise ValueError(
            f"A picture has room for {MOST / least:.0f} tokens, labels and gaps, across and down: it would need "
            f"{across:.0f} and {down:.0f}; choose fewer kinds, layers or heads, or a shorter text."
        )
    return min(most, max(least, ROOM / max(across, down)))


def _draw_panel_grid(
    rows: list[list[AttentionPanel]], labels: dict[str, list[str]], margin: float, families: list[str]
) -> Figure:
    """Rows of panels of which all cells have one size; the margin for labels, left and above, is in cells, too."""
    widths = [max(9, *(panel.weights.shape[1] for panel in column if panel)) + margin for column in zip_longest(*rows)]
    heights = [max(panel.weights.shape[0] for panel in row) + margin + 3 for row in rows]
    across, down = sum(widths) + 1, sum(heights) + 4
    cell = cell_size(across, down)
    letters: dict[str, Any] = {"family": families, "size": 0.62 * 72 * cell}
    figure = Figure(figsize=(across * cell, down * cell))
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            queries, keys = panel.weights.shape
            left, bottom = sum(widths[:j]) + margin, down - sum(heights[:i]) - margin - 3 - queries
            axes = figure.add_axes((left / across, bottom / down, keys / across, queries / down))
            mesh = _draw_panel(axes, panel, labels, letters)
    bar = figure.add_axes((margin / across, 2.4 / down, 9 / across, 0.5 / down))
    figure.colorbar(mesh, bar, orientation="horizontal", ticks=TICKS, format="%g").outline.set_visible(False)
    bar.tick_params(labelsize=letters["size"])
    bar.set_xlabel("attention weight", color="0.4", **letters)
    return figure


def _draw_panel(axes: Axes, panel: AttentionPanel, labels: dict[str, list[str]], letters: dict[str, Any]) -> QuadMesh:
    """A matrix as coloured cells, dark where attention is high; grey where the decoder cannot look yet."""
    name, rows, columns = ATTENTION_KINDS[panel.kind]
    queries, keys = panel.weights.shape
    mesh = axes.pcolormesh(
        np.ma.masked_where(np.triu(np.full((queries, keys), panel.kind == "decoder"), 1), panel.weights),
        cmap=colormaps["Blues"].with_extremes(bad="0.93"),
        norm=PowerNorm(0.5, 0, 1),  # shows differences of small weights, of which there are most
        edgecolors="white",
        linewidth=0.045 * letters["size"],
        rasterized=panel.weights.size > MANY,
    )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(queries) + 0.5, labels[rows], parse_math=False, **letters)
    axes.set_xticks(np.arange(keys) + 0.5, labels[columns], parse_math=False, rotation=90, **letters)
    axes.tick_params(length=0, pad=0.25 * letters["size"], labeltop=True, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(columns, color="0.4", **letters)
    axes.set_ylabel(rows, color="0.4", **letters)
    axes.set_title(f"{name}\n{panel.title}", loc="left", **letters | {"size": 1.1 * letters["size"]})
    axes.spines[:].set_visible(False)
    return mesh
