"""Tests of the command that measures training steps."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.training_benchmarks import TINY

import mlx_transformer as mt
from benchmarks import train
from benchmarks.measure import Sample
from benchmarks.train import MLX, OURS, TORCH

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_torch_thread")]


@pytest.mark.parametrize("name", train.SYSTEMS)
def test_every_system_learns_a_batch(name):
    update = train.SYSTEMS[name](TINY)
    assert update(1) > update(20) + 0.05


def test_speed_is_relative_to_ours(monkeypatch):
    monkeypatch.setattr(train, "SYSTEMS", dict.fromkeys(train.SYSTEMS, lambda options: lambda count: None))
    seconds = {OURS: 2.0, MLX: 3.0, TORCH: 1.0}
    monkeypatch.setattr(
        train, "interleave_calls", lambda calls, n: {name: [Sample(seconds[name], 0.0)] for name in calls}
    )
    results = train.speed(TINY, repeats=1, updates=4)
    assert results.data["seconds"] == {OURS: 0.5, MLX: 0.75, TORCH: 0.25}
    assert [(goal.figure, goal.reached(goal.goal)) for goal in results.goals] == [(1.5, "yes"), (0.5, "no")]
    assert f"| {TORCH} | 250.00 | 84 | 0.50 |" in results.text


def test_memory_is_relative_to_ours(monkeypatch):
    peaks = {OURS: 100, MLX: 80, TORCH: 200}
    monkeypatch.setattr(train, "peak_in_subprocess", lambda name, options: peaks[name])
    assert [(goal.figure, goal.reached(goal.goal)) for goal in train.memory(TINY).goals] == [(1.25, "no"), (0.5, "yes")]


def test_loss_memory_excludes_weights_and_moments(monkeypatch):
    sizes = []

    def peak(name, options, updates):
        model = mt.Transformer(options.model)
        sizes.append(sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters())))
        return 3 * sizes[-1] + 1_500_000_000

    monkeypatch.setattr(train, "peak_in_subprocess", peak)
    monkeypatch.setattr(train, "LARGE_VOCABULARY", {"layers": 1, "vocab": 60, "rows": 2, "length": 3})
    assert [goal.figure for goal in train.loss(TINY).goals] == [pytest.approx(1.5)] * 2
    assert sizes[0] < sizes[1]


def test_peak_memory_of_a_subprocess():
    large = replace(TINY, vocab=20_000)
    embedding_bytes = 20_000 * TINY.dims * 4
    assert 4 * embedding_bytes < train.peak_in_subprocess(OURS, large, updates=1) < 30 * embedding_bytes
    with pytest.raises(RuntimeError, match="mlx_transformer failed: .*num_heads must divide dims"):
        train.peak_in_subprocess(OURS, replace(TINY, heads=5))


def test_command_writes_all_figures(tmp_path, pytestconfig):
    flags = [f"--{name}={value}" for name, value in vars(TINY).items() if name in ("layers", "dims", "heads", "mlp")]
    flags += ["--rows=2", "--length=4", "--vocab=50", "--part=speed", "--repeats=1", "--steps=1", "--threads=1"]
    flags += ["--device", pytestconfig.getoption("--device"), "--json", str(tmp_path / "results.json")]
    result = CliRunner().invoke(train.main, flags, catch_exceptions=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["parts"]["speed"]["seconds"]) == set(train.SYSTEMS) and results["conditions"]["vocab"] == 50
    assert result.exit_code == 0 and "speed / torch.nn.Transformer" in result.output
