"""Training in two processes: each takes its batches, and together they take the step of one batch."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.paths import ROOT, TESTS
from support.training_cases import MODEL, OPTIONS, log_of, make_batch, near, same_bits, write_corpora

from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.run_directory import checkpoint_step
from mlx_transformer.training.train_state import TrainState

STEPS = 2
PROGRAM = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import mlx.core as mx
mx.set_default_device(mx.cpu)
import training.test_distributed as t
trainer = t.new_trainer()
for step in range(t.STEPS):
    trainer.update([t.batch_of(step, trainer.group.rank())])
t.save(trainer, sys.argv[1])
"""


# A run whose validations never get better after the first.
RUN = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import mlx.core as mx
mx.set_default_device(mx.cpu)
from pathlib import Path
from mlx_transformer.training.trainer import train
from mlx_transformer.training.validation import Validator
from support.training_cases import run_options
Validator.measure = lambda *_: dict(loss=1.0, token_accuracy=0.5)
train(run_options(Path(sys.argv[1]).parent, patience=1, steps=40))
"""
ring = pytest.mark.skipif(sys.platform != "linux", reason="needs the ring back end on loopback, tried on Linux only")


def new_trainer():
    mx.random.seed(1)
    return TrainState(Transformer(dataclasses.replace(MODEL, dropout=0.0)), OPTIONS)


def batch_of(step, rank):
    """The second process has fewer tokens, so that it must weigh less."""
    return make_batch(rows=5 - 3 * rank, seed=2 * step + rank)


def save(trainer, path):
    mx.save_safetensors(path, split_projections({"model": trainer.model.parameters(), "average": trainer.average}))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_two(program, arguments):
    """Run a program in two processes that know each other, one for each of the lists of arguments."""
    hosts = Path(arguments[0][0]).with_name("hosts.json")
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(hosts), "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *given],
            env=environment | {"MLX_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank, given in enumerate(arguments)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()


@ring
def test_two_processes_take_the_step_of_one_batch(tmp_path, tolerance):
    files = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    start_two(PROGRAM, [[str(file)] for file in files])
    first, second = (mx.load(str(file)) for file in files)
    assert same_bits(first, second)

    alone = new_trainer()
    for step in range(STEPS):
        parts = [batch_of(step, rank) for rank in range(2)]
        alone.update([Batch(*(np.concatenate(side) for side in zip(*parts, strict=True)))])
    save(alone, str(tmp_path / "alone.safetensors"))
    # The gradient of a key bias is rounding alone, which Adam makes into steps of full size.
    expected = {n: a for n, a in mx.load(str(tmp_path / "alone.safetensors")).items() if "key_proj.bias" not in n}
    assert near({name: first[name] for name in expected}, expected, tolerance(1e-4))


@ring
def test_two_processes_end_a_run_together(tmp_path):
    write_corpora(tmp_path)
    start_two(RUN, [[str(tmp_path / "any")]] * 2)
    (ended,) = log_of(tmp_path / "run", "end")
    assert (ended["step"], ended["reason"]) == (8, "patience")
    assert checkpoint_step(tmp_path / "run" / "last") == 8
