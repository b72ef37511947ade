"""The update step: compilation, dropout seeds, clipping, averaging, accumulation, and saving and restoring."""

import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import SETTINGS
from support.training_cases import (
    MODEL,
    OPTIONS,
    all_close,
    bitwise_equal,
    copy_arrays,
    flatten,
    make_batch,
    make_train_state,
    mean_loss_and_gradients,
    without_key_biases,
)

from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.model.adapters import add_adapter
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.train_state import TrainState


def concatenate(batches):
    return Batch(*(np.concatenate(side) for side in zip(*batches, strict=True)))


def test_compiled_and_uncompiled_updates_agree(tolerance):
    compiled, uncompiled = make_train_state(), make_train_state()
    uncompiled._compiled_update = uncompiled.single_batch_update
    for step in range(3):
        results = [state.update([make_batch(seed=step)]) for state in (compiled, uncompiled)]
        assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=tolerance(1e-5))
        assert results[0][1].item() == pytest.approx(results[1][1].item(), rel=tolerance(1e-4))
    assert all_close(compiled.model.parameters(), uncompiled.model.parameters(), tolerance(1e-4))
    assert all_close(compiled.ema_weights, uncompiled.ema_weights, tolerance(1e-4))


def test_dropout_depends_on_seed_and_step_only():
    batch = make_batch()

    def losses(seed, dropout=0.2):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=dropout))
        # The learning rate is too low to change a weight, so only dropout changes the loss.
        state = TrainState(model, dataclasses.replace(OPTIONS, seed=seed, learning_rate=1e-30))
        losses = []
        for step in range(3):
            losses.append(state.update([batch])[0].item())
            mx.random.normal((step + 1,))  # must not affect dropout
        return losses

    first = losses(seed=5)
    assert first == losses(seed=5)
    assert len(set(first)) == 3
    assert not set(first) & set(losses(seed=6))
    assert len(set(losses(seed=5, dropout=0.0))) == 1
    assert len(set(losses(seed=2**32 - 1))) == 3


def test_update_switches_to_training_mode():
    state, batch = make_train_state(), make_batch()
    state.model.eval()
    state.update([batch])
    assert state.model.training


@pytest.mark.parametrize("clip_norm", [0.01, 1e9])
def test_clipping_limits_the_gradient_norm(clip_norm, tolerance):
    mx.random.seed(1)
    model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
    expected, gradients = mean_loss_and_gradients(model, make_batch())
    norm = math.sqrt(sum((array**2).sum().item() for array in flatten(gradients).values()))
    state = TrainState(model, dataclasses.replace(OPTIONS, clip_norm=clip_norm))
    loss, reported_norm = state.update([make_batch()])
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance(1e-5))
    assert reported_norm.item() == pytest.approx(norm, rel=tolerance(1e-4))
    # After one step, Adam's first moment is (1 - 0.9) x the clipped gradient.
    moments = {name: array for name, array in flatten(state.optimizer.state).items() if name.endswith(".m")}
    clipped_norm = 10 * math.sqrt(sum((array**2).sum().item() for array in moments.values()))
    assert clipped_norm == pytest.approx(min(norm, clip_norm), rel=tolerance(1e-3))


def test_moving_average_follows_its_formula(tolerance):
    state = make_train_state(ema_decay=0.25)
    expected = flatten(state.model.trainable_parameters())
    for step in range(1, 5):
        state.update([make_batch(seed=step)])
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12, then 0.25
        new = flatten(state.model.trainable_parameters())
        expected = {name: decay * array + (1 - decay) * new[name] for name, array in expected.items()}
    assert all_close(state.ema_weights, expected, tolerance(1e-6))
    assert not bitwise_equal(state.ema_weights, state.model.trainable_parameters())


def test_without_a_moving_average_the_current_weights_are_evaluated():
    state = make_train_state(ema_decay=0.0)
    for step in range(2):
        state.update([make_batch(seed=step)])
    assert state.ema_weights == {}
    assert bitwise_equal(state.eval_model().parameters(), state.model.parameters())


def test_sinusoidal_positions_do_not_change():
    state = make_train_state()
    before = mx.array(state.model.encoder.positions.weight)
    state.update([make_batch()])
    assert mx.array_equal(state.model.encoder.positions.weight, before)
    assert not any("positions" in name for name in flatten(state.ema_weights))


