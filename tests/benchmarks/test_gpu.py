"""Tests of the command that measures a GPU in limited time."""

import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu, unattended

PARTS = list(gpu.SHARES)


@pytest.fixture(autouse=True)
def environment_is_restored(monkeypatch):
    """The command sets variables for MLX and for child processes."""
    for name in ("MLX_PTX_CACHE_DIR", "CUDA_CACHE_PATH", "TMPDIR", "MLX_ENABLE_TF32", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path, pytestconfig):
    """Run the command; return the result and the content of its file."""

    def run(*flags):
        file, device = tmp_path / "gpu.json", pytestconfig.getoption("--device")
        common = ["--json", str(file), "--device", device, "--threads", "1"]
        result = CliRunner().invoke(gpu.main, [*common, *flags], catch_exceptions=False)
        return result, json.loads(file.read_text())

    return run


@pytest.fixture
def run_settings(monkeypatch, run):
    """Run the command with other functions as settings of the parts "generation" and "training"."""

    def run_settings(generation, training, *flags):
        for name, settings in (("generation", generation), ("training", training)):
            part = gpu.Part(name, ("figure",), settings)
            monkeypatch.setattr(gpu, f"{name}_part", lambda *_, part=part: part)
        for name in ("tests", "step", "corpus"):
            part = gpu.Part({"step": "decode step"}.get(name, name), (), {})
            monkeypatch.setattr(gpu, f"{name}_part", lambda *_, part=part: part)
        return run(*flags)

    return run_settings


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.usefixtures("one_torch_thread")
def test_every_part_is_measured_without_private_names(run, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.setattr(platform, "node", lambda: "a-name-of-a-machine")
    monkeypatch.setattr(gpu, "TESTS", {"model": ("parts",)})
    monkeypatch.setattr(gpu, "SETTINGS", [(4, 1), (1, 2)])
    monkeypatch.setattr(gpu, "Sizes", lambda: gpu.TINY_SIZES)
    result, results = run("--kernel-cache", str(tmp_path / "kernels"))
    assert result.exit_code == 0 and results["state"] == "finished", result.output
    for private in (platform.node(), str(tmp_path), str(Path.home()), tempfile.gettempdir(), str(unattended.ROOT)):
        assert private not in json.dumps(results) + result.output
    measured = {name: part["measured"] for name, part in results["parts"].items()}
    assert [*measured] == PARTS and not any("error" in entry for part in measured.values() for entry in part)
    assert measured["tests"][0]["rows"][0]["counts"]["passed"] > 0
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
    assert "| marian-tiny, float32, beam 4, batch 1 | mlx_transformer |" in result.output


def test_without_time_everything_is_skipped_with_a_line(run):
    result, results = run("--minutes", "0")
    assert result.exit_code == 0 and results["state"] == "finished"
    assert not any(part["measured"] for part in results["parts"].values())
    assert [bool(part["skipped"]) for part in results["parts"].values()] == [True, True, True, True, False]
    assert result.output.count("Skipped, as no time was left: ") == 4
    assert "tiny sizes" in result.output or results["device"] == "gpu"


@pytest.mark.parametrize(
    ("minutes", "sent", "status", "state"),
    [("1", signal.SIGTERM, 143, "interrupted"), ("1", signal.SIGINT, 130, "interrupted"), ("0.01", 0, 0, "time")],
)
def test_an_interruption_loses_nothing_measured(run_settings, tmp_path, minutes, sent, status, state):
    def interrupted(seconds):
        saved.append(json.loads((tmp_path / "gpu.json").read_text()))
        os.kill(os.getpid(), sent)
        time.sleep(60)

    saved, started = [], time.monotonic()
    settings = {"first": lambda seconds: [{"figure": 1.5}], "second": interrupted}
    result, results = run_settings(settings, {"third": lambda seconds: [{"figure": 2.5}]}, "--minutes", minutes)
    assert time.monotonic() - started < 30
    assert result.exit_code == status and state in results["state"]
    for file in (saved[0], results):
        (entry,) = file["parts"]["generation"]["measured"]
        assert entry["setting"] == "first" and entry["rows"] == [{"figure": 1.5}]
    assert saved[0]["state"] == "running" and "training" not in results["parts"]


def test_a_failed_setting_does_not_stop_the_others(run_settings):
    def fail(seconds):
        raise TypeError(f"out of memory\nin {Path('/', 'some', 'folder')}")

    result, results = run_settings({"a": fail, "b": lambda seconds: [{"figure": 1}]}, {"c": fail})
    assert result.exit_code == 0 and results["state"] == "finished"
    failed, measured = results["parts"]["generation"]["measured"]
    assert failed["error"] == "TypeError: out of memory\nin <path>" and measured["rows"] == [{"figure": 1}]
    assert "| a | TypeError: out of memory in <path> |" in result.output
    assert "error" in results["parts"]["training"]["measured"][0]


def test_time_is_shared_among_parts_and_settings(run_settings):
    shares = []
    settings = {name: lambda seconds: shares.append(seconds) or [] for name in "ab"}
    run_settings(settings, {"c": settings["a"]}, "--minutes", "1")
    total = gpu.SHARES["generation"] + gpu.SHARES["training"]
    generation = 60 * gpu.SHARES["generation"] / total
    assert shares == pytest.approx([generation / 2, generation, 60], abs=1)


def test_compiled_kernels_are_kept_for_child_processes(monkeypatch, tmp_path):
    gpu.keep_kernels(str(tmp_path))
    assert Path(os.environ["MLX_PTX_CACHE_DIR"]).is_relative_to(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "b"))
    monkeypatch.setattr(gpu, "prepare_temporary_folder", lambda: None)
    gpu.keep_kernels(None)
    assert Path(os.environ["MLX_PTX_CACHE_DIR"]).is_relative_to(tmp_path / "b" / "mlx")


def test_training_ends_in_time_and_continues_its_run(monkeypatch, tmp_path):
    calls = []
    lines = [{"event": "start"}, {"event": "step", "step": 10, "loss": 2.5, "rate": 1}]
    printed = ["\n".join(map(json.dumps, lines)), "a line\nError: no model"]
    monkeypatch.setattr(
        gpu, "run_for", lambda *call: calls.append(call) or (printed[len(calls) - 1], False, len(calls) - 1)
    )
    train = gpu.corpus_part("a.tsv", "b.tsv", "model", str(tmp_path), ("--seed", "1")).settings["train"]
    assert train(100) == [{"event": "step", "step": 10, "loss": 2.5}]
    (tmp_path / "last").mkdir()
    with pytest.raises(RuntimeError, match="^Error: no model$"):
        train(100)
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


def test_a_corpus_needs_one_for_validation():
    result = CliRunner().invoke(gpu.main, ["--train-corpus", "a.tsv"])
    assert result.exit_code == 2 and "--train-corpus needs --valid-corpus" in result.output
