"""Learning rate schedules and optimizers."""

import dataclasses
import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from support.training_cases import (
    MODEL,
    OPTIONS,
    all_close,
    flatten,
    make_batch,
    make_train_state,
    mean_loss_and_gradients,
)

from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import optimizers
from mlx_transformer.training.optimizers import OPTIMIZERS, SCHEDULES, Adam, make_optimizer, make_schedule
from mlx_transformer.training.train_state import TrainState


def learning_rate(step, **changes):
    """The learning rate of a step, counted from 1."""
    options = {"learning_rate": 0.5, "warmup_steps": 100, "steps": 1100} | changes
    return make_schedule(dataclasses.replace(OPTIONS, **options))(mx.array(step - 1)).item()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_peaks_at_the_end_of_warm_up(schedule):
    rates = [learning_rate(step, schedule=schedule) for step in range(1, 1101, 3)]
    assert learning_rate(1, schedule=schedule) == pytest.approx(0.005)
    assert learning_rate(50, schedule=schedule) == pytest.approx(0.25, rel=0.01 if schedule != "cosine" else 0.02)
    assert max(rates) == rates[33] == pytest.approx(0.5)


def test_inverse_sqrt_follows_the_paper():
    """Vaswani et al. 2017, section 5.3: proportional to min(step ** -0.5, step * warmup_steps ** -1.5)."""
    steps = (1, 2, 50, 99, 100, 101, 150, 1000, 99999)
    ratios = [learning_rate(step) / min(step**-0.5, step * 100**-1.5) for step in steps]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-5)


@pytest.mark.parametrize("step", [100, 350, 600, 1000, 1100, 1500])
def test_other_schedules_follow_their_formulas(step):
    progress = min((step - 100) / 1000, 1)
    assert learning_rate(step, schedule="cosine") == pytest.approx(0.25 * (1 + math.cos(math.pi * progress)), abs=1e-6)
    assert learning_rate(step, schedule="linear") == pytest.approx(0.5 * (1 - progress), abs=1e-6)
    assert learning_rate(step, schedule="constant") == pytest.approx(0.5)


def test_large_and_small_parameters_get_the_same_updates(monkeypatch, tolerance):
    rng = np.random.default_rng(0)
    gradients = [{"w": mx.array(rng.standard_normal((4, 8)).astype(np.float32))} for _ in range(3)]
    results = []
    for large in (1, 2**20):
        monkeypatch.setattr(optimizers, "LARGE_PARAMETER", large)
        adam, weights = Adam(0.1, betas=[0.8, 0.9], eps=1e-2, bias_correction=True), {"w": mx.zeros((4, 8))}
        for gradient in gradients:
            weights = adam.apply_gradients(gradient, weights)
        results.append(weights)
    assert all_close(*results, tolerance(1e-5)) and mx.abs(results[0]["w"]).max().item() > 0.1


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_optimizers_use_the_betas_of_the_options(name):
    assert make_optimizer(dataclasses.replace(OPTIONS, optimizer=name, betas=(0.7, 0.8))).betas == [0.7, 0.8]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reduces_the_loss(name):
    state = make_train_state(optimizer=name, warmup_steps=2, learning_rate=3e-3, weight_decay=0.01 * (name != "adam"))
    losses = [state.update([make_batch()])[0].item() for _ in range(25)]
    assert losses[-1] < losses[0] - 0.5


def test_updates_match_the_optimizers_of_mlx(tolerance):
    """Except that weight decay does not apply to biases and norms."""
    references = {
        "adam": optim.Adam(1e-2, betas=[0.8, 0.9], eps=1e-9, bias_correction=True),
        "adamw": optim.AdamW(1e-2, betas=[0.8, 0.9], eps=1e-9, weight_decay=0.3, bias_correction=True),
        "adafactor": optim.Adafactor(1e-2, scale_parameter=False, relative_step=False, weight_decay=0.3),
        "lion": optim.Lion(1e-2, betas=[0.8, 0.9], weight_decay=0.3),
    }
    for name, reference in references.items():
        changes = {"optimizer": name, "schedule": "constant", "warmup_steps": 1, "clip_norm": 0.0}
        changes |= {} if name == "adafactor" else {"betas": (0.8, 0.9)}
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        _, gradients = mean_loss_and_gradients(model, make_batch())
        weights = model.trainable_parameters()
        decay = 0.0 if name == "adam" else 0.3
        expected = flatten(reference.apply_gradients(gradients, weights))
        undecayed = {n: decay * 1e-2 * a if a.ndim == 1 else 0 for n, a in flatten(weights).items()}
        options = dataclasses.replace(OPTIONS, weight_decay=decay, **changes)
        state = TrainState(model, options)
        state.update([make_batch()])
        updated = flatten(state.model.trainable_parameters())
        # Key biases are left out: their gradient is a rounding error, whose sign some optimizers use.
        names = [n for n in updated if not n.endswith("key_value_proj.bias")]
        assert all_close(
            {n: updated[n] for n in names}, {n: expected[n] + undecayed[n] for n in names}, tolerance(1e-4)
        )


def test_weight_decay_uses_the_learning_rate_of_the_step(tolerance):
    mx.random.seed(1)
    model = Transformer(dataclasses.replace(MODEL, share_embeddings=False))
    rates = {"learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.5}
    state = TrainState(model, dataclasses.replace(OPTIONS, optimizer="adamw", **rates))
    unused = model.source_embedding.weight[Tokenizer.start_id] + 0  # not in any source, so it has no gradient
    for _ in range(3):
        state.update([make_batch()])
    factor = math.prod(1 - 0.5 * rate for rate in (0.05, 0.1, 0.1 * math.sqrt(2 / 3)))
    assert mx.allclose(model.source_embedding.weight[Tokenizer.start_id], factor * unused, rtol=tolerance(1e-5))