def test_all_other_parameters_change():
    state = make_train_state()
    before = copy_arrays(without_key_biases(state.model.trainable_parameters()))
    for step in range(2):
        state.update([make_batch(seed=step)])
    after = without_key_biases(state.model.trainable_parameters())
    assert [name for name in before if mx.array_equal(before[name], after[name])] == []


def test_learning_rate_follows_the_schedule_from_the_first_step():
    state, batch = make_train_state(learning_rate=0.01, warmup_steps=2), make_batch()
    rates = []
    for _ in range(4):
        state.update([batch])
        rates.append(state.optimizer.learning_rate.item())
    assert rates == pytest.approx([0.005, 0.01, 0.01 * math.sqrt(2 / 3), 0.01 * math.sqrt(2 / 4)], rel=1e-5)


def test_evaluating_does_not_affect_the_training_model():
    state = make_train_state()
    state.update([make_batch()])
    weights, ema_weights = copy_arrays(state.model.parameters()), copy_arrays(state.ema_weights)
    eval_model = state.eval_model()
    assert not eval_model.training and state.model.training
    assert bitwise_equal(eval_model.trainable_parameters(), state.ema_weights)
    eval_model(mx.array(make_batch().source), mx.array(make_batch().target))
    assert bitwise_equal(state.model.parameters(), weights) and bitwise_equal(state.ema_weights, ema_weights)
    state.update([make_batch()])
    assert bitwise_equal(eval_model.trainable_parameters(), ema_weights)  # an update does not affect it either
    assert state.model.training


@pytest.mark.parametrize("count", [2, 3])
def test_accumulated_batches_equal_one_larger_batch(count, tolerance):
    """All tokens have the same weight, however many tokens and how much padding a batch has."""
    batches = [make_batch(rows=2 + 3 * number, seed=number) for number in range(count)]
    mx.random.seed(1)
    initial = Transformer(dataclasses.replace(MODEL, dropout=0.0))
    results = []
    for update in (batches, [concatenate(batches)]):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        state = TrainState(model, dataclasses.replace(OPTIONS, accumulate=len(update)))
        for _ in range(2):
            loss, norm = state.update(update)
        results.append((loss.item(), norm.item(), state.model.trainable_parameters()))
    (loss, norm, weights), (other_loss, other_norm, other_weights) = results
    assert loss == pytest.approx(other_loss, rel=tolerance(1e-4))
    assert norm == pytest.approx(other_norm, rel=tolerance(1e-3))
    assert all_close(without_key_biases(weights), without_key_biases(other_weights), tolerance(1e-3))
    assert not all_close(weights, initial.trainable_parameters(), 1e-3)


def test_dropout_differs_between_accumulated_batches():
    state = make_train_state(accumulate=2, learning_rate=1e-30)
    mean = state.update([make_batch(), make_batch()])[0].item()
    loss = make_train_state(learning_rate=1e-30).update([make_batch()])[0].item()
    assert mean != pytest.approx(loss, rel=1e-6)


def test_dropout_differs_between_batches_of_different_updates(tolerance):
    """The second batch of an update has another dropout mask than the first batch of the next update."""
    single, double = make_train_state(learning_rate=1e-30), make_train_state(learning_rate=1e-30, accumulate=2)
    losses = [single.update([make_batch()])[0].item() for _ in range(4)]
    means = [double.update([make_batch()] * 2)[0].item() for _ in range(2)]
    assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=tolerance(1e-5))


