"""Resuming: stopped, killed and moved runs continue exactly, and a run does not resume with other options or data."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from support.paths import ROOT, TESTS
from support.training_cases import bitwise_equal, interrupt_at, log_events, run_state, runs_equal

from mlx_transformer.storage import atomic
from mlx_transformer.training.run_directory import RunDirectory, checkpoint_step, load_run_options
from mlx_transformer.training.trainer import train

pytestmark = pytest.mark.cpu

KILLS = int(os.environ.get("KILLS", "6"))  # times that one run is killed; each takes seconds
# Each has other state to save and restore.
VARIANTS = [
    {"join_sentences": 0.4, "uppercase": 0.3, "lowercase": 0.3, "drop_final_punctuation": 0.5}
    | {"copy_numbers": 0.5, "copy_names": 0.5, "max_length": 40},
    {"ema_decay": 0.0, "optimizer": "adafactor"},
    {"accumulate": 2, "optimizer": "lion", "weight_decay": 0.01},
    {"average_checkpoints": 2, "keep": 3, "schedule": "cosine"},
    {"compute_dtype": "float16", "recompute": True},
    {"attention_dropout": 0.1, "activation_dropout": 0.1, "patience": 1},
    {"decoder_self_attention": "ssru", "recompute": True},
    {"decoder_self_attention": "average", "mlp_layers": 3},
]
# Resumes a run and kills itself at the n-th call of a function, or after some time.
PROGRAM = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import conftest  # first, so that results are those of the same BLAS
import mlx.core as mx
mx.set_default_device(mx.cpu)
import pathlib
from mlx_transformer.storage import atomic
from mlx_transformer.training.run_directory import load_run_options
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train
import dataclasses
run, event, calls = sys.argv[2], sys.argv[3], int(sys.argv[4])
functions = {"sync": (atomic, "fsync"), "rename": (pathlib.Path, "rename"), "step": (TrainState, "update")}
owner, name = functions.get(event, (TrainState, "write"))
if event == "time":  # in hundredths of a second
    threading.Timer(calls / 100, os.kill, (os.getpid(), signal.SIGKILL)).start()
    calls = 0
function = vars(owner)[name]
def counted(*arguments):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)
setattr(owner, name, counted)
train(dataclasses.replace(load_run_options(run), resume=True))
"""


def resume_and_kill(options, event, calls):
    """Resume a run in a new process that kills itself; return its exit status."""
    if not RunDirectory(options.output).options_file.exists():
        RunDirectory(options.output).folder.mkdir()
        RunDirectory(options.output).prepare(options, 0, {}, {})
    command = [sys.executable, "-c", PROGRAM, str(TESTS), options.output, event, str(calls)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()
    return process.returncode


def test_a_resumed_run_equals_an_uninterrupted_one(finished, options):
    train(dataclasses.replace(options, steps=4))
    assert not runs_equal(finished.output, options.output)
    train(dataclasses.replace(options, resume=True))
    assert runs_equal(finished.output, options.output)
    assert log_events(finished.output, "validation") == log_events(options.output, "validation")
    fields = ("step", "loss", "learning_rate", "gradient_norm")
    steps, resumed_steps = (
        [{name: entry[name] for name in fields} for entry in log_events(run, "step")]
        for run in (finished.output, options.output)
    )
    assert steps == resumed_steps


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.slow
def test_resuming_is_exact_for_all_options(options, changes, tmp_path):
    options = dataclasses.replace(options, **changes)
    resumed = dataclasses.replace(options, output=str(tmp_path / "resumed"), log_every=1)
    train(options)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(resumed, resume=resume), interrupt_at(3, 6))
    train(dataclasses.replace(resumed, resume=True))
    assert runs_equal(options.output, resumed.output)
    assert log_events(options.output, "validation") == log_events(resumed.output, "validation")


