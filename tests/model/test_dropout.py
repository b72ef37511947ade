"""Dropout, and gradient checkpointing that repeats its masks."""

import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from support.tiny_models import SETTINGS, random_model
from support.training_cases import (
    MODEL,
    OPTIONS,
    all_close,
    flatten,
    make_batch,
    make_train_state,
    without_key_biases,
)

from mlx_transformer.model import dropout
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.train_state import TrainState


@pytest.mark.parametrize("name", SETTINGS)
def test_checkpointed_gradients_use_the_dropout_mask_of_the_forward_pass(name):
    """With the same seed, the slope of the loss along the gradient is the squared norm of the gradient."""
    rates = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.2}
    model = random_model(dataclasses.replace(SETTINGS[name], **rates))
    model.train()
    model.recompute = True
    ids = np.random.default_rng(0).integers(3, 10, (3, 11))
    weights = model.trainable_parameters()

    def loss(weights):
        model.update(weights)
        mx.random.seed(1)
        return batch_loss(model, mx.array(ids[:, :5]), mx.array(ids[:, 5:]), 0.1)[0]

    value, gradients = mx.value_and_grad(loss)(weights)
    squares = sum((array**2).sum().item() for array in flatten(gradients).values())
    step = 3e-3 / math.sqrt(squares)
    shifted = [tree_map(lambda w, g, s=sign: w + s * step * g, weights, gradients) for sign in (1, -1)]
    slope = (loss(shifted[0]).item() - loss(shifted[1]).item()) / (2 * step)
    assert slope == pytest.approx(squares, rel=0.02)
    model.recompute = False
    assert loss(weights).item() != value.item()  # dropout is active: without checkpointing it draws other masks


def test_grad_checkpointing_does_not_change_updates(tolerance):
    states = []
    for recompute in (True, False):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        states.append(TrainState(model, dataclasses.replace(OPTIONS, recompute=recompute)))
        for step in range(2):
            states[-1].update([make_batch(seed=step)])
    first, second = (without_key_biases(state.model.trainable_parameters()) for state in states)
    assert all_close(first, second, tolerance(1e-4))


def test_the_recompute_option_sets_the_model():
    assert make_train_state(recompute=True).model.recompute and not make_train_state().model.recompute


def test_each_dropout_of_each_layer_draws_its_own_mask():
    class Twice(nn.Module):
        def __call__(self, x, mask, memory=None):
            return mx.stack([dropout.dropout(x, 0.5), dropout.dropout(x, 0.5)])

    x, layers = mx.ones((20, 20)), [dropout.grad_checkpoint(Twice()) for _ in range(2)]
    outputs = [output for layer in layers for output in layer(x, "causal")]
    assert not any(mx.array_equal(outputs[i], outputs[j]) for i in range(4) for j in range(i))
    mx.random.seed(0)
    first = dropout.dropout(x, 0.5)  # outside of a layer, dropout draws from MLX's global state
    mx.random.seed(0)
    assert mx.array_equal(first, mx.random.bernoulli(0.5, x.shape) * 2)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_every_kind_of_dropout_is_active_in_training_only(name):
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    model = random_model(dataclasses.replace(SETTINGS["pre_norm"], **rates | {name: 0.5}))
    ids = mx.array([[3, 4, 5, 6]])
    model.eval()
    expected = model(ids, ids)
    assert mx.array_equal(expected, model(ids, ids))
    model.train()
    mx.random.seed(0)
    first, second = model(ids, ids), model(ids, ids)
    assert not mx.allclose(first, expected) and not mx.allclose(first, second)


def test_dropout_keeps_the_expected_value():
    x = mx.ones((200, 100))
    dropped = np.array(dropout.dropout(x, 0.25))
    assert np.unique(dropped) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert dropout.dropout(x, 0.0) is x
    assert dropout.dropout(x.astype(mx.float16), 0.5).dtype == mx.float16
