"""Tests of the profile of a decode step."""

import mlx.core as mx
import pytest

from benchmarks import peers, shapes, steps
from mlx_transformer.decoding import running_search


def test_the_parts_of_a_step_add_up_to_its_time():
    count = steps.FIRST_STEP + 2 * running_search.STEPS_PER_STOP_TEST + 2
    # Steps of 10 ms: 2 to build, 3 to issue, 5 of waiting; what precedes the first measured step is slower.
    issued = [-(10.0 ** (steps.FIRST_STEP - i)) if i < steps.FIRST_STEP else 0.01 * i for i in range(count)]
    times = steps.Timestamps(issued, [start + 0.003 for start in issued], [0.005] * count)
    assert steps.milliseconds_per_step(times) == pytest.approx({"wall": 10, "build": 2, "issue": 3, "wait": 5})
    with pytest.raises(ValueError, match="at least 10 steps: there are 9"):
        steps.milliseconds_per_step(steps.Timestamps([0.0] * 9, [0.0] * 9, [0.0] * 9))


def test_a_profile_leaves_the_search_as_it_was(tmp_path):
    shape = shapes.SHAPES["t5-tiny"]
    shapes.write_checkpoint(shape, tmp_path)
    system, source = peers.Ours(shape, tmp_path), shapes.random_sources(shape, 1, 5)
    before = (mx.async_eval, running_search.to_host, system.generate(source, 2, 12))
    profile = steps.profile_steps(system, source, beams=2, tokens=12, repeats=2)
    assert profile["gap"] == pytest.approx(profile["wall"] - profile["evaluation"])
    assert min(profile["wall"], profile["build"], profile["evaluation"]) > 0
    assert (mx.async_eval, running_search.to_host, system.generate(source, 2, 12)) == before


def test_each_step_is_recorded(tmp_path):
    shape = shapes.SHAPES["t5-tiny"]
    shapes.write_checkpoint(shape, tmp_path)
    system, source = peers.Ours(shape, tmp_path), shapes.random_sources(shape, 1, 5)
    for wait in (False, True):
        with steps.record_steps(wait) as times:
            system.generate(source, 1, 12)
        assert len(times.issued) == len(times.returned) == len(times.waits) == 12
        assert [i for i, seconds in enumerate(times.waits) if seconds] == [4, 8, 11]
