"""A run whose loss becomes NaN or infinite stops, names the cause, and keeps its last good checkpoint."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import mlx.core as mx
import pytest
from support.training_cases import log_events, run_state

from mlx_transformer.data.batch_sampler import iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora, read_pairs
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import optimizers
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train


def change_results(monkeypatch, change):
    """Let TrainState.update return change(state, loss, norm)."""
    update = TrainState.update
    monkeypatch.setattr(TrainState, "update", lambda state, batches: change(state, *update(state, batches)))


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_non_finite_loss_stops_the_run_and_is_not_saved(options, log_every, monkeypatch):
    """Whether the log or a validation detects it first."""
    options = dataclasses.replace(options, steps=8, valid_every=2, log_every=log_every)
    train(dataclasses.replace(options, steps=2))
    before = run_state(options.output)
    # A run cannot resume with another learning rate, so replace the schedule.
    monkeypatch.setattr(optimizers, "make_schedule", lambda config: lambda step: mx.array(1e30))
    message = (
        r"became NaN or infinite at step \d, batch \d+ of epoch 0 \(\d+ x \d+ source tokens, pairs .*cause: the steps"
    )
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(options, resume=True))
    after = run_state(options.output)
    assert after[1]["step"] < 8
    for arrays in after[0].values():
        assert all(mx.isfinite(array).all().item() for array in arrays.values())
    assert before[1]["best_score"] <= after[1]["best_score"]


def test_the_error_names_the_first_step_with_a_non_finite_loss(options):
    options = dataclasses.replace(options, learning_rate=1e30, warmup_steps=1, valid_every=12, log_every=12)
    with pytest.raises(ValueError, match="at step 2, .* lower learning_rate"):
        train(options)
    assert not (Path(options.output) / "last").exists()
    for line in (Path(options.output) / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("bleu_sentences", [0, 2])
def test_non_finite_weights_found_in_validation_are_not_saved(options, bleu_sentences):
    """The loss of the last step is finite, because it was computed before the update."""
    options = dataclasses.replace(options, learning_rate=1e30, warmup_steps=1, clip_norm=0.0, ema_decay=0.0)
    with pytest.raises(ValueError, match="became NaN or infinite at step 1, batch 0 .* set clip_norm to 1.$"):
        train(dataclasses.replace(options, valid_every=1, bleu_sentences=bleu_sentences))
    assert not (Path(options.output) / "last").exists() and not (Path(options.output) / "best").exists()


def test_overflow_at_the_smallest_loss_scale_stops_the_run(options, monkeypatch):
    def overflow(state, loss, norm):
        state.loss_scaling["scale"] = mx.array(1.0)
        return loss, norm * math.inf

    change_results(monkeypatch, overflow)
    with pytest.raises(ValueError, match="float16 overflowed: compute in bfloat16"):
        train(dataclasses.replace(options, compute_dtype="float16"))


def test_the_gradient_norm_of_an_overflow_is_logged_as_null(options, monkeypatch):
    change_results(monkeypatch, lambda state, loss, norm: (loss, mx.array(math.nan)))
    train(dataclasses.replace(options, compute_dtype="float16"))
    assert {entry["gradient_norm"] for entry in log_events(options.output, "step")} == {None}


def test_the_error_names_the_batch_of_the_step(options, monkeypatch):
    change_results(monkeypatch, lambda state, loss, norm: (loss * math.nan if state.step == 3 else loss, norm))
    with pytest.raises(ValueError, match="at step 3, batch 2 of epoch 0") as error:
        train(options)
    tokenizer = Tokenizer.train(*zip(*read_pairs(options.train[0]).pairs, strict=True), options.vocab_size)
    corpus = TokenizedCorpus.build(ParallelCorpora(options.train), tokenizer, options.max_length)
    position, _ = next(iterate_batches(corpus, options.batch_tokens, options.seed, skip=2))
    assert f"pairs {', '.join(map(str, position.pair_indices[:3]))}, ..., counted" in str(error.value)


def test_float16_is_named_as_the_cause(options, monkeypatch):
    change_results(monkeypatch, lambda state, loss, norm: (mx.array(math.inf), mx.array(1.0)))
    with pytest.raises(ValueError, match="Likely cause: float16 overflowed: compute in bfloat16 or float32"):
        train(dataclasses.replace(options, compute_dtype="float16"))


def test_a_stop_does_not_save_a_diverged_model(options, monkeypatch):
    def diverge(state, loss, norm):
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)
            return loss * math.nan, norm
        return loss, norm

    change_results(monkeypatch, diverge)
    with pytest.raises((ValueError, KeyboardInterrupt)) as error:
        train(options)
    assert "became NaN or infinite at step 3" in str(error.value)
    assert not (Path(options.output) / "last").exists()
