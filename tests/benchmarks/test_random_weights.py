"""Tests of throughput, growth and agreement with random weights."""

import pytest

from benchmarks import peers, random_weights, shapes
from benchmarks.measure import Sample


class FakeSystem:
    """A system that always generates the same token."""

    def __init__(self, name, exact, token):
        self.name, self.exact, self.token = name, exact, token

    def supports(self, beams, batch):
        return True

    def generate(self, source, beams, tokens):
        return [[self.token] * tokens for _ in source]


def test_times_count_only_with_the_tokens_of_transformers(monkeypatch, tmp_path):
    systems = [FakeSystem("mlx_transformer", True, 3), FakeSystem("transformers", True, 3)]
    systems += [FakeSystem("CTranslate2 float32", True, 4), FakeSystem("CTranslate2 int8", False, 4)]
    monkeypatch.setattr(random_weights.Options, "available_systems", lambda self, shape: (systems, []))
    seconds = {"mlx_transformer": 1.0, "transformers": 2.0, "CTranslate2 float32": 0.1, "CTranslate2 int8": 0.5}
    monkeypatch.setattr(
        random_weights, "interleave_calls", lambda calls, n: {name: [Sample(seconds[name], 0.0)] for name in calls}
    )
    options = random_weights.Options(tmp_path, None, "float32", "cpu", 1, 1, [(4, 8)], tokens=5)
    results = random_weights.throughput("marian-tiny", options)
    rows = {row["system"]: row for row in results.data}
    assert {name: row["counts"] for name, row in rows.items()} == dict(
        zip(seconds, [True, True, False, True], strict=True)
    )
    assert rows["transformers"]["ours_over_it"] == 2 and rows["CTranslate2 int8"]["ours_over_it"] == 0.5
    assert rows["CTranslate2 float32"]["same_tokens"] == 0
    assert rows["mlx_transformer"]["tokens_per_second"] == 40
    assert [(goal.figure, goal.reached(goal.goal)) for goal in results.goals] == [(2, "yes"), (None, "-")]
    assert "DO NOT VARY" in results.text


def test_agreement_is_the_share_of_equal_tokens():
    assert random_weights.agreement([[1, 2], [3, 4]], [[1, 2], [4, 4]]) == 0.75


def test_timestamps_include_the_edges_of_the_windows(tmp_path):
    shape = shapes.SHAPES["t5-tiny"]
    shapes.write_checkpoint(shape, tmp_path)
    timestamps = peers.Ours(shape, tmp_path).token_timestamps(shapes.random_sources(shape, 1, 5), 40)
    assert [*timestamps] == [8, 24, 40] and sorted(timestamps.values()) == [*timestamps.values()]
    assert {*random_weights.NEAR_WINDOW, *random_weights.FAR_WINDOW} <= {
        *range(8, random_weights.FAR_WINDOW[1] + 1, 16)
    }
    assert random_weights.ms_per_token({8: 1.0, 24: 1.8}, (8, 24)) == pytest.approx(50)


def test_equal_sequences_are_counted_apart_from_equal_tokens():
    class OneWrong(FakeSystem):
        def generate(self, source, beams, tokens):
            return [[self.token] * tokens, [self.token] * (tokens - 1) + [9]]

    systems = [OneWrong("mlx_transformer", False, 3), FakeSystem("transformers", True, 3)]
    source = shapes.random_sources(shapes.SHAPES["t5-tiny"], 2, 3)
    (ours, theirs), _ = random_weights.compare_systems(systems, source, 1, tokens=4, repeats=1)
    assert (ours["same_tokens"], ours["same_sequences"], theirs["same_sequences"]) == (7 / 8, 1 / 2, 1)
