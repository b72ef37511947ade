"""Step metrics: means since the last log entry, speed, and errors for a loss that is not finite."""

import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from support.training_cases import make_batch, make_train_state

from mlx_transformer.data.batch_sampler import BatchPosition
from mlx_transformer.training import step_metrics
from mlx_transformer.training.step_metrics import StepMetrics
from mlx_transformer.training.train_state import INITIAL_LOSS_SCALE


def step_batches(count=4):
    """The batches of a step: one batch, with the position of `count` pairs."""
    return [(BatchPosition(0, 1, np.arange(count)), make_batch())]


def test_metrics_cover_the_steps_since_the_last_flush(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    state = make_train_state(steps=10)
    metrics, entries = StepMetrics(state), []
    for seconds in (4, 2):
        for _ in range(2):
            state.step += 1
            metrics.add(step_batches(), (mx.array(float(state.step)), mx.array(0.5 * state.step)))
        now[0] += seconds + 7
        metrics.exclude_time(7)  # such as validation
        latest = metrics.latest_step()
        entries.append(metrics.flush())
        assert latest.loss == state.step and latest.tokens_per_second == entries[-1]["tokens_per_second"]
    assert [entry["loss"] for entry in entries] == [1.5, 3.5]
    assert [entry["gradient_norm"] for entry in entries] == [1.0, 2.0]
    assert [entry["tokens_per_second"] for entry in entries] == [2 * 21 / 4, 2 * 21 / 2]  # without padding
    assert [entry["seconds_left"] for entry in entries] == [8 * 4 / 2, 6 * 2 / 2]
    assert entries[0]["perplexity"] == pytest.approx(math.exp(1.5))


def test_perplexity_of_a_huge_loss_is_finite():
    metrics = StepMetrics(make_train_state())
    metrics.add(step_batches(), (mx.array(1000.0), mx.array(1.0)))
    assert metrics.flush()["perplexity"] == pytest.approx(math.exp(100))


def test_float16_metrics_include_the_loss_scale():
    for changes, scales in (({}, []), ({"compute_dtype": "float16"}, [INITIAL_LOSS_SCALE])):
        metrics = StepMetrics(make_train_state(**changes))
        metrics.add(step_batches(), (mx.array(1.0), mx.array(1.0)))
        assert [value for name, value in metrics.flush().items() if name.startswith("loss_")] == scales


@pytest.mark.parametrize(
    "call",
    [StepMetrics.check_finite, StepMetrics.flush, lambda metrics: metrics.add(step_batches(), (mx.array(1.0),) * 2)],
)
def test_a_non_finite_loss_raises_in_every_method(call):
    state = make_train_state()
    metrics = StepMetrics(state)
    state.step = 7
    metrics.add(step_batches(), (mx.array(math.nan), mx.array(1.0)))
    state.step = 8
    with pytest.raises(ValueError, match="became NaN or infinite at step 7, batch 1 of epoch 0"):
        call(metrics)


def message_at(step, count=4, **changes):
    state = make_train_state(warmup_steps=4, **changes)
    metrics, state.step = StepMetrics(state), step
    metrics.add(step_batches(count), (mx.array(1.0), mx.array(1.0)))
    return metrics.divergence_message()


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (4, {"clip_norm": 1.0}, "lower learning_rate, raise warmup_steps, or set clip_norm to 1."),
        (5, {"clip_norm": 0.0}, "lower learning_rate, raise warmup_steps, or set clip_norm to 1."),
        (5, {"clip_norm": 1.0}, "too large: lower learning_rate."),
        (5, {"compute_dtype": "float16"}, "float16 overflowed"),
    ],
)
def test_the_error_names_the_likely_cause(step, changes, message):
    assert message in message_at(step, **changes)


def test_the_error_names_the_first_pairs_of_the_batch():
    assert "(4 x 6 source tokens, pairs 0, 1, 2, counted from 0)" in message_at(1, count=3)
    assert "(4 x 6 source tokens, pairs 0, 1, 2, ..., counted from 0)" in message_at(1, count=4)
