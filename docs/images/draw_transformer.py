"""Draw the pictures of docs/transformer.md from the variables of its own code blocks: transformer-*.svg in this folder.

    pip install '.[train]' && python docs/images/draw_transformer.py

The blocks run in a temporary folder, which takes about a minute; most of it trains the model of the last section.
"""

import contextlib
import io
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import mlx.core as mx

IMAGES = Path(__file__).resolve().parent
PAGE = IMAGES.parent / "transformer.md"
BLUE, ORANGE, GREEN, GREY, HIDDEN = "#0072b2", "#e69f00", "#009e73", "#999999", "#dddddd"
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"


class Picture:
    """An SVG picture on white, built from a few kinds of elements."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.elements: list[str] = []

    def text(self, x: float, y: float, text: str, size: float = 13, anchor: str = "start", **options: str) -> None:
        """Write a line of text; y is its baseline."""
        extra = "".join(f' {name}="{value}"' for name, value in options.items())
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, **options: str) -> None:
        """Draw a rectangle."""
        extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in options.items())
        self.elements.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{extra}/>')

    def label(self, x: float, y: float, width: float, text: str, colour: str) -> None:
        """Draw a rounded box with a text in its middle."""
        self.box(x, y, width, 28, colour, rx="5", fill_opacity="0.18", stroke=colour)
        self.text(x + width / 2, y + 18.5, text, 12.5, "middle")

    def line(self, points: Sequence[tuple[float, float]], colour: str = "#444", arrow: bool = True) -> None:
        """Draw a line through points, with an arrow head at its end."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.elements.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"{end}/>')

    def heatmap(
        self,
        x: float,
        y: float,
        values: Sequence[Sequence[float]],
        cell: float,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
        hidden: Sequence[Sequence[bool]] | None = None,
    ) -> None:
        """Draw a matrix of numbers from -1 to 1: blue above 0, orange below; grey where it is hidden."""
        cells: dict[str, str] = defaultdict(str)  # colour -> path of all its cells
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                fill = HIDDEN if hidden is not None and hidden[i][j] else shade(value)
                cells[fill] += f"M{x + j * cell:g} {y + i * cell:g}h{cell - 1:g}v{cell - 1:g}h-{cell - 1:g}z"
        self.elements += [f'<path fill="{fill}" d="{path}"/>' for fill, path in cells.items()]
        for i, name in enumerate(rows):
            self.text(x - 6, y + (i + 0.5) * cell + 4, name, 12, "end")
        for j, name in enumerate(columns):
            left, bottom = x + (j + 0.5) * cell + 4, y - 6
            self.text(left, bottom, name, 12, transform=f"rotate(-90 {left:g} {bottom:g})")

    def write(self, path: Path) -> None:
        """Write the picture to a file."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="{FONT}" fill="#222">\n<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444"/></marker>\n'
            f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
        )
        path.write_text(head + "\n".join(self.elements) + "\n</svg>\n")


def shade(value: float) -> str:
    """Return a colour between white and blue for 0 to 1, between white and orange for 0 to -1."""
    target = (0, 114, 178) if value >= 0 else (230, 159, 0)
    share = round(20 * min(1.0, abs(value))) / 20
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in target)


def roots(weights: mx.array) -> list[list[float]]:
    """Return the square roots of attention weights, which show differences of small ones."""
    return mx.sqrt(weights).tolist()


def invert(mask: Sequence[Sequence[bool]]) -> list[list[bool]]:
    """Return where a mask hides."""
    return [[not allowed for allowed in row] for row in mask]


def run_page(folder: str) -> dict[str, Any]:
    """Run the Python blocks of the page in a folder and return their variables."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            exec(compile(code, PAGE.name, "exec"), namespace)  # noqa: S102
    return namespace


def draw_stacks(folder: Path) -> None:
    """Draw the two stacks, one layer of each in full."""
    picture = Picture(640, 416)
    bottom, width = 316, 210
    stacks = {
        60: ("Encoder × N", ["self-attention", "feed-forward"], "source"),
        370: ("Decoder × N", ["masked self-attention", "encoder-decoder attention", "feed-forward"], "target so far"),
    }
    for x, (title, sublayers, below) in stacks.items():
        middle, top = x + width / 2, bottom - 62 * len(sublayers)
        picture.box(x - 22, top - 8, width + 44, bottom - top + 14, "#f4f4f4", rx="8", stroke=GREY)
        picture.text(x - 18, top - 15, title, 13)
        picture.text(middle, bottom + 90, below, 13, "middle", **{"font-style": "italic"})
        picture.line([(middle, bottom + 76), (middle, bottom + 60)])
        picture.label(x, bottom + 30, width, "embedding + position", GREEN)
        y = bottom + 30.0
        for number, sublayer in enumerate(sublayers):
            start = bottom + 30.0 if number == 0 else y - 16
            y = bottom - 62 * (number + 1) + 22
            picture.line([(middle, start), (middle, y + 30)])
            picture.label(x, y, width, sublayer, ORANGE if sublayer == "feed-forward" else BLUE)
            picture.line([(middle, y), (middle, y - 5)], arrow=False)
            picture.line([(middle, y + 38), (x - 12, y + 38), (x - 12, y - 11), (middle - 8, y - 11)])
            picture.text(middle, y - 6, "⊕", 15, "middle")
    picture.line([(middle, y - 16), (middle, y - 50)])
    picture.label(x, y - 80, width, "output layer", GREEN)
    picture.line([(middle, y - 80), (middle, y - 96)])
    picture.text(middle, y - 102, "next token", 13, "middle", **{"font-style": "italic"})
    memory, cross = bottom - 142, bottom - 88
    picture.line([(165, memory + 22), (165, memory), (314, memory), (314, cross), (368, cross)], BLUE)
    picture.text(172, memory - 8, "memory: keys, values", 12, fill=BLUE)
    picture.write(folder / "transformer-stacks.svg")


