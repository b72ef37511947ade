"""Training in two processes: each reads its own batches, and together they take the step of one larger batch."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.paths import ROOT, TESTS
from support.training_cases import (
    MODEL,
    OPTIONS,
    all_close,
    bitwise_equal,
    log_events,
    make_batch,
    without_key_biases,
    write_corpora,
)

from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.run_directory import checkpoint_step
from mlx_transformer.training.train_state import TrainState

STEPS = 2
# Takes some steps and saves the weights.
STEP_PROGRAM = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import conftest  # first, so that results are those of the same BLAS
import mlx.core as mx
mx.set_default_device(mx.cpu)
import training.test_distributed as t
state = t.new_train_state()
for step in range(t.STEPS):
    state.update([t.make_step_batch(step, state.group.rank())])
t.save(state, sys.argv[1])
"""
# A run whose validations never improve after the first; a callback may stop it at an earlier step.
RUN_PROGRAM = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import conftest  # first, so that results are those of the same BLAS
import mlx.core as mx
mx.set_default_device(mx.cpu)
from pathlib import Path
from mlx_transformer.training.trainer import train
from mlx_transformer.training.validation import Validator
from support.training_cases import run_options
Validator.measure = lambda *_: dict(loss=1.0, token_accuracy=0.5)
options = run_options(Path(sys.argv[1]).parent, patience=1, steps=40)
train(options, on_step=lambda step: step.step < int(sys.argv[2]))
"""
# The second process checks the folder of the run for so long that the first one could begin to write to it.
SLOW_CHECK_PROGRAM = """
import os, pathlib, time
is_file = pathlib.Path.is_file
def is_file_slowly(path):
    result = is_file(path)
    time.sleep(4 if path.name == "options.toml" else 0)
    return result
if os.environ["MLX_RANK"] == "1":
    pathlib.Path.is_file = is_file_slowly
"""
needs_ring = pytest.mark.skipif(sys.platform != "linux", reason="tests MLX's ring back end on Linux only")


def new_train_state():
    mx.random.seed(1)
    return TrainState(Transformer(dataclasses.replace(MODEL, dropout=0.0)), OPTIONS)


def make_step_batch(step, rank):
    """The batch of a process; the second process has fewer tokens, so it must weigh less."""
    return make_batch(rows=5 - 3 * rank, seed=2 * step + rank)


def save(state, path):
    mx.save_safetensors(path, split_projections({"model": state.model.parameters(), "average": state.ema_weights}))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run_two_processes(program, arguments, timeout=240):
    """Run a program in two processes of one distributed group, one for each list of arguments.

    Each process leads a process group, which is killed in the end, so that a failing test leaves no process behind.
    """
    folder = Path(arguments[0][0]).parent
    (folder / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"MLX_HOSTFILE": str(folder / "hosts.json")}
    processes = []
    try:
        for rank, process_arguments in enumerate(arguments):
            with open(folder / f"errors{rank}.txt", "w") as errors:
                command = [sys.executable, "-c", program, *process_arguments]
                rank_environment = environment | {"MLX_RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=rank_environment, stderr=errors, start_new_session=True))
        deadline = time.monotonic() + timeout
        exit_codes = [None, None]
        # If one process fails, the other one may wait for it forever.
        while None in exit_codes and not any(exit_codes) and time.monotonic() < deadline:
            time.sleep(0.02)
            exit_codes = [process.poll() for process in processes]
        assert exit_codes == [0, 0], "\n".join((folder / f"errors{rank}.txt").read_text() for rank in range(2))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@needs_ring
@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tmp_path, tolerance):
    files = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    run_two_processes(STEP_PROGRAM, [[str(file)] for file in files])
    first, second = (mx.load(str(file)) for file in files)
    assert bitwise_equal(first, second)

    single = new_train_state()
    for step in range(STEPS):
        batches = [make_step_batch(step, rank) for rank in range(2)]
        single.update([Batch(*(np.concatenate(side) for side in zip(*batches, strict=True)))])
    save(single, str(tmp_path / "single.safetensors"))
    expected = without_key_biases(mx.load(str(tmp_path / "single.safetensors")))
    assert all_close({name: first[name] for name in expected}, expected, tolerance(1e-4))


@needs_ring
@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    write_corpora(tmp_path)
    run_two_processes(RUN_PROGRAM, [[str(tmp_path / "any"), "40"]] * 2)
    (end,) = log_events(tmp_path / "run", "end")
    assert (end["step"], end["reason"]) == (8, "patience")
    assert checkpoint_step(tmp_path / "run" / "last") == 8


@needs_ring
@pytest.mark.slow
def test_a_callback_of_the_first_process_stops_both(tmp_path):
    write_corpora(tmp_path)
    run_two_processes(RUN_PROGRAM, [[str(tmp_path / "any"), stop] for stop in ("3", "1")])
    (stopped,) = log_events(tmp_path / "run", "stopped")
    assert stopped["step"] == checkpoint_step(tmp_path / "run" / "last") == 3


@needs_ring
@pytest.mark.slow
def test_no_process_writes_before_all_have_checked_the_folder(tmp_path):
    write_corpora(tmp_path)
    run_two_processes(SLOW_CHECK_PROGRAM + RUN_PROGRAM, [[str(tmp_path / "any"), "1"]] * 2)
    assert checkpoint_step(tmp_path / "run" / "last") == 1


@needs_ring
def test_a_failing_process_leaves_no_other_behind(tmp_path):
    """The second process fails while the first one waits for a child process."""
    program = """
import os, pathlib, subprocess, sys, time
pids = pathlib.Path(sys.argv[1])
if os.environ["MLX_RANK"] == "0":
    child = subprocess.Popen(["sleep", "1000"])
    pids.with_name("new").write_text(f"{os.getpid()} {child.pid}")
    pids.with_name("new").rename(pids)
    child.wait()
while not pids.exists():
    time.sleep(0.02)
sys.exit("failed on purpose")
"""
    with pytest.raises(AssertionError, match="failed on purpose"):
        run_two_processes(program, [[str(tmp_path / "pids")]] * 2)
    pids = (tmp_path / "pids").read_text().split()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in pids)
