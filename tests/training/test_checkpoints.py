"""Checkpoints of a run: failed writes, damage, and how many are kept."""

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest
from support.training_cases import interrupt_at, log_events, runs_equal

import mlx_transformer as mt
from mlx_transformer.storage import safetensors
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.run_directory import RunDirectory, checkpoint_step, find_damage
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train

pytestmark = pytest.mark.cpu


@pytest.fixture
def damaged(finished, tmp_path):
    """Options of a copy of the finished run, for tests to damage."""
    shutil.copytree(finished.output, tmp_path / "damaged")
    return dataclasses.replace(finished, output=str(tmp_path / "damaged"))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_an_earlier_one_used(finished, damaged, name, damage, caplog):
    path = Path(damaged.output) / "last" / name
    data = path.read_bytes()
    middle = len(data) // 2
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:middle] if damage == "truncated" else data[:middle] + b"#" + data[middle + 1 :])
    with caplog.at_level("WARNING", logger="mlx_transformer.training.run_directory"):
        train(dataclasses.replace(damaged, resume=True))
    assert f"{Path(damaged.output) / 'last'} is damaged: " in caplog.text and name in caplog.text
    assert log_events(damaged.output, "start")[-1]["step"] == 8
    assert runs_equal(finished.output, damaged.output)
    assert (Path(damaged.output) / "damaged-last").exists()


