"""Run folders: options as TOML, checksums, and the log."""

import dataclasses
import json
import time

import pytest
from support.training_cases import OPTIONS

from mlx_transformer.config.serialization import to_dict
from mlx_transformer.training.run_directory import (
    RunDirectory,
    load_run_options,
    read_options_file,
)


def test_options_survive_writing_and_reading(tmp_path):
    options = dataclasses.replace(
        OPTIONS,
        train=('a "quoted" name.tsv', "C:\\back\\slash", "tab\there", "Größe 中文 \U0001f600", "\x07\x7f\n"),
        learning_rate=1e-30,
        output=str(tmp_path),
        freeze=("encoder",),
        init="a/b",
        source_prefix="translate: ",
        keep=5,
    )
    RunDirectory(tmp_path).prepare(options, 0, {"command": "train --source-prefix 'a\nb \x7f'", "mlx": "1"}, {})
    text = (tmp_path / "options.toml").read_text()
    assert text.startswith("# command: train --source-prefix 'a\\nb \\u007f'\n# mlx: 1\n")
    assert load_run_options(tmp_path) == options
    assert read_options_file(tmp_path / "options.toml").keys() == {
        name for name, value in to_dict(options).items() if value is not None and name != "resume"
    }


def test_resuming_truncates_the_log(tmp_path):
    run = RunDirectory(tmp_path)
    entries = [{"event": "step", "step": step, "text": "a\u2028b\x85ü"} for step in (2, 4, 6)]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    run.log_file.write_bytes((lines + '5\n[]\n{"event": "ü').encode()[:-1])  # cut off within a character
    run.prepare(OPTIONS, 4, {}, {})
    assert run.log_entries() == entries[:2]
    run.prepare(OPTIONS, 0, {}, {})
    assert run.log_entries() == []


def test_invalid_utf8_in_options_raises(tmp_path):
    (tmp_path / "options.toml").write_bytes(b"seed = 3 # \xff")
    with pytest.raises(ValueError, match="options.toml must be TOML"):
        read_options_file(tmp_path / "options.toml")


@pytest.mark.parametrize("content", ["a." * 30_000 + "a = 1", "# a comment\n" * 30_000])
def test_options_that_would_take_long_to_parse_are_refused(tmp_path, content):
    (tmp_path / "options.toml").write_text(content)
    start = time.process_time()
    with pytest.raises(ValueError, match="options.toml must have at most"):
        read_options_file(tmp_path / "options.toml")
    assert time.process_time() - start < 2
