"""Fixtures for tests of figures."""

import json

import pytest
from click.testing import CliRunner

from mlx_transformer.cli import main

pytest.importorskip("matplotlib")

from support.plots import LOG

from mlx_transformer.plotting import fonts as fonts_module


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run with a log."""

    def make(name="run", entries=LOG, end=""):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        text = "".join(f"{json.dumps(entry)}\n" for entry in entries) + end
        (folder / "log.jsonl").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def only_matplotlibs_font(monkeypatch):
    """As where no font is installed but the one that comes with matplotlib."""
    monkeypatch.setattr(fonts_module, "installed_fonts", lambda: [fonts_module.DEFAULT_FONT])


@pytest.fixture
def invoke():
    """Runs the command line in this process."""

    def call(*arguments, status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        return result

    return call
