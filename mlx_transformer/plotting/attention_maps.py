"""Attention maps: attention weights of kinds, layers and heads as heat maps."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mlx_transformer.config.search import SearchConfig, SearchOptions, Unpack
from mlx_transformer.inference.attention_weights import AttentionWeights, attention_ids
from mlx_transformer.inference.search_options import make_search
from mlx_transformer.inference.text_attention import encode_pair, warn_if_cut
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.plotting.figures import DPI, crop
from mlx_transformer.plotting.fonts import Pieces, readable_pieces, render_labels, text_width
from mlx_transformer.tokenization.tokenizer import Tokenizer

# Kind of attention -> its title, and what its rows (queries) and columns (keys) are.
ATTENTION_KINDS = {
    "encoder": ("encoder self-attention", "source", "source"),
    "cross": ("cross-attention", "target", "source"),
    "decoder": ("decoder self-attention", "target", "target so far"),
}
CELL_SIZES = (0.08, 0.2)  # minimum and maximum size of a token's cell in inches; labels scale with it
PREFERRED_SIZE = 24  # inches; cells shrink in larger figures
MAX_SIZE = 50  # inches; drawing takes about 400 MB
PANELS_PER_ROW = 4
TITLE_HEIGHT = 4.5  # of a panel, in cells
MAX_LABEL_LENGTH = 12  # characters of a token
MAX_VECTOR_CELLS = 10_000  # larger panels are embedded in .svg and .pdf as images
RECASED = "A text in capitals is read in lower case."
COLORBAR_TICKS = (0, 0.05, 0.2, 0.5, 1)


class AttentionPanel(NamedTuple):
    """One matrix of attention weights.

    Attributes:
        kind: A key of ATTENTION_KINDS.
        title: Its layer and head.
        weights: (queries, keys); masked where the causal mask hides keys.
    """

    kind: str
    title: str
    weights: np.ndarray


def plot_attention(
    model: Transformer,
    tokenizer: Tokenizer,
    source: str,
    target: str | None = None,
    search: SearchConfig | None = None,
    *,
    kinds: str | Sequence[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    source_language: str | None = None,
    target_language: str | None = None,
    source_prefix: str | None = None,
    **options: Unpack[SearchOptions],
) -> Figure:
    """Draw the attention weights of a text and its target, one panel per kind, layer and head.

    Rows are queries, columns are keys. A target row is labelled with the token that the decoder predicts at that
    position; target columns are the tokens that it reads.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        source: The source text.
        target: The target text; the best one that the model generates if None.
        search: The search configuration for a generated target; `model.search_defaults` if None.
        kinds: "encoder" (self-attention), "cross" or "decoder" (self-attention), or several; empty for all that the
            model has.
        layers: Layers, from 0; empty for the last one.
        heads: Heads, from 0; empty for the mean over heads.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        **options: See `generate_hypotheses`.

    Returns:
        The figure; `figure.savefig("attention.svg")` writes it.

    Raises:
        TypeError: If a keyword argument is unknown, with similar names.
        ValueError: If the source is blank, a kind, layer or head does not exist, or the figure would be too large.
    """
    search = make_search(plot_attention, model, search, options)
    languages = {"source_language": source_language, "target_language": target_language}
    pair = encode_pair(model, tokenizer, source, target, search, source_prefix=source_prefix, **languages)
    warn_if_cut(pair)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return attention_figure(model, tokenizer, pair.source, pair.target, kinds, layers, heads, recased=pair.recased)


def attention_figure(
    model: Transformer,
    tokenizer: Tokenizer,
    source: Sequence[int],
    target: Sequence[int],
    kinds: Sequence[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    *,
    recased: bool = False,
) -> Figure:
    """Draw the attention weights of the token ids of a source and a target; see `plot_attention`.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        source: Source token ids.
        target: Target token ids, beginning with the start token; the last one is only predicted.
        kinds: See `plot_attention`.
        layers: See `plot_attention`.
        heads: See `plot_attention`.
        recased: Whether to say that the model reads a text in capitals in lower case.

    Raises:
        ValueError: If a kind, layer or head does not exist, or the figure would be too large.
    """
    if unknown := [kind for kind in kinds if kind not in ATTENTION_KINDS]:
        raise ValueError(f"A kind of attention must be one of {', '.join(ATTENTION_KINDS)}, not {unknown[0]!r}.")
    available = [
        kind for kind in ATTENTION_KINDS if kind != "decoder" or model.config.decoder_self_attention == "attention"
    ]
    if missing := [kind for kind in kinds if kind not in available]:
        raise ValueError(
            f"This model's decoder has no self-attention, so it has no attention weights of kind {missing[0]!r}: "
            f"choose {' or '.join(available)}."
        )
    weights = attention_ids(model, mx.array([source], mx.int32), mx.array([target[:-1]], mx.int32))
    selected = [kind for kind in available if kind in (kinds or available)]
    pieces = {
        "source": readable_pieces(tokenizer.source, source),
        "target": readable_pieces(tokenizer.target, target[1:]),
        "target so far": readable_pieces(tokenizer.target, target[:-1]),
    }
    panels = [merge_pieces(panel, pieces) for kind in selected for panel in select_panels(weights, kind, layers, heads)]
    texts, families = render_labels(chain.from_iterable(side.labels for side in pieces.values()), MAX_LABEL_LENGTH)
    shown = iter(texts)
    labels = {name: list(islice(shown, len(side.labels))) for name, side in pieces.items()}
    caption = RECASED if recased else ""
    return _draw_panel_grid(arrange_panels(panels), labels, 0.4 * max(map(text_width, texts)) + 2, families, caption)


def select_panels(
    weights: AttentionWeights, kind: str, layers: Sequence[int], heads: Sequence[int]
) -> Iterator[AttentionPanel]:
    """Yield the panels of a kind of attention; ValueError if a layer or head does not exist."""
    stack = weights._asdict()[kind]
    for layer in layers or [len(stack) - 1]:
        check_number("layer", kind, layer, len(stack))
        of_layers = f"layer {layer + 1} of {len(stack)} (index {layer})"
        matrices = np.array(stack[layer][0])
        if not heads:
            yield AttentionPanel(kind, f"{of_layers}\nmean of {len(matrices)} heads", matrices.mean(axis=0))
        for head in heads:
            check_number("head", kind, head, len(matrices))
            of_heads = f"head {head + 1} of {len(matrices)} (index {head})"
            yield AttentionPanel(kind, f"{of_layers}\n{of_heads}", matrices[head])


def merge_pieces(panel: AttentionPanel, pieces: dict[str, Pieces]) -> AttentionPanel:
    """Merge the bytes of each character: the weights of their keys add up, those of their queries are averaged."""
    _, queries, keys = ATTENTION_KINDS[panel.kind]
    rows, columns = pieces[queries].starts, pieces[keys].starts
    hidden = np.triu(np.full(panel.weights.shape, panel.kind == "decoder"), 1)  # by the causal mask

    def merge(matrix: np.ndarray) -> np.ndarray:
        merged: np.ndarray = np.add.reduceat(np.add.reduceat(matrix, rows, axis=0), columns, axis=1)
        return merged

    sizes = np.diff([*rows, len(panel.weights)])
    weights = np.ma.masked_where(merge(~hidden) == 0, merge(panel.weights) / sizes[:, None])
    return panel._replace(weights=weights)


def check_number(name: str, kind: str, number: int, count: int) -> None:
    """Raise ValueError for a layer or head that does not exist."""
    if not 0 <= number < count:
        raise ValueError(f"A {name} of {ATTENTION_KINDS[kind][0]} must be from 0 to {count - 1}, not {number}.")


def arrange_panels(panels: Sequence[AttentionPanel]) -> list[list[AttentionPanel]]:
    """Arrange panels in rows: side by side if there is room, else each kind in rows of its own."""
    if len(panels) <= PANELS_PER_ROW:
        return [list(panels)]
    groups = [[panel for panel in panels if panel.kind == kind] for kind in ATTENTION_KINDS]
    return [group[i : i + PANELS_PER_ROW] for group in groups for i in range(0, len(group), PANELS_PER_ROW)]


def cell_size(across: float, down: float) -> float:
    """Return the size of a cell in inches for a figure of `across` x `down` cells; ValueError if it is too large."""
    minimum, maximum = CELL_SIZES
    if max(across, down) * minimum > MAX_SIZE:
        raise ValueError(
            f"An attention map has room for {MAX_SIZE / minimum:.0f} cells across and down, labels included, but needs "
            f"{across:.0f} and {down:.0f}: choose fewer kinds, layers or heads, or a shorter text."
        )
    return min(maximum, max(minimum, PREFERRED_SIZE / max(across, down)))


def _draw_panel_grid(
    rows: list[list[AttentionPanel]], labels: dict[str, list[str]], margin: float, families: list[str], caption: str
) -> Figure:
    """Draw rows of panels with cells of equal size; the label margin, left and above, is in cells as well."""
    widths = [max(9, *(panel.weights.shape[1] for panel in column if panel)) + margin for column in zip_longest(*rows)]
    heights = [max(panel.weights.shape[0] for panel in row) + margin + TITLE_HEIGHT for row in rows]
    across, down = sum(widths) + 1, sum(heights) + 4
    cell = cell_size(across, down)
    font: dict[str, Any] = {"family": families, "size": 0.62 * 72 * cell}
    figure = Figure(figsize=(across * cell, down * cell), dpi=DPI)
    drawn: list[list[Axes]] = []
    for i, row in enumerate(rows):
        drawn.append([])
        for j, panel in enumerate(row):
            queries, keys = panel.weights.shape
            left, bottom = sum(widths[:j]) + margin, down - sum(heights[:i]) - margin - TITLE_HEIGHT - queries
            drawn[i].append(figure.add_axes((left / across, bottom / down, keys / across, queries / down)))
            mesh = _draw_panel(drawn[i][j], panel, labels, font)
    _add_titles(figure, drawn, rows, font)
    bar = figure.add_axes((margin / across, 2.4 / down, 9 / across, 0.5 / down))
    figure.colorbar(mesh, bar, orientation="horizontal", ticks=COLORBAR_TICKS, format="%g").outline.set_visible(False)
    bar.tick_params(labelsize=font["size"])
    bar.set_xlabel("attention weight", color="0.4", **font)
    bar.text(1.1, 0, caption, transform=bar.transAxes, **font)
    crop(figure)
    return figure


def _add_titles(
    figure: Figure, drawn: list[list[Axes]], rows: list[list[AttentionPanel]], font: dict[str, Any]
) -> None:
    """Add the titles of panels; those of a row stand level, above the highest label of its columns."""
    figure.draw_without_rendering()  # places the labels
    for row, panels in zip(drawn, rows, strict=True):
        top = max(axes.xaxis.label.get_window_extent().y1 for axes in row) + 0.8 * font["size"] / 72 * figure.dpi
        for axes, panel in zip(row, panels, strict=True):
            _, height = axes.transAxes.inverted().transform((0, top))
            title = f"{ATTENTION_KINDS[panel.kind][0]}\n{panel.title}"
            axes.set_title(title, loc="left", pad=0, y=height, **font | {"size": 1.1 * font["size"]})


def _draw_panel(axes: Axes, panel: AttentionPanel, labels: dict[str, list[str]], font: dict[str, Any]) -> QuadMesh:
    """Draw a matrix as coloured cells, dark for high weights, grey where the causal mask hides keys."""
    _, rows, columns = ATTENTION_KINDS[panel.kind]
    queries, keys = panel.weights.shape
    mesh = axes.pcolormesh(
        panel.weights,
        cmap=colormaps["Blues"].with_extremes(bad="0.93"),
        norm=PowerNorm(0.5, 0, 1),  # makes differences of small weights visible
        edgecolors="white",
        linewidth=0.045 * font["size"],
        rasterized=panel.weights.size > MAX_VECTOR_CELLS,
    )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(queries) + 0.5, labels[rows], parse_math=False, **font)
    axes.set_xticks(np.arange(keys) + 0.5, labels[columns], parse_math=False, rotation=90, **font)
    axes.tick_params(length=0, pad=0.25 * font["size"], labeltop=True, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(columns, color="0.4", **font)
    axes.set_ylabel(rows, color="0.4", **font)
    axes.spines[:].set_visible(False)
    return mesh
