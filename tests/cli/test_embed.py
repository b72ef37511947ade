"""The command embed, with the bundled model."""

import gzip
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from support.command_line import error_line

import mlx_transformer as mt
from mlx_transformer.cli import main

TEXTS = ["I am tired.", "", "Good morning!"]
TEXT = "I am tired.\n\nGood morning!\n"


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


@pytest.fixture
def run(bundled, monkeypatch):
    """Run the command with the bundled model, which is loaded once."""
    monkeypatch.setitem(vars(mt), "load", lambda *_, **__: bundled)

    def invoke(*arguments, stdin=b"", status=0):
        result = CliRunner().invoke(main, ["embed", *map(str, arguments)], input=stdin)
        assert result.exit_code == status, result.output
        return result

    return invoke


def vectors_of(result):
    return np.array([json.loads(line)["embedding"] for line in result.stdout.splitlines()], np.float32)


@pytest.mark.parametrize("options", [{}, {"pooling": "first"}, {"pooling": "last", "normalize": True}])
def test_json_lines_have_every_bit_of_the_vectors(run, bundled, options):
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    vectors = vectors_of(run(*flags, stdin=TEXT.encode()))
    assert np.array_equal(vectors, mt.embed(*bundled, TEXTS, **options)) and len(np.unique(vectors, axis=0)) == 3


def test_files_arguments_and_batches_give_the_same_vectors(run, bundled, tmp_path):
    (tmp_path / "texts.gz").write_bytes(gzip.compress(TEXT.replace("\n", "\r\n").encode()))
    expected = mt.embed(*bundled, TEXTS)
    for arguments in (("--input", tmp_path / "texts.gz"), ("--batch-tokens", 1, "--", *TEXTS)):
        assert np.abs(vectors_of(run(*arguments)) - expected).max() < 1e-5


def test_numpy_files(run, bundled, tmp_path):
    run("--output", tmp_path / "vectors.npy", stdin=TEXT.encode())
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.dtype == np.float32 and np.array_equal(vectors, mt.embed(*bundled, TEXTS))
    stdout = run("--output-format", "npy", stdin=TEXT.encode()).stdout_bytes
    assert np.array_equal(np.load(io.BytesIO(stdout)), vectors)
    run("--output", tmp_path / "vectors.npy", "--output-format", "json", *TEXTS)
    assert len((tmp_path / "vectors.npy").read_text().splitlines()) == 3
    run("--output", tmp_path / "none.npy")
    assert np.load(tmp_path / "none.npy").shape == (0, vectors.shape[1])


def test_lines_in_json_keep_their_ids(run, bundled):
    stdin = b'{"text": "I am tired.", "id": 7}\n"Good morning!"\n{"text": "No.", "target_language": "de"}\n{\n'
    result = run("--input-format", "json", stdin=stdin, status=1)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row.get("id") for row in rows] == [7, None, None, None]
    expected = mt.embed(*bundled, ["I am tired.", "Good morning!"])
    assert np.abs(np.array([row["embedding"] for row in rows[:2]]) - expected).max() < 1e-5
    assert "translates en to fr only" in rows[2]["error"] and "Line 4 must be JSON" in rows[3]["error"]
    assert error_line(result).startswith('Error: 2 of the results have an "error"; the first: Line 3: ')


def test_a_bad_line_has_a_row_of_nan_and_an_error(run, bundled, tmp_path):
    result = run("-o", tmp_path / "out.npy", stdin=b"I am tired.\n\xff\nGood morning!\n", status=1)
    assert error_line(result).startswith("Error: Line 2 must be valid UTF-8: byte 1 is 0xff.")
    vectors = np.load(tmp_path / "out.npy")
    assert np.isnan(vectors[1]).all()
    assert np.array_equal(vectors[::2], mt.embed(*bundled, ["I am tired.", "", "Good morning!"])[::2])


def test_truncated_lines_are_reported(run, bundled):
    result = run(stdin=b"I am tired.\n" + b"No. " * bundled[0].config.encoder.max_length)
    assert result.stderr == "Warning: Line 2 is longer than the model can read and was cut.\n"
    assert [json.loads(line)["truncated"] for line in result.stdout.splitlines()] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--input", "absent"), 1, "absent: No such file or directory."),
        (("--input", "absent", "text"), 2, "Give TEXT or --input, not both."),
        (("--pooling", "sum", "text"), 2, "'sum' is not one of 'mean', 'first', 'last'"),
        (("--target-language", "de", "text"), 1, "translates en to fr only"),
        (("-o", "absent/out.npy", "text"), 1, "--output must be in an existing folder"),
    ],
)
def test_bad_arguments(run, arguments, status, message):
    assert message in error_line(run(*arguments, status=status))


def test_an_array_is_not_written_to_a_terminal(run, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True, raising=False)
    assert "A NumPy array is binary" in error_line(run("--output-format", "npy", "text", status=2))


def test_an_output_that_exists_is_kept_if_the_command_fails(run, tmp_path):
    (tmp_path / "out.npy").write_text("precious")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    run("--input", tmp_path / "bad.gz", "-o", tmp_path / "out.npy", status=1)
    assert (tmp_path / "out.npy").read_text() == "precious"


def test_an_archive_of_arrays_is_refused(run, tmp_path):
    line = error_line(run("--output", tmp_path / "x.npz", "No.", status=2))
    assert "--output must end in .npy for a NumPy array" in line and not (tmp_path / "x.npz").exists()
