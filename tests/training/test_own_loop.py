"""A training loop of one's own: a new model, `mt.loss`, `nn.value_and_grad` and an optimizer of MLX."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from support.training_cases import MODEL, bitwise_equal, flatten, make_batch

import mlx_transformer as mt

OPTIMIZERS = {
    "SGD": lambda: optim.SGD(0.3),
    "AdamW": lambda: optim.AdamW(1e-2),
    "Adafactor": lambda: optim.Adafactor(1e-2),
    "Lion": lambda: optim.Lion(1e-3),
    "MultiOptimizer": lambda: optim.MultiOptimizer(
        [optim.Muon(1e-2), optim.Adam(1e-2)], [lambda _, array: array.ndim == 2]
    ),
}


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in OPTIMIZERS), ("SGD", True)])
def test_a_new_model_learns_with_any_optimizer_and_is_saved(name, compiled, tmp_path):
    mx.random.seed(0)
    optimizer = OPTIMIZERS[name]()
    model, batch = mt.Transformer(MODEL), make_batch()
    loss_and_gradients = nn.value_and_grad(model, mt.loss)
    state = [model.state, optimizer.state, mx.random.state]

    def step(source, target):
        loss, gradients = loss_and_gradients(model, source, target)
        optimizer.update(model, gradients)
        return loss

    optimizer.init(model.trainable_parameters())
    step = partial(mx.compile, inputs=state, outputs=state)(step) if compiled else step
    losses = []
    for _ in range(30):
        losses.append(step(mx.array(batch.source), mx.array(batch.target)).item())
        mx.eval(state)
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    mt.save(tmp_path / "model", model)
    loaded = mt.load_model(tmp_path / "model")
    assert bitwise_equal(loaded.parameters(), model.parameters())


def test_gradients_are_only_of_what_is_not_frozen():
    model, batch = mt.Transformer(MODEL), make_batch()
    model.encoder.freeze()
    _, gradients = nn.value_and_grad(model, mt.loss)(model, mx.array(batch.source), mx.array(batch.target))
    names = flatten(gradients).keys()
    assert not [name for name in names if name.startswith("encoder")] and "decoder.norm.weight" in names
