"""Schedules of the learning rate."""

import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest
from support.training_cases import OPTIONS, near

from mlx_transformer.training import optimizers
from mlx_transformer.training.optimizers import SCHEDULES, Adam, make_optimizer, make_schedule


def rate(step, **changes):
    """The rate of the step of this number, from 1."""
    options = {"learning_rate": 0.5, "warmup_steps": 100, "steps": 1100} | changes
    return make_schedule(dataclasses.replace(OPTIONS, **options))(mx.array(step - 1)).item()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_rises_to_the_highest_rate_and_no_further(schedule):
    rates = [rate(step, schedule=schedule) for step in range(1, 1101, 3)]
    assert rate(1, schedule=schedule) == pytest.approx(0.005)
    assert rate(50, schedule=schedule) == pytest.approx(0.25, rel=0.01 if schedule != "cosine" else 0.02)
    assert max(rates) == rates[33] == pytest.approx(0.5)


def test_the_paper_s_falls_with_the_square_root():
    """Vaswani et al. 2017, section 5.3: proportional to min(step ** -0.5, step * warmup_steps ** -1.5)."""
    steps = (1, 2, 50, 99, 100, 101, 150, 1000, 99999)
    ratios = [rate(step) / min(step**-0.5, step * 100**-1.5) for step in steps]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-5)


@pytest.mark.parametrize("step", [100, 350, 600, 1000, 1100, 1500])
def test_the_others_follow_their_formulas(step):
    done = min((step - 100) / 1000, 1)
    assert rate(step, schedule="cosine") == pytest.approx(0.25 * (1 + math.cos(math.pi * done)), abs=1e-6)
    assert rate(step, schedule="linear") == pytest.approx(0.5 * (1 - done), abs=1e-6)
    assert rate(step, schedule="constant") == pytest.approx(0.5)


def test_large_parameters_are_updated_as_small_ones_are(monkeypatch, tolerance):
    rng = np.random.default_rng(0)
    gradients = [{"w": mx.array(rng.standard_normal((4, 8)).astype(np.float32))} for _ in range(3)]
    results = []
    for large in (1, 2**20):
        monkeypatch.setattr(optimizers, "LARGE_PARAMETER", large)
        adam, weights = Adam(0.1, betas=[0.8, 0.9], eps=1e-2, bias_correction=True), {"w": mx.zeros((4, 8))}
        for gradient in gradients:
            weights = adam.apply_gradients(gradient, weights)
        results.append(weights)
    assert near(*results, tolerance(1e-5)) and mx.abs(results[0]["w"]).max().item() > 0.1


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_betas_are_those_of_the_run(name):
    assert make_optimizer(dataclasses.replace(OPTIONS, optimizer=name, betas=(0.7, 0.8))).betas == [0.7, 0.8]
