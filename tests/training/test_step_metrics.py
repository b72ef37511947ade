"""What is told of a run while it goes on: means since the last line, speed, what likely went wrong."""

import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from support.training_cases import make_batch, make_trainer

from mlx_transformer.data.batch_sampler import BatchPosition
from mlx_transformer.training import step_metrics
from mlx_transformer.training.step_metrics import StepMetrics
from mlx_transformer.training.train_state import INITIAL_LOSS_SCALE


def read(count=4):
    return [(BatchPosition(0, 1, np.arange(count)), make_batch())]


def test_figures_are_those_since_the_last_reading(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer = make_trainer(steps=10)
    meter, told = StepMetrics(trainer), []
    for seconds in (4, 2):
        for _ in range(2):
            trainer.step += 1
            meter.add(read(), (mx.array(float(trainer.step)), mx.array(0.5 * trainer.step)))
        now[0] += seconds + 7
        meter.pass_over(7)  # as validation takes
        told.append(meter.read())
    assert [values["loss"] for values in told] == [1.5, 3.5]
    assert [values["gradient_norm"] for values in told] == [1.0, 2.0]
    assert [values["tokens_per_second"] for values in told] == [2 * 21 / 4, 2 * 21 / 2]  # padding is no token
    assert [values["seconds_left"] for values in told] == [8 * 4 / 2, 6 * 2 / 2]
    assert told[0]["perplexity"] == pytest.approx(math.exp(1.5))


def test_a_huge_loss_has_a_perplexity_too():
    meter = StepMetrics(make_trainer())
    meter.add(read(), (mx.array(1000.0), mx.array(1.0)))
    assert meter.read()["perplexity"] == pytest.approx(math.exp(100))


def test_the_scale_of_float16_is_told():
    for changes, scales in (({}, []), ({"compute_dtype": "float16"}, [INITIAL_LOSS_SCALE])):
        meter = StepMetrics(make_trainer(**changes))
        meter.add(read(), (mx.array(1.0), mx.array(1.0)))
        assert [value for name, value in meter.read().items() if name.startswith("loss_")] == scales


@pytest.mark.parametrize(
    "look", [StepMetrics.check, StepMetrics.read, lambda meter: meter.add(read(), (mx.array(1.0),) * 2)]
)
def test_a_loss_that_is_not_finite_is_told_by_all_that_look(look):
    trainer = make_trainer()
    meter = StepMetrics(trainer)
    trainer.step = 7
    meter.add(read(), (mx.array(math.nan), mx.array(1.0)))
    trainer.step = 8
    with pytest.raises(ValueError, match="not finite any more at step 7, batch 1 of epoch 0"):
        look(meter)


def told_at(step, count=4, **changes):
    trainer = make_trainer(warmup_steps=4, **changes)
    meter, trainer.step = StepMetrics(trainer), step
    meter.add(read(count), (mx.array(1.0), mx.array(1.0)))
    return meter.diverged()


@pytest.mark.parametrize(
    ("step", "changes", "told"),
    [
        (4, {"clip_norm": 1.0}, "lower learning_rate, raise warmup_steps, or set clip_norm to 1."),
        (5, {"clip_norm": 0.0}, "lower learning_rate, raise warmup_steps, or set clip_norm to 1."),
        (5, {"clip_norm": 1.0}, "too large: lower learning_rate."),
        (5, {"compute_dtype": "float16"}, "float16 overflowed"),
    ],
)
def test_the_likely_cause(step, changes, told):
    assert told in told_at(step, **changes)


def test_some_pairs_of_the_batch_are_named():
    assert "(4 x 6 source tokens, pairs 0, 1, 2, from 0)" in told_at(1, count=3)
    assert "(4 x 6 source tokens, pairs 0, 1, 2 and so on, from 0)" in told_at(1, count=4)
