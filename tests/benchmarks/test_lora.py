"""Tests of the command that measures fine-tuning with LoRA."""

import subprocess
import sys

import pytest
from click.testing import CliRunner
from support.paths import ROOT

import mlx_transformer as mt
from benchmarks import lora
from benchmarks.lora import PEFT, SYSTEMS, Shape

TINY = Shape(layers=1, dims=64, heads=2, mlp=128, vocab=300, rows=2, length=5)
FIGURES = {
    "loading": 1.5e9,
    "training": 2e9,
    "mlx": 1e9,
    "losses": [3.0, 2.5, 2.0],
    "seconds": [9, 4.0],
    "cpu_seconds": [9, 7.0],
    "other": "5%",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "checkpoint"
    lora.write_checkpoint(folder, TINY)
    return folder


@pytest.mark.parametrize("quantize", [None, 4])
def test_updates_learn_the_batch(quantize, checkpoint, tmp_path, monkeypatch):
    mt.convert(checkpoint, tmp_path / "base", quantize=quantize)
    monkeypatch.setattr(lora, "LEARNING_RATE", 1e-2)
    update = lora.make_ours(tmp_path / "base", TINY)
    assert update() > min(update() for _ in range(20)) + 0.05


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
def test_peft_trains_the_same_model_with_as_many_parameters(checkpoint, tmp_path, monkeypatch):
    for name in ("torch", "transformers", "peft"):
        pytest.importorskip(name)
    mt.convert(checkpoint, tmp_path / "base")
    monkeypatch.setattr(lora, "DROPOUT", 0.0)
    theirs = lora.peft_model(checkpoint)
    trained = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert lora.our_model(tmp_path / "base").num_parameters == trained
    monkeypatch.setattr(lora, "peft_model", lambda folder: theirs.eval())  # without dropout
    losses = [
        make(folder, TINY)() for make, folder in ((lora.make_ours, tmp_path / "base"), (lora.make_peft, checkpoint))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_table_has_a_row_for_each_system(monkeypatch):
    monkeypatch.setattr(lora, "measure_in_subprocess", lambda *arguments: FIGURES)
    result = CliRunner().invoke(lora.main, ["--shape", "small", "--system", "4 bits"], catch_exceptions=False)
    assert "shape=small | rank=16 | rows=32" in result.stdout
    assert "| 4 bits | 1.50 | 2.00 | 1.00 | 4.0 | 7.0 | 256.0 | 3.000 to 2.000 | 5% |" in result.stdout


@pytest.mark.slow
@pytest.mark.torch
def test_the_command_measures_every_system():
    pytest.importorskip("peft")
    command = [sys.executable, "-m", "benchmarks.lora", "--shape", "small", "--steps", "1"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in output.splitlines()[3:] if line]
    assert [cells[0] for cells in rows] == list(SYSTEMS)
    assert all(0.05 < float(cells[2]) < 2 and float(cells[6]) > 0 for cells in rows)
    assert [cells[3] == "-" for cells in rows] == [name == PEFT for name in SYSTEMS]
    assert all(float(cells[7].split()[0]) == pytest.approx(8.02, abs=0.02) for cells in rows)
