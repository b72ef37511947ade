"""The command `translate-file`."""

import io
import re

import pytest
from click.testing import CliRunner
from support.command_line import error_line

from mlx_transformer.cli import main

pytest.importorskip("markdown_it")


def run(*arguments):
    return CliRunner().invoke(main, ["translate-file", *map(str, arguments)])


def test_a_page_and_its_counts(tmp_path):
    source, target = tmp_path / "a.html", tmp_path / "b.html"
    source.write_text('<html lang="en"><p>I love <b>you</b>.</p><p>Good morning!</p></html>')
    result = run(source, target, "--beam-size", "2", "--target-language", "fr")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Texts translated: 2\nDocument: {target}\n"
    assert target.read_text().startswith('<html lang="fr">') and "Bonjour" in target.read_text()
    again = run(source, target)
    assert again.exit_code == 1 and "already exists: choose another name" in error_line(again)
    assert run(source, target, "--force").exit_code == 0


def test_long_subtitles_are_counted(tmp_path):
    source, target = tmp_path / "a.srt", tmp_path / "b.srt"
    source.write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{'I love you and I know you. ' * 5}\n")
    result = run(source, target, "--max-tokens", "40")
    assert "Subtitles with more than two lines of 42 characters: 1\n" in result.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_counts_the_texts(tmp_path, monkeypatch, width):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    source, target = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_text("I love you.\nGood morning!\nI love you.\n")
    main(["translate-file", str(source), str(target)], standalone_mode=False)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    lines = [line for line in lines if line.strip()]
    assert lines[-1].startswith("2/2 texts ") and "100%" in lines[-1]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["b.md"], "The output must have the ending of the input"),
        (["b.txt", "--target-language", "de"], "translates en to fr only"),
        (["b.txt", "--glossary", "none.tsv"], "none.tsv: No such file"),
        (["b.txt", "--beam-size", "0"], "--beam-size"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Hello!\n")
    result = run("a.txt", *options)
    assert result.exit_code == (2 if message.startswith("--") else 1) and message in error_line(result)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
