"""Run folders: options as TOML, checksums, and the log."""

import dataclasses
import json
import shutil
import subprocess

import pytest
from support.training_cases import OPTIONS

from mlx_transformer.config.serialization import to_dict
from mlx_transformer.training.run_directory import (
    RunDirectory,
    find_damage,
    load_run_options,
    read_options_file,
    write_checksums,
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
    RunDirectory(tmp_path).prepare(options, 0, {"command": "train --source-prefix 'a\nb \x7f'", "mlx": "1"})
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
    run.prepare(OPTIONS, 4, {})
    assert run.log_entries() == entries[:2]
    run.prepare(OPTIONS, 0, {})
    assert run.log_entries() == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_checksums_match_sha256sum(tmp_path):
    for name in ("model.safetensors", "training.safetensors", "training.json"):
        (tmp_path / name).write_bytes(name.encode() * 300_000)
    write_checksums(tmp_path)
    assert find_damage(tmp_path) is None
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    with (tmp_path / "training.json").open("r+b") as file:
        file.seek(100)
        file.write(b"X")
    assert find_damage(tmp_path) == "training.json does not match its checksum in SHA256SUMS"


CHECKPOINT_FILES = ("model.safetensors", "training.safetensors", "training.json")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_checksums_must_cover_all_files_of_a_checkpoint(name, tmp_path):
    for other in {*CHECKPOINT_FILES} - {name}:
        (tmp_path / other).write_bytes(b"content")
    write_checksums(tmp_path)
    assert find_damage(tmp_path) == f"{name} is missing"
    (tmp_path / name).write_bytes(b"not listed")
    assert find_damage(tmp_path) == f"{name} is missing"


def test_invalid_utf8_in_options_raises(tmp_path):
    (tmp_path / "options.toml").write_bytes(b"seed = 3 # \xff")
    with pytest.raises(ValueError, match="options.toml must be TOML"):
        read_options_file(tmp_path / "options.toml")
