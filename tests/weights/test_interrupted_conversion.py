"""Killed conversions, and two with one destination: a whole model is there, or the next command restores it."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import pytest
from support.bart_files import BART_CONFIG, VOCAB, bart_tensors
from support.kills import KILL_AT_ACCESS, KILLS, accesses_to_kill_at, is_killed
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder, replacement
from mlx_transformer.storage.atomic import atomic_replace
from mlx_transformer.storage.checksums import changed_files

IMPORTS = "import sys\nimport mlx_transformer as mt\nimport mlx.core as mx\nmx.set_default_device(mx.cpu)\n"
CONVERT = """
try:
    mt.convert(sys.argv[1], sys.argv[2], force=True)
except OSError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def sources(tmp_path):
    """Checkpoints that differ in their output biases, 0 and 1."""
    folders = [tmp_path / "sources" / str(mark) for mark in range(2)]
    for mark, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(BART_CONFIG))
        tensors = bart_tensors() | {"final_logits_bias": mx.full((1, VOCAB), float(mark))}
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folders


@pytest.fixture
def folder(tmp_path, sources):
    """A converted model beside a file of the user."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("mine")
    mt.convert(sources[0], tmp_path / "models" / "model")
    return tmp_path / "models" / "model"


def start(program, *arguments):
    command = [sys.executable, "-c", IMPORTS + program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def mark_of(folder):
    """Load a model, which must be whole, and return its mark."""
    model = mt.load_model(folder)
    assert changed_files(folder) == []
    return model.output_bias[0].item()


@pytest.mark.slow
def test_a_killed_conversion_loses_nothing(folder, sources, caplog):
    program = KILL_AT_ACCESS + CONVERT
    accesses, _ = start(program, sources[1], folder, folder.parent, 0).communicate(timeout=60)
    assert mark_of(folder) == 1
    marks = set()
    for access in accesses_to_kill_at(accesses):
        mt.convert(sources[0], folder, force=True)
        assert mark_of(folder) == 0 and sorted(os.listdir(folder.parent)) == ["model", "notes.txt"]
        process = start(program, sources[1], folder, folder.parent, access)
        assert process.communicate(timeout=60) and is_killed(process)
        marks.add(mark_of(folder))
        assert (folder.parent / "notes.txt").read_text() == "mine"
    assert marks == {0, 1} and f"{folder} was restored" in caplog.text


@pytest.mark.slow
def test_two_conversions_to_one_destination(folder, sources):
    """One may be refused; the result is a whole model, never a mixture or none."""
    for _ in range(KILLS):
        processes = [start(CONVERT, source, folder) for source in sources]
        errors = [process.communicate(timeout=60)[1] for process in processes]
        succeeded = {mark for mark, process in enumerate(processes) if process.returncode == 0}
        assert mark_of(folder) in succeeded
        assert [error for error in errors if error and "is being written by another process" not in error] == []
        assert sorted(os.listdir(folder.parent)) == ["model", "notes.txt"]


def test_a_folder_that_is_moved_during_the_check_is_being_written(folder, sources, monkeypatch):
    check, other = replacement.check_destination, atomic_replace(folder)

    def move_during_check(*arguments, **options):
        monkeypatch.setattr(replacement, "check_destination", check)
        other.__enter__()
        raise FileExistsError("not a model folder")

    monkeypatch.setattr(replacement, "check_destination", move_during_check)
    with pytest.raises(BlockingIOError, match="is being written by another process"):
        mt.convert(sources[1], folder, force=True)
    other.__exit__(OSError, OSError(), None)
    mt.convert(sources[1], folder, force=True)
    assert mark_of(folder) == 1


def test_a_conversion_does_not_replace_what_another_one_has_just_written(folder, sources, monkeypatch):
    """Without force, the destination is checked again when it is claimed."""
    destination = folder.with_name("other")
    build = model_folder.uninitialized_model

    def convert_first(*arguments):
        monkeypatch.setattr(model_folder, "uninitialized_model", build)
        mt.convert(sources[1], destination)
        return build(*arguments)

    monkeypatch.setattr(model_folder, "uninitialized_model", convert_first)
    with pytest.raises(FileExistsError, match="already exists"):
        mt.convert(sources[0], destination)
    assert mark_of(destination) == 1
