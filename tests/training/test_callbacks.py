"""Callbacks of training: what they are called with, and how they stop a run."""

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
from support.training_cases import log_events, runs_equal

import mlx_transformer as mt

pytestmark = pytest.mark.cpu
MESSAGE = "The window was closed."


def stop_at(step, result=False):
    """A callback that asks to stop at a step."""
    return lambda report: result if report.step == step else None


def raise_at(step):
    """A callback that raises an exception at a step."""

    def callback(report):
        if report.step == step:
            raise RuntimeError(MESSAGE)

    return callback


def at_entry(event, step, outcome):
    """A callback for log entries that returns or raises something at one of them."""

    def callback(entry):
        if (entry["event"], entry["step"]) != (event, step):
            return None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return callback


def test_callbacks_have_the_figures_of_each_step_and_validation(options):
    steps, validations = [], []
    config = dataclasses.replace(options, keep=3, bleu_sentences=3)
    best = mt.train(config, on_step=steps.append, on_validation=validations.append)
    assert best == Path(options.output, "best") and mt.load(best)
    assert [step.step for step in steps] == list(range(1, 13)) and {step.steps for step in steps} == {12}
    for first, second, entry in zip(steps[::2], steps[1::2], log_events(options.output, "step"), strict=True):
        assert (first.loss + second.loss) / 2 == pytest.approx(entry["loss"])
        assert second.learning_rate == entry["learning_rate"] and second.gradient_norm == entry["gradient_norm"]
        assert min(first.tokens_per_second, second.tokens_per_second) > 0 and first.seconds_left > 0
    assert steps[-1].seconds_left == 0
    entries = log_events(options.output, "validation")
    fields = {field.name for field in dataclasses.fields(mt.Validation)} - {"is_best"}
    assert [{name: vars(result)[name] for name in fields} | {"best": result.is_best} for result in validations] == [
        {name: entry[name] for name in (*fields, "best")} for entry in entries
    ]
    assert len(validations) == 3 and validations[0].is_best and len(validations[0].samples) == 3


def test_validations_without_translations_have_no_scores(options):
    validations = []
    mt.train(dataclasses.replace(options, steps=4), on_validation=validations.append)
    (result,) = validations
    assert (result.bleu, result.chrf, result.exact_match, list(result.samples)) == (None, None, None, [])


@pytest.mark.parametrize(
    ("callbacks", "step", "folder"),
    [
        ({"on_step": stop_at(3)}, 3, "last"),
        ({"on_step": stop_at(6, np.bool_(False))}, 6, "best"),
        ({"on_step": stop_at(8)}, 8, "best"),
        ({"on_validation": stop_at(4)}, 4, "best"),
        ({"on_step": raise_at(6)}, 6, None),
        ({"on_step": raise_at(8)}, 8, None),
        ({"on_validation": raise_at(8)}, 8, None),
        ({"report": at_entry("step", 6, False)}, 6, "best"),
        ({"report": at_entry("step", 6, RuntimeError(MESSAGE))}, 6, None),
        ({"report": at_entry("validation", 8, RuntimeError(MESSAGE))}, 8, None),
    ],
)
def test_a_run_that_a_callback_stopped_resumes_as_if_it_had_not_been(finished, options, callbacks, step, folder):
    config = dataclasses.replace(options, keep=3)
    if folder is None:
        with pytest.raises(RuntimeError, match=r"^The window was closed.$"):
            mt.train(config, **callbacks)
    else:
        model = mt.train(config, **callbacks)
        assert model == Path(options.output, folder) and mt.load(model)
    assert [entry["step"] for entry in log_events(options.output, "stopped")] == [step]
    mt.train(dataclasses.replace(config, resume=True))
    assert runs_equal(finished.output, options.output)
    losses = [[entry["loss"] for entry in log_events(run, "step")] for run in (finished.output, options.output)]
    assert losses[0] == losses[1]


def test_no_callback_is_called_after_one_that_failed(options):
    """Not even at the validation of the same step, whose error would hide the first."""
    entries, validations = [], []
    with pytest.raises(RuntimeError, match=MESSAGE):
        mt.train(options, entries.append, on_step=raise_at(4), on_validation=validations.append)
    assert validations == [] and max(entry["step"] for entry in entries) < 4
    assert [entry["step"] for entry in log_events(options.output, "stopped")] == [4]


@pytest.mark.parametrize("result", [None, True, 0, "", []])
def test_only_false_stops_a_run(options, result):
    mt.train(dataclasses.replace(options, steps=2), on_step=lambda step: result, on_validation=lambda _: result)
    assert [entry["reason"] for entry in log_events(options.output, "end")] == ["steps"]


def test_an_interrupt_during_a_callback_is_deferred(options):
    def callback(step):
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        mt.train(options, on_step=callback)
    assert [entry["step"] for entry in log_events(options.output, "stopped")] == [2]