def test_restored_state_equals_the_saved_state(tmp_path):
    tokenizer = Tokenizer.train(["ab"], ["ab"], 261)
    for changes in ({}, {"ema_decay": 0.0, "optimizer": "adafactor"}, {"compute_dtype": "float16"}):
        state, other = make_train_state(seed=1, **changes), make_train_state(seed=2, **changes)
        for step in range(3):
            state.update([make_batch(seed=step)])
        state.progress["best_score"] = -1.25
        state.write(tmp_path, tokenizer)
        other.restore(tmp_path)
        assert bitwise_equal(state.model.parameters(), other.model.parameters())
        assert bitwise_equal(state.extra_state(), other.extra_state())
        assert (state.step, state.progress) == (other.step, other.progress) == (3, {"best_score": -1.25})
        losses = [part.update([make_batch(seed=9)])[0].item() for part in (state, other)]
        assert losses[0] == losses[1]
        assert bitwise_equal(state.extra_state(), other.extra_state())


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_eval_model_is_the_mean_of_several_checkpoints(ema_decay, tmp_path, tolerance):
    state = make_train_state(ema_decay=ema_decay)
    checkpoints = []
    for step in range(3):
        state.update([make_batch(seed=step)])
        checkpoints.append(flatten(state.ema_weights or state.model.trainable_parameters()))
        (tmp_path / str(step)).mkdir()
        state.write(tmp_path / str(step), None)
    mean = {name: sum(arrays[name] for arrays in checkpoints) / 3 for name in checkpoints[0]}
    averaged = state.eval_model([tmp_path / "1", tmp_path / "0"])
    assert all_close(averaged.trainable_parameters(), mean, tolerance(1e-6))
    assert not all_close(averaged.trainable_parameters(), checkpoints[-1], 1e-4)


def test_loss_scale_and_its_age_are_restored(tmp_path):
    state, other = make_train_state(compute_dtype="float16"), make_train_state(compute_dtype="float16")
    for _ in range(2):
        state.update([make_batch()])
    state.loss_scaling["scale"] = mx.array(2.0**9)
    state.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
    other.restore(tmp_path)
    assert {name: array.item() for name, array in other.loss_scaling.items()} == {"scale": 2.0**9, "served": 2}


def test_restored_arrays_do_not_depend_on_the_files(tmp_path):
    state, other = make_train_state(seed=1), make_train_state(seed=2)
    state.update([make_batch()])
    state.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
    other.restore(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    assert bitwise_equal(state.model.parameters(), other.model.parameters())
    assert bitwise_equal(state.extra_state(), other.extra_state())


def test_a_copy_task_is_learned():
    mx.random.seed(0)
    model = Transformer(dataclasses.replace(MODEL, dropout=0.0, source_vocab_size=10, target_vocab_size=10))
    state = TrainState(model, dataclasses.replace(OPTIONS, warmup_steps=30, learning_rate=8e-3, ema_decay=0.9))
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(3, 10, (64, 5))
        source = np.concatenate([ids, np.ones((64, 1))], axis=1).astype(np.int32)
        target = np.concatenate([np.full((64, 1), 2), source], axis=1).astype(np.int32)
        state.update([Batch(source, target)])
    unseen = rng.integers(3, 10, (64, 5)).tolist()
    source = mx.array([[*ids, 1] for ids in unseen], mx.int32)
    results = generate_ids(state.eval_model(), source, SearchConfig(max_tokens=8))
    assert np.mean([best.ids == ids for (best, *_), ids in zip(results, unseen, strict=True)]) > 0.95


def test_a_batch_without_target_tokens_causes_no_nan():
    state = make_train_state()
    loss, norm = state.update([Batch(np.array([[1, 0]], np.int32), np.zeros((1, 3), np.int32))])
    assert (loss.item(), norm.item()) == (0, 0)
    assert all(mx.isfinite(array).all().item() for array in flatten(state.model.parameters()).values())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_kind_of_model_is_trained_and_evaluated(settings, adapted):
    model = Transformer(SETTINGS[settings])
    if adapted:
        model.freeze()
        add_adapter(model, AdapterConfig(rank=2, alpha=2.0))
    state = TrainState(model, dataclasses.replace(OPTIONS, ema_decay=0.0))
    vocabulary = min(model.config.source_vocab_size, model.config.target_vocab_size)
    batch = Batch(*(ids % vocabulary for ids in make_batch()))
    before = copy_arrays(model.trainable_parameters())
    loss, _ = state.update([batch])
    assert math.isfinite(loss.item()) and not bitwise_equal(before, model.trainable_parameters())
    evaluated = state.eval_model()
    assert not evaluated.training and evaluated is state.eval_model()
    model.eval()
    arrays = mx.array(batch.source), mx.array(batch.target)
    assert mx.array_equal(evaluated(*arrays), model(*arrays))