def test_log_entries_cover_steps_before_and_after_a_stop(options, tmp_path):
    """An entry covers all steps since the previous one, even if the run was stopped in between."""
    options = dataclasses.replace(options, log_every=5)
    resumed = dataclasses.replace(options, output=str(tmp_path / "resumed"))
    train(options)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, interrupt_at(4, event="validation"))
    train(dataclasses.replace(resumed, resume=True))
    steps, resumed_steps = (
        [{name: entry[name] for name in ("step", "loss", "perplexity")} for entry in log_events(run, "step")]
        for run in (options.output, resumed.output)
    )
    assert steps == resumed_steps and len(steps) == 3


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(options, tmp_path):
    """Killed at random times, and while it writes a checkpoint."""
    options = dataclasses.replace(options, steps=5 * KILLS + 10)
    train(options)
    resumed = dataclasses.replace(options, output=str(tmp_path / "resumed"))
    rng = random.Random(0)
    for number in range(KILLS):
        event, max_calls = [("time", 40), ("sync", 25), ("step", 6), ("rename", 6)][number % 4]
        assert resume_and_kill(resumed, event, rng.randint(1, max_calls)) == -signal.SIGKILL
    assert RunDirectory(resumed.output).checkpoints()
    train(dataclasses.replace(resumed, resume=True))
    assert runs_equal(options.output, resumed.output)
    steps = [[entry["step"] for entry in log_events(run, "step")] for run in (options.output, resumed.output)]
    assert steps[0] == steps[1]  # steps repeated after a kill are logged once


def test_an_existing_run_is_not_overwritten(options):
    train(dataclasses.replace(options, steps=1))
    before = run_state(options.output)
    with pytest.raises(FileExistsError, match=f"{options.output} already holds a run: set resume"):
        train(options)
    after = run_state(options.output)
    assert before[1] == after[1] and bitwise_equal(before[0], after[0])


@pytest.mark.parametrize("name", ["options.toml", "log.jsonl", "best/config.json"])
def test_files_that_are_not_of_a_run_are_not_overwritten(options, name):
    path = Path(options.output) / name
    path.parent.mkdir(parents=True)
    path.write_text("# Found in a month of trials\n")
    with pytest.raises(FileExistsError, match="exists and is not of a run, it would be lost: choose another output"):
        train(options)
    assert [file for file in Path(options.output).rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "# Found in a month of trials\n"


def test_an_output_that_is_a_file_is_kept(options):
    path = Path(options.output)
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match=f"^A run must be a folder, but {path} is a file: choose another"):
        train(options)
    assert path.read_text() == "mine\n"


