"""Saving figures, and errors without matplotlib."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from support.paths import ROOT

import mlx_transformer as mt

pytest.importorskip("matplotlib")

from matplotlib.image import imread
from support.plots import (
    BEGINNINGS,
    error_line,
    word_model,
)

from mlx_transformer.plotting import attention_maps, figures, learning_curves


class TestSave:
    @pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
    def test_the_suffix_selects_the_format(self, run, tmp_path, ending):
        path = tmp_path / f"curves.{ending}"
        figures.save(learning_curves.plot_learning_curves([run()]), path)
        assert path.read_bytes().startswith(BEGINNINGS[ending.lower()])

    @pytest.mark.parametrize(
        "draw",
        [lambda run: attention_maps.attention_figure(*word_model()), lambda run: mt.plot_learning_curves(run())],
        ids=["attention", "curves"],
    )
    def test_savefig_gives_the_same_picture_without_empty_edges(self, run, tmp_path, draw):
        figure = draw(run)
        figure.savefig(tmp_path / "python.png")
        figures.save(figure, tmp_path / "command.png")
        assert (tmp_path / "python.png").read_bytes() == (tmp_path / "command.png").read_bytes()
        pixels = imread(tmp_path / "python.png")[..., :3].min(axis=2) < 0.9
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        edges = rows[0], columns[0], len(pixels) - 1 - rows[-1], len(pixels[0]) - 1 - columns[-1]
        assert max(edges) <= 0.2 * figures.DPI

    def test_svg_text_is_stored_as_paths(self, tmp_path):
        path = tmp_path / "attention.svg"
        figures.save(attention_maps.attention_figure(*word_model()), path)
        assert "<text" not in path.read_text() and "<path" in path.read_text()

    @pytest.mark.parametrize("name", ["curves", "curves.doc", ".png"])
    def test_unknown_suffixes_are_rejected(self, name, tmp_path):
        with pytest.raises(ValueError, match=rf"must end in one of .png, .svg, .pdf, not .*{name}."):
            figures.save(figures.Figure(), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_save_keeps_the_old_file(self, tmp_path, monkeypatch):
        def fail(figure, file, **options):
            file.write(b"half")
            raise OSError("No space left on device")

        path = tmp_path / "curves.png"
        path.write_bytes(b"before")
        monkeypatch.setattr(figures.Figure, "savefig", fail)
        with pytest.raises(OSError, match="No space left"):
            figures.save(figures.Figure(), path)
        assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]

    def test_a_file_of_the_user_with_a_temporary_name_is_kept(self, tmp_path):
        mine = tmp_path / "mine"
        mine.write_text("mine")
        (tmp_path / ".curves.svg.new").symlink_to(mine)
        figures.save(figures.Figure(), tmp_path / "curves.svg")
        assert mine.read_text() == "mine" and (tmp_path / ".curves.svg.new").is_symlink()

    def test_a_pipe_is_not_replaced(self, tmp_path):
        os.mkfifo(tmp_path / "curves.png")
        with pytest.raises(
            ValueError, match=r"curves.png must be a file, not a folder, device, pipe or link to itself"
        ):
            figures.save(figures.Figure(), tmp_path / "curves.png")
        assert (tmp_path / "curves.png").is_fifo() and len(os.listdir(tmp_path)) == 1

    def test_pyplot_is_not_needed(self):
        program = "import sys, mlx_transformer.plotting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


class TestWithoutMatplotlib:
    @pytest.mark.parametrize("arguments", [["plot", "run"], ["attention", "Hi", "--output", "a.png"]])
    def test_the_error_names_the_remedy(self, invoke, monkeypatch, arguments):
        for name in [name for name in sys.modules if name.startswith(("matplotlib", "mlx_transformer.plotting"))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.delattr(mt, "plotting")
        message = error_line(invoke(*arguments, status=1))
        assert re.search(r"Pictures need matplotlib: .*; pip install .*\[train\]", message)
