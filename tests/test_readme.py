"""What the README tells a newcomer to type works, and gives what the README says."""

import contextlib
import ctypes.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_transformer.cli import main
from mlx_transformer.pretrained import BUNDLED

README = (Path(__file__).parent.parent / "README.md").read_text()
bundled = pytest.mark.skipif(not (BUNDLED / "config.json").exists(), reason="the bundled model is not here")


def block(heading: str, language: str) -> str:
    """The first code block in a language under a heading."""
    section = README.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


def run(arguments: list[str]) -> str:
    """What a command of ours prints."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@bundled
def test_the_first_command_gives_the_sentence_that_the_readme_shows():
    arguments = shlex.split(block("Start", "console"))
    command = arguments[arguments.index(".venv/bin/mlx-transformer") + 1 :]
    shown = re.search(r"It answers `(.+?)`", README)[1]
    assert command == ["generate", "Where is the station?"]
    assert run(command) == shown + "\n"


@bundled
def test_the_library_block_runs():
    code = block("In your app", "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    first, *rest = printed.getvalue().splitlines()
    assert (
        first.startswith("Je ")
        and first.endswith("aime.")
        and len(rest) == 2
        and all(line.count("(") == 2 for line in rest)
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "linux" and not ctypes.util.find_library("openblas"), reason="without OpenBLAS this takes an hour"
)
def test_the_training_block_learns_dates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = block("Train your own", "console").replace("\\\n", " ").splitlines()
    train, evaluate, generate = [shlex.split(line)[1:] for line in lines]
    assert len(block("Train your own", "console").splitlines()) <= 5
    run(train)
    scores = run(evaluate)
    assert float(re.search(r"exact\D+([\d.]+)", scores)[1]) >= 99, scores
    assert run(generate) == "1987-03-03\n"
