"""Training in bfloat16 and float16, with loss scaling."""

import dataclasses

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from support.training_cases import MODEL, OPTIONS, bitwise_equal, flatten, make_batch, make_train_state

from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training import train_state
from mlx_transformer.training.builders import freeze_parts
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.train_state import TrainState


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_stay_in_float32_and_the_loss_matches(dtype):
    low, full = make_train_state(compute_dtype=dtype), make_train_state()
    for _ in range(12):
        losses = [state.update([make_batch()])[0].item() for state in (low, full)]
    assert {array.dtype for array in flatten(low.model.parameters()).values()} == {mx.float32}
    assert losses[0] == pytest.approx(losses[1], abs=0.15) and losses[0] != losses[1]


def test_the_loss_is_computed_in_low_precision(monkeypatch):
    dtypes = []
    monkeypatch.setattr(
        train_state, "batch_loss", lambda model, *args: dtypes.append(model.dtype) or batch_loss(model, *args)
    )
    make_train_state(compute_dtype="bfloat16").update([make_batch()])
    assert dtypes == [mx.bfloat16]


def test_an_overflow_changes_only_the_loss_scale():
    state = make_train_state(compute_dtype="float16")
    state.update([make_batch()])
    state.loss_scaling["scale"] = mx.array(2.0**40)
    mx.eval(state.state)
    before = [tree_map(lambda array: array + 0, tree) for tree in state.snapshot()]
    _, norm = state.update([make_batch(seed=1)])
    assert not mx.isfinite(norm).item()
    assert all(bitwise_equal(*trees) for trees in zip(before, state.snapshot(), strict=True))
    assert state.loss_scaling["scale"].item() == 2.0**24  # halved, then limited to the maximum
    assert state.loss_scaling["served"].item() == 0
    state.loss_scaling["scale"] = mx.array(2.0**10)
    state.update([make_batch(seed=1)])
    assert not bitwise_equal(before[0], state.model.trainable_parameters())
    assert state.loss_scaling["served"].item() == 1


def test_loss_scale_doubles_without_overflow_and_halves_on_overflow(monkeypatch):
    monkeypatch.setattr(train_state, "LOSS_SCALE_INTERVAL", 2)
    state = make_train_state(compute_dtype="float16")
    scales = []
    for _ in range(4):
        state.update([make_batch()])
        scales.append(state.loss_scaling["scale"].item())
    assert scales == [2.0**15, 2.0**16, 2.0**16, 2.0**17]
    state.loss_scaling["scale"] = mx.array(2.0**23)
    state.model.source_embedding.weight = state.model.source_embedding.weight * 1e6
    state.update([make_batch()])
    assert state.loss_scaling["scale"].item() == 2.0**22


def test_small_gradients_do_not_underflow_in_float16():
    """Without the loss scale, the gradients of one token over a large vocabulary would be zero."""
    low = make_train_state(compute_dtype="float16", learning_rate=1e-30)
    full = make_train_state(learning_rate=1e-30)
    norms = [state.update([make_batch()])[1].item() for state in (low, full)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_frozen_and_constant_weights_are_cast_too(monkeypatch):
    dtypes = set()

    def recording_loss(model, *args):
        dtypes.update(array.dtype for array in flatten(model.parameters()).values())
        return batch_loss(model, *args)

    monkeypatch.setattr(train_state, "batch_loss", recording_loss)
    model = Transformer(MODEL)
    freeze_parts(model, ("encoder",))
    TrainState(model, dataclasses.replace(OPTIONS, compute_dtype="bfloat16")).update([make_batch()])
    assert dtypes == {mx.bfloat16}


def test_only_float16_has_a_loss_scale_of_at_least_1():
    assert make_train_state(compute_dtype="bfloat16").loss_scaling == {}
    state = make_train_state(compute_dtype="float16")
    state.loss_scaling["scale"] = mx.array(1.0)
    state.model.source_embedding.weight = state.model.source_embedding.weight * 1e6
    state.update([make_batch()])
    assert state.loss_scaling["scale"].item() == 1
