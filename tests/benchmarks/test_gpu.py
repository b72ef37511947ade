"""Tests of the command that measures a GPU in limited time."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu, train, unattended
from benchmarks.supervision import Report, run_parts

PARTS = list(gpu.SHARES)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "gpu.json"


def run_command(file, *flags, **settings):
    """Run the command; return the process and the content of its file."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(file), "--threads", "1", *flags]
    result = subprocess.run(command, cwd=unattended.ROOT, capture_output=True, text=True, **settings)
    return result, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.torch
def test_every_part_is_measured_without_private_names(file, pytestconfig, tmp_path):
    pytest.importorskip("transformers")
    flags = ["--device", "cpu", "--minutes", "10", "--kernel-cache", str(tmp_path / "kernels")]
    result, results = run_command(file, *flags)
    assert result.returncode == 0 and results["state"] == "finished", result.stdout
    for private in (platform.node(), str(tmp_path), str(Path.home()), tempfile.gettempdir(), str(unattended.ROOT)):
        assert private not in json.dumps(results) + result.stdout
    measured = {name: part["measured"] for name, part in results["parts"].items()}
    assert [*measured] == PARTS and not any("error" in entry for part in measured.values() for entry in part)
    assert all(entry["rows"][0]["counts"]["passed"] > 10 for entry in measured["tests"])
    generation = {entry["setting"]: entry["rows"] for entry in measured["generation"]}
    assert [*generation][0] == "marian-tiny, float32, beam 4, batch 1" and len(generation) == 8
    for setting, (ours, theirs) in generation.items():
        assert theirs["system"].startswith("transformers") and theirs["ours_over_it"] > 0
        assert ours["same_sequences"] == 1 or "float32" not in setting
    assert [len(entry["rows"]) for entry in measured["training"]] == [2, 2]
    step = measured["decode step"][0]["rows"][0]
    assert 0 < step["chain"] < step["kernels"] == sum(step["kernels_by_name"].values())
    assert step["wall"] == pytest.approx(step["build"] + step["issue"] + step["wait"])
    assert results["parts"]["corpus"]["note"] == "Skipped: --train-corpus is not set."
    assert "| marian-tiny, float32, beam 4, batch 1 | mlx_transformer |" in result.stdout


def test_a_setting_of_each_part_without_torch(tmp_path, monkeypatch):
    def absent(*_):
        raise ImportError

    monkeypatch.setattr(gpu, "SeparateSystem", absent)
    monkeypatch.setattr(train, "is_installed", lambda name: name == train.OURS)
    sizes = gpu.TINY_SIZES
    (row,) = gpu.generation_part(sizes, tmp_path, "cpu", 1).settings["t5-tiny, float32, greedy, batch 16"](60)
    assert row["system"] == train.OURS and row["tokens_per_second"] > 0
    (row,) = gpu.training_part(sizes, train.Options(threads=1)).settings["tiny, float32"](60)
    assert row["system"] == train.OURS and row["ours_over_it"] == 1 and row["ms"] > 0
    (row,) = gpu.step_part(sizes, tmp_path, "cpu").settings["t5-tiny, float32, greedy, batch 1"](60)
    assert 0 < row["chain"] < row["kernels"]


def test_without_time_everything_is_skipped_with_a_line(file, tmp_path, capsys):
    parts = [gpu.tests_part(gpu.Sizes(), "cpu"), gpu.generation_part(gpu.Sizes(), tmp_path, "cpu", 1)]
    parts += [gpu.training_part(gpu.Sizes(), train.Options()), gpu.step_part(gpu.Sizes(), tmp_path, "cpu")]
    parts += [gpu.corpus_part(None, None, None, "", ())]
    assert run_parts(Report(file, {}), parts, 0, time.time()) == 0
    results = json.loads(file.read_text())
    assert results["state"] == "finished" and [*results["parts"]] == PARTS
    assert [len(part["skipped"]) for part in results["parts"].values()] == [3, 24, 4, 8, 0]
    assert not any(part["measured"] for part in results["parts"].values())
    assert capsys.readouterr().out.count("\nSkipped, as no time was left: ") == 4


@pytest.mark.slow
def test_sigterm_to_the_command_ends_what_it_started(file):
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(file), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, cwd=unattended.ROOT, stdout=subprocess.PIPE, text=True)
    while not (file.exists() and "running" in json.loads(file.read_text())):
        time.sleep(0.1)
    process.terminate()
    assert "End: interrupted." in process.communicate(timeout=60)[0]
    assert process.returncode == 143 and json.loads(file.read_text())["state"] == "interrupted"


def test_compiled_kernels_are_kept_for_child_processes(monkeypatch, tmp_path):
    for name in ("MLX_PTX_CACHE_DIR", "CUDA_CACHE_PATH"):
        monkeypatch.setenv(name, "")  # restored at the end
    gpu.keep_kernels(str(tmp_path))
    assert Path(os.environ["MLX_PTX_CACHE_DIR"]).is_relative_to(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "b"))
    monkeypatch.setattr(gpu, "prepare_temporary_folder", lambda: None)
    gpu.keep_kernels(None)
    assert Path(os.environ["MLX_PTX_CACHE_DIR"]).is_relative_to(tmp_path / "b" / "mlx")


def test_training_ends_in_time_and_continues_its_run(monkeypatch, tmp_path):
    calls = []
    lines = [{"event": "start"}, {"event": "step", "step": 10, "loss": 2.5, "rate": 1}]
    printed = ["\n".join(map(json.dumps, lines)), "a line\nError: no model", ""]
    monkeypatch.setattr(
        gpu, "run_for", lambda *call: calls.append(call) or (printed[len(calls) - 1], len(calls) > 2, len(calls) - 1)
    )
    measure = gpu.corpus_part("a.tsv", "b.tsv", "model", str(tmp_path), ("--seed", "1")).settings["train"]
    assert measure(100) == [{"event": "step", "step": 10, "loss": 2.5}]
    (tmp_path / "last").mkdir()
    with pytest.raises(RuntimeError, match="^Error: no model$"):
        measure(100)
    assert "no step was logged" in measure(1)[0]["event"]
    assert calls[2][1] == 1
    commands = [" ".join(command) for command, *_ in calls]
    start = f"{sys.executable} -m mlx_transformer train --json --output {tmp_path}"
    assert commands[0] == f"{start} --train a.tsv --valid b.tsv --init model --seed 1"
    assert commands[1] == f"{start} --resume --seed 1"
    assert calls[0][1:] == (100 - gpu.STOP_SECONDS, signal.SIGTERM)


@pytest.mark.slow
def test_a_real_training_run_is_stopped_with_a_checkpoint(tmp_path):
    options = ("--preset", "tiny", "--steps", "100000", "--log-every", "1")
    part = gpu.corpus_part("dates", "dates", None, str(tmp_path / "run"), options)
    assert part.settings["train"](gpu.STOP_SECONDS + 15)[0]["loss"] > 0
    assert (tmp_path / "run" / "last").is_dir()


def test_the_files_of_tests_exist():
    for sizes in (gpu.Sizes(), gpu.TINY_SIZES):
        for folder, names in sizes.tests.items():
            assert all((unattended.ROOT / "tests" / folder / f"test_{name}.py").is_file() for name in names)


def test_a_corpus_needs_one_for_validation():
    result = CliRunner().invoke(gpu.main, ["--train-corpus", "a.tsv"])
    assert result.exit_code == 2 and "--train-corpus needs --valid-corpus" in result.output