def test_a_run_without_an_intact_checkpoint_is_not_touched(damaged):
    run = Path(damaged.output)
    for folder in RunDirectory(run).checkpoints():
        (folder / "training.json").write_text("{}")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(
            ValueError, match="No checkpoint is intact.*last: training.json does not.*step-8.*with init .*best"
        ):
            train(dataclasses.replace(damaged, resume=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


def test_keep_limits_the_number_of_checkpoints(options):
    for keep, earlier in ((1, []), (2, [8]), (3, [8, 4]), (9, [8, 4])):
        run = Path(options.output).with_name(f"keep{keep}")
        train(dataclasses.replace(options, output=str(run), keep=keep))
        assert [checkpoint_step(path) for path in RunDirectory(run).checkpoints()] == [12, *earlier]


def test_a_failed_checkpoint_leaves_the_previous_one_intact(finished, options, monkeypatch):
    write_arrays = safetensors.write_arrays

    def fail(path, arrays, metadata=None):
        if path.name == "training.safetensors" and (Path(options.output) / "last").exists():
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_arrays(path, arrays, metadata)

    monkeypatch.setattr(safetensors, "write_arrays", fail)
    message = (
        "checkpoint of step 8 could not be written, that of step 4 is intact: free some space.*No space left on device"
    )
    with pytest.raises(OSError, match=message):
        train(options)
    monkeypatch.setattr(safetensors, "write_arrays", write_arrays)
    assert find_damage(Path(options.output) / "last") is None
    assert not list(Path(options.output).glob(".last*"))
    train(dataclasses.replace(options, resume=True))
    assert runs_equal(options.output, finished.output)


def test_a_stop_right_after_a_validation_saves_no_second_checkpoint(options, monkeypatch):
    calls, save = [], RunDirectory.save_checkpoint
    monkeypatch.setattr(RunDirectory, "save_checkpoint", lambda run, *args: calls.append(args) or save(run, *args))
    with pytest.raises(KeyboardInterrupt):
        train(options, interrupt_at(4, event="validation"))
    assert len(calls) == 1 and [path.name for path in RunDirectory(options.output).checkpoints()] == ["last"]


def test_checkpoints_of_stops_do_not_displace_those_of_validations(options):
    options = dataclasses.replace(options, keep=2, log_every=1)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(options, resume=resume), interrupt_at(6, 7))
    assert [checkpoint_step(path) for path in RunDirectory(options.output).checkpoints()] == [7, 4]


def test_a_second_damaged_checkpoint_replaces_the_first_one_set_aside(damaged):
    for _ in range(2):
        (Path(damaged.output) / "last" / "training.json").write_text("{}")
        train(dataclasses.replace(damaged, resume=True))
    assert (Path(damaged.output) / "damaged-last" / "training.json").read_text() == "{}"


def test_the_error_says_if_there_is_no_earlier_checkpoint(options, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(TrainState, "write", fail)
    with pytest.raises(OSError, match="step 4 could not be written, and there is no earlier one: free some space"):
        train(options)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_model_is_restored_if_its_replacement_was_interrupted(finished, damaged, name):
    folder = Path(damaged.output) / name
    claim = folder.with_name(f".{name}.replacement")
    for restore in (mt.load, lambda _: train(dataclasses.replace(damaged, resume=True))):
        claim.mkdir()
        folder.rename(claim / "old")
        restore(folder)
        assert isinstance(mt.load(folder)[1], Tokenizer) and not claim.exists()
    assert runs_equal(finished.output, damaged.output)


def test_a_replaced_checkpoint_is_retired_if_that_was_interrupted(finished, damaged):
    run = Path(damaged.output)
    (run / ".last.replacement").mkdir()
    (run / "earlier" / "step-8").rename(run / ".last.replacement" / "old")
    train(dataclasses.replace(damaged, resume=True))
    assert runs_equal(finished.output, damaged.output) and (run / "earlier" / "step-8").exists()


def damage_config(best):
    (best / "config.json").write_text("{")


def change_weights(best):
    with (best / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"damaged!")


def remove_vocabulary(best):
    (best / "tokenizer.json").unlink()


def replace_by_file(best):
    shutil.rmtree(best)
    best.write_text("mine")


@pytest.mark.parametrize("damage", [damage_config, change_weights, remove_vocabulary, replace_by_file])
def test_a_damaged_best_model_is_reported_at_the_start_and_written_again(options, damage, caplog):
    train(dataclasses.replace(options, steps=8))
    best = Path(options.output) / "best"
    damage(best)
    reported = []

    def report(entry):
        if entry["event"] == "start":
            reported.append((best.exists(), (best.parent / "damaged-best").exists(), caplog.text))

    assert train(dataclasses.replace(options, resume=True), report) == best
    assert isinstance(mt.load(best)[1], Tokenizer)
    assert reported[0][:2] == (False, True) and f"{best} is damaged: " in reported[0][2]


@pytest.mark.parametrize("damage", [damage_config, shutil.rmtree])
def test_a_finished_run_writes_a_damaged_or_missing_best_model_again(damaged, damage):
    best = Path(damaged.output) / "best"
    damage(best)
    train(dataclasses.replace(damaged, resume=True))
    assert isinstance(mt.load(best)[1], Tokenizer)


def test_files_of_the_user_in_the_run_are_kept(options, caplog):
    """They do not stop the run either: a model that holds some is renamed instead of replaced or deleted."""
    run = Path(options.output)

    def write_notes(entry):
        if entry["event"] == "validation" and entry["step"] == 4:
            for name in ("best", "last"):
                (run / name / "notes.txt").write_text(f"in {name}")

    train(dataclasses.replace(options, keep=1, best_by="loss", learning_rate=1e-2), write_notes)
    assert (run / "earlier" / "step-4" / "notes.txt").read_text() == "in last"
    (notes,) = run.glob("*best/notes.txt")
    assert notes.read_text() == "in best"
    if notes.parent.name != "best":  # a later model was better
        assert notes.parent.name == "kept-best" and f"Renamed to {run / 'kept-best'}" in caplog.text


def test_copies_of_checkpoints_are_kept(options):
    """Only checkpoints of the run itself count, and the oldest of them are deleted."""
    run = Path(options.output)
    train(dataclasses.replace(options, steps=8))
    shutil.copytree(run / "earlier" / "step-4", run / "earlier" / "step-4-before-the-change")
    shutil.copytree(run / "earlier" / "step-4", run / "moved")
    (run / "earlier" / "step-2").symlink_to("../moved")
    (run / "earlier" / "step-3").write_text("mine")
    train(dataclasses.replace(options, resume=True, keep=1))
    assert {path.name for path in (run / "earlier").iterdir()} == {"step-2", "step-3", "step-4-before-the-change"}
    assert find_damage(run / "moved") is find_damage(run / "earlier" / "step-4-before-the-change") is None


def test_a_file_in_the_way_of_checkpoints_is_renamed_at_the_start(options, caplog):
    run = Path(options.output)
    train(dataclasses.replace(options, steps=4))
    (run / "earlier").write_text("mine")
    train(dataclasses.replace(options, resume=True))
    assert (run / "kept-earlier").read_text() == "mine" and "must be a folder" in caplog.text
    assert (run / "earlier" / "step-8").is_dir()


def test_several_damaged_checkpoints_are_skipped(finished, damaged):
    for name in ("last", "earlier/step-8"):
        (Path(damaged.output) / name / "training.json").unlink()
    train(dataclasses.replace(damaged, resume=True))
    assert log_events(damaged.output, "start")[-1]["step"] == 4
    assert runs_equal(finished.output, damaged.output)
    assert {"damaged-last", "damaged-step-8"} <= {path.name for path in Path(damaged.output).iterdir()}


def test_checkpoints_are_sorted_by_step(tmp_path):
    for step in (4, 12, 8, 100):
        (tmp_path / "earlier" / f"step-{step}").mkdir(parents=True)
    assert [checkpoint_step(path) for path in RunDirectory(tmp_path).checkpoints()] == [100, 12, 8, 4]