def draw_masks(page: dict[str, Any], folder: Path) -> None:
    """Draw the two masks and the attention weights of the untrained model under them."""
    picture = Picture(660, 420)
    source, target = ["9", "10", "</s>", "pad", "pad"], ["<s>", "14", "15", "16"]
    padding = page["memory"].mask[:, 0, 0].tolist()
    picture.text(20, 24, "padding mask, one row a source")
    picture.heatmap(100, 90, padding, 22, ["source 1", "source 2"], [str(i) for i in range(5)], invert(padding))
    picture.text(370, 24, "causal mask")
    causal = page["causal_mask"](4)[0, 0].tolist()
    picture.heatmap(430, 90, causal, 22, target, target, invert(causal))
    weights = page["all_weights"]
    picture.text(20, 226, "cross-attention weights of source 2, head 0")
    hidden = invert([padding[1]] * 4)
    picture.heatmap(100, 290, roots(weights.cross[0][1, 0]), 22, target, source, hidden)
    picture.text(370, 226, "decoder self-attention weights, head 0")
    picture.heatmap(430, 290, roots(weights.decoder[0][1, 0]), 22, target, target, invert(causal))
    picture.text(20, 404, "Rows are queries, columns are keys. Grey: hidden by the mask. Darker: more weight.", 12)
    picture.write(folder / "transformer-masks.svg")


def draw_positions(page: dict[str, Any], folder: Path) -> None:
    """Draw the first rows and columns of the sinusoidal table, and the products of its rows."""
    picture = Picture(660, 300)
    table, products = page["table"], page["products"]
    picture.text(20, 24, "sinusoidal positions 0 to 15, columns 0 to 31 of 64")
    picture.heatmap(40, 40, table[:16, :32].tolist(), 11, [str(i) if i % 5 == 0 else "" for i in range(16)])
    picture.text(430, 24, "products of rows")
    lowest = products[:16, :16].min()
    nearness = (products[:16, :16] - lowest) / (products[0, 0] - lowest)
    picture.heatmap(450, 40, nearness.tolist(), 11, [str(i) if i % 5 == 0 else "" for i in range(16)])
    picture.text(
        20,
        260,
        "Left: blue is positive, orange negative. Right: darker is larger. Along a diagonal all products are",
        12,
    )
    picture.text(20, 278, "equal: they depend only on the distance between two positions.", 12)
    picture.write(folder / "transformer-positions.svg")


def draw_beams(page: dict[str, Any], folder: Path) -> None:
    """Draw the first two steps of the search, with the probability of each prefix."""
    picture = Picture(640, 300)
    following = page["following"]
    y = 40.0
    roots = []
    for first, probability in following["<s>"].items():
        leaves = []
        for second, factor in following[first].items():
            total = probability * factor
            best = (first, second) in {("A", "B"), ("B", "</s>")}
            picture.text(430, y + 4, f"{first} {second}", 13, **({"font-weight": "bold"} if best else {}))
            picture.text(550, y + 4, f"{total:.3f}", 13, "end", **({"font-weight": "bold"} if best else {}))
            leaves.append((y, best))
            y += 22
        middle = sum(leaf for leaf, _ in leaves) / len(leaves)
        for leaf, best in leaves:
            picture.line([(290, middle), (424, leaf)], BLUE if best else "#bbb")
        picture.text(240, middle + 4, f"{first}  {probability:g}", 14)
        roots.append((middle, first))
        y += 8
    for middle, first in roots:
        picture.line([(90, 150), (232, middle)], "#bbb" if first == "C" else BLUE)
    picture.text(50, 154, "<s>", 14)
    picture.text(20, 288, "Greedy search follows A only. A beam of two keeps A and B and finds “B </s>”.", 12)
    picture.write(folder / "transformer-beams.svg")


def draw_dates(page: dict[str, Any], folder: Path) -> None:
    """Draw the attention of the trained model: the mean of the heads of the last layer."""
    weights, read, written = page["date_weights"], page["read"], page["written"]
    cell, left = 22, 90
    width = left + cell * len(read) + 130 + cell * len(written) + 20
    picture = Picture(width, 190 + cell * len(written))
    top = 150
    picture.text(20, 24, "encoder-decoder attention")
    cross = roots(weights.cross[-1][0].mean(axis=0))
    picture.heatmap(left, top, cross, cell, written[1:], read)
    picture.text(left + cell * len(read) + 60, 24, "decoder self-attention")
    own = roots(weights.decoder[-1][0].mean(axis=0))
    later = [[j > i for j in range(len(own))] for i in range(len(own))]
    picture.heatmap(left + cell * len(read) + 130, top, own, cell, written[1:], written[:-1], later)
    picture.text(
        20, top + cell * len(written) + 20, "Rows: the token that is predicted. Columns: what the decoder looks at.", 12
    )
    picture.write(folder / "transformer-dates.svg")


def draw(page: dict[str, Any], folder: Path) -> None:
    """Draw all pictures in a folder from the variables of the page."""
    draw_stacks(folder)
    draw_masks(page, folder)
    draw_positions(page, folder)
    draw_beams(page, folder)
    draw_dates(page, folder)


def main() -> None:
    """Run the page and draw all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        draw(run_page(folder), IMAGES)
        os.chdir(IMAGES)


if __name__ == "__main__":
    main()
