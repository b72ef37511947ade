"""Compares pictures of the documentation with what draws them now."""

import re
from importlib.metadata import version

import numpy as np

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
CELLS = re.compile(r'<path fill="(#[0-9a-f]{6})" d="([^"]+z)"/>\n')  # of a heat map, all of one colour
ORIGIN = re.compile(r"M(\S+) ([^Mh]+)h")


def colour_channels(svg):
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOUR.findall(svg)])


def assert_same_figure(drawn, stored):
    """Compare two SVG files of matplotlib; if it was not this version that wrote the stored one, only the texts."""
    texts = [path.read_text() for path in (drawn, stored)]
    assert len({tuple(re.findall("<!-- (.+?) -->", text)) for text in texts}) == 1
    if f"Matplotlib v{version('matplotlib')}," not in texts[1]:
        return
    for pattern in ("<metadata>.*?</metadata>", r"data:image/png;base64,[\w+/=\s]+", r"\b(?:image|[mp])[0-9a-f]{10}\b"):
        texts = [re.sub(pattern, "", text, flags=re.DOTALL) for text in texts]
    colours = [colour_channels(text) for text in texts]
    texts = [COLOUR.sub("colour", text) for text in texts]
    numbers = [list(map(float, NUMBER.findall(text))) for text in texts]
    assert len({" ".join(NUMBER.sub("#", text).split()) for text in texts}) == 1
    np.testing.assert_allclose(*numbers, atol=0.05)
    np.testing.assert_allclose(*colours, atol=8)


def read_cells(svg):
    """Return the colours of the cells of heat maps by position."""
    origins = {origin: colour for colour, path in CELLS.findall(svg) for origin in ORIGIN.findall(path)}
    return dict(sorted(origins.items()))


def assert_same_drawing(drawn, stored, tolerance):
    """Compare two pictures of docs/images/draw_transformer.py; shades may differ by `tolerance` of 255 on average."""
    texts = [path.read_text() for path in (drawn, stored)]
    first, second = (CELLS.sub("", text) for text in texts)
    assert first == second
    cells = [read_cells(text) for text in texts]
    assert cells[0].keys() == cells[1].keys()
    if cells[0]:
        first, second = (colour_channels(" ".join(colours.values())) for colours in cells)
        assert np.abs(first - second).mean() <= tolerance