def test_resuming_without_a_checkpoint_starts_from_the_beginning(finished, options):
    resumed = dataclasses.replace(options, resume=True)
    with pytest.raises(FileNotFoundError, match=f"There is no run to resume in {options.output}: start one"):
        train(resumed)
    assert not Path(options.output).exists()

    def fail(entry):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(options, fail)
    train(resumed)
    assert runs_equal(finished.output, options.output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_run_with_a_checkpoint(finished, options, number):
    handler = signal.getsignal(number)

    def stop(entry):
        if entry["event"] == "step" and entry["step"] == 6:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as error:
        train(options, stop)
    assert number == signal.SIGINT or error.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(number) is handler
    assert log_events(options.output, "stopped") == [{"event": "stopped", "step": 6, "signal": number}]
    assert checkpoint_step(Path(options.output) / "last") == 6
    train(dataclasses.replace(options, resume=True))
    assert runs_equal(finished.output, options.output)


def test_changed_options_are_named_in_the_error(options):
    train(dataclasses.replace(options, steps=1))
    other = dataclasses.replace(options, resume=True, seed=9, learning_rate=1.0, steps=3, keep=5)
    with pytest.raises(
        ValueError,
        match="options.toml, but learning_rate was .* and is 1.0, seed was 4 and is 9; only keep, steps and the paths",
    ):
        train(other)
    train(dataclasses.replace(options, resume=True, steps=2, keep=5))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_steps_cannot_change_with_a_schedule_that_ends_at_zero(options, schedule):
    options = dataclasses.replace(options, schedule=schedule)
    train(options)
    with pytest.raises(ValueError, match="but steps was 12 and is 20; only keep and the paths"):
        train(dataclasses.replace(options, resume=True, steps=20))


def test_a_run_resumes_in_another_working_directory(finished, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    train(dataclasses.replace(options, train=("train.tsv",), valid=("valid.tsv",), steps=4))
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(dataclasses.replace(load_run_options(options.output), output=options.output, steps=12, resume=True))
    assert runs_equal(finished.output, options.output)


def test_a_run_with_relative_paths_of_an_earlier_version_resumes_where_it_began(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(dataclasses.replace(options, steps=2))
    file = RunDirectory(options.output).options_file
    file.write_text(file.read_text().replace(f'"{tmp_path}/train.tsv"', '"train.tsv"'))
    run = dataclasses.replace(load_run_options(options.output), steps=4, resume=True)
    assert run.train == ("train.tsv",)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"corpus file train\.tsv does not exist in .*elsewhere;"):
        train(run)
    monkeypatch.chdir(tmp_path)
    train(run)
    assert log_events(options.output, "end")


def test_corpora_that_have_moved_can_be_named_again(options, tmp_path):
    train(dataclasses.replace(options, steps=2))
    moved = (str(Path(options.train[0]).rename(tmp_path / "moved.tsv")),)
    with pytest.raises(FileNotFoundError):
        train(dataclasses.replace(options, resume=True))
    train(dataclasses.replace(options, train=moved, steps=4, resume=True))
    assert load_run_options(options.output).train == moved


def test_changed_corpora_raise(options):
    train(dataclasses.replace(options, steps=1))
    path = Path(options.train[0])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match="their contents have changed: restore the files"):
        train(dataclasses.replace(options, resume=True))
    path.write_text("".join(lines))
    valid = Path(options.valid[0])
    text = valid.read_text()
    valid.write_text(text.partition("\n")[0] + "\n")
    with pytest.raises(ValueError, match="their contents have changed"):
        train(dataclasses.replace(options, resume=True))
    valid.write_text(text)
    train(dataclasses.replace(options, resume=True))


def test_a_second_process_cannot_train_in_the_same_folder(options, monkeypatch):
    """The second process raises before it reads or moves anything, even while a checkpoint is written."""
    attempts = []

    def train_again(*_):
        for resume in (True, False):
            with pytest.raises(BlockingIOError, match="is in use by another training process: stop that one first"):
                train(dataclasses.replace(options, resume=resume))
            attempts.append(resume)

    fsync = atomic.fsync
    monkeypatch.setattr(atomic, "fsync", lambda path: train_again() or fsync(path))
    monkeypatch.setattr(RunDirectory, "latest_checkpoint", lambda *_, **__: None)  # reads checkpoints
    train(options, train_again)
    assert len(log_events(options.output, "validation")) == 3 and len(attempts) > 60
    assert not list(Path(options.output).glob("damaged*"))


def test_fewer_steps_than_finished_raise(options):
    train(dataclasses.replace(options, steps=2))
    with pytest.raises(ValueError, match="steps must be at least the run's 2 finished steps, not 1"):
        train(dataclasses.replace(options, resume=True, steps=1))


def test_training_does_not_affect_the_caller_s_random_state(options):
    mx.random.seed(5)
    expected = mx.random.uniform().item()
    mx.random.seed(5)
    train(dataclasses.replace(options, steps=1))
    assert mx.random.uniform().item() == expected


def test_resuming_a_finished_run_changes_nothing(options):
    best = train(options)
    files = {path: path.read_bytes() for path in Path(options.output).rglob("*.safetensors")}
    assert train(dataclasses.replace(options, resume=True)) == best
    assert files == {path: path.read_bytes() for path in Path(options.output).rglob("*.safetensors")}


def test_a_moved_run_folder_resumes(finished, options, tmp_path):
    train(dataclasses.replace(options, steps=4))
    Path(options.output).rename(tmp_path / "moved")
    train(dataclasses.replace(options, output=str(tmp_path / "moved"), resume=True))
    assert runs_equal(finished.output, tmp_path / "moved")


@pytest.mark.parametrize("stopped", [2, 6])
def test_a_run_resumed_at_its_last_step_is_validated(options, stopped):
    with pytest.raises(KeyboardInterrupt):
        train(options, interrupt_at(stopped))
    assert train(dataclasses.replace(options, resume=True, steps=stopped)).exists()
    assert log_events(options.output, "validation")[-1]["step"] == stopped
