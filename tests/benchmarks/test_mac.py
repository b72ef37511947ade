"""Tests of the command that measures a Mac."""

import json
import platform
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from click.testing import CliRunner

from benchmarks import command_buffers, mac, unattended
from benchmarks.train import Options


def test_the_json_file_has_all_figures_and_no_private_names(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "a-name-of-a-machine")
    tiny = {"layers": 1, "dims": 16, "heads": 2, "mlp": 16, "vocab": 20, "rows": 2, "length": 4}
    monkeypatch.setattr(mac, "Options", partial(Options, **tiny))
    file = tmp_path / "mac.json"
    flags = ["--no-tests", "--no-peers", "--no-growth", "--no-bundled", "--device", pytestconfig.getoption("--device")]
    sizes = ["--shape", "t5-tiny", "--numbers", "float32", "--batches", "1,2", "--repeats", "1", "--tokens", "4"]
    result = CliRunner().invoke(mac.main, [*flags, *sizes, "--output", str(file)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = file.read_text()
    for private in (platform.node(), str(tmp_path), str(Path.home()), tempfile.gettempdir(), str(unattended.ROOT)):
        assert private not in text
    results = json.loads(text)
    assert all(seconds > 0 for seconds in results["training"]["float32"].values())
    shape = results["shapes"]["t5-tiny"]
    assert {(row["beams"], row["batch"]) for row in shape["speed"]} == {(1, 1), (1, 2), (4, 1), (4, 2)}
    assert all(row["tokens_per_second"] > 0 and row["peak_mb"] > 0 for row in shape["speed"])
    assert shape["same_tokens_as_on_the_cpu"] == {"greedy, batch 4": 1, "beam 4, batch 4": 1}
    counts = shape["kernels"]["beam 4, as on a GPU"]
    assert counts["total"] == sum(number for name, number in counts.items() if name != "total") > 0
    loaded = shape["held_bytes"]["float32"]
    assert loaded == {part: shape["step_bytes"]["float32"][part] for part in loaded}
    assert (results["machine"]["note"] is None) == (platform.system() == "Darwin" and mx.default_device() == mx.gpu)


@pytest.mark.slow
def test_limits_of_command_buffers_are_swept_in_processes_of_their_own(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.setattr(command_buffers, "LIMITS", command_buffers.LIMITS[-2:])
    rows = mac.sweep_command_buffers("t5-tiny", pytestconfig.getoption("--device"), 1, 4)
    assert [(row["kernels"], row["elements"]) for row in rows] == list(command_buffers.PAIRS[-2:])
    assert all(row["tokens/s, beam 4, batch 16"] > 0 and row["peak MB"] > 0 for row in rows)
    assert command_buffers.limits_table(rows).count("\n") == 4


def test_a_process_of_the_sweep_has_its_limits(monkeypatch):
    seen = []

    def run(command, env, **options):
        seen.append((env["MLX_MAX_OPS_PER_BUFFER"], env["MLX_MAX_MB_PER_BUFFER"]))
        return SimpleNamespace(stdout="{}\n")

    monkeypatch.setattr(command_buffers.subprocess, "run", run)
    command_buffers.measure_limits("t5-tiny", Path("model"), "cpu", "float32", 1, 4)
    assert seen == [(str(kernels), str(elements)) for kernels, elements in command_buffers.PAIRS]
