"""Tests of timing, other load and goals."""

import pytest

from benchmarks import measure
from benchmarks.measure import Goal, Sample


def test_disturbed_calls_are_discarded_if_enough_remain():
    quiet, loud = Sample(1.0, 0.02), Sample(9.0, 0.5)
    assert measure.summarise([quiet, loud, quiet, loud]) == (1.0, 1.0, 1.0, 2, 2)
    assert measure.summarise([quiet, loud, loud]) == (9.0, 1.0, 9.0, 3, 0)
    assert measure.summarise([Sample(2.0, None)]) == (2.0, 2.0, 2.0, 1, 0)


def test_disturbed_calls_are_repeated(monkeypatch):
    shares = iter([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(measure, "time_call", lambda call: (call(), Sample(1.0, next(shares))))
    assert len(measure.interleave_calls({"call": lambda: None}, repeats=3)["call"]) == 4


def test_other_load_is_measured(monkeypatch):
    # CPU seconds of the machine, (busy, total), and of this process: 3 of 4 were busy, 2 of them by this process.
    machine, mine = iter([(10.0, 100.0), (13.0, 104.0)]), iter([5.0, 7.0])
    monkeypatch.setattr(measure, "system_cpu_seconds", lambda: next(machine))
    monkeypatch.setattr(measure, "process_cpu_seconds", lambda: next(mine))
    result, sample = measure.time_call(lambda: "done")
    assert (result, sample.other_load) == ("done", 0.25)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (Goal("more", 1.2, 1.15, 1.4), ("yes", "no")),
        (Goal("less", 0.5, 0.6, 0.4, lower=True), ("yes", "no")),
        (Goal("none", None, 1, 1), ("not measured", "not measured")),
        (Goal("aim", 1.1, None, 1), ("-", "yes")),
    ],
)
def test_goals(goal, reached):
    assert (goal.reached(goal.goal), goal.reached(goal.aim)) == reached
    assert measure.goals_table([goal]).splitlines()[2].split(" | ")[3] == reached[0]
