"""One training step: compiled, accumulated, clipped, averaged, in low precision, frozen in part; learning a task."""

import dataclasses
import math
import re

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map
from support.tiny_models import SETTINGS, random_model
from support.training_cases import MODEL, OPTIONS, arrays_of, make_batch, make_trainer, near, same_bits

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.model import dropout
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import train_state
from mlx_transformer.training.builders import freeze_parts
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.optimizers import OPTIMIZERS
from mlx_transformer.training.train_state import TrainState


def gradients_of(model, batch, smoothing=0.1):
    """Mean loss and its gradients, by the plainest way."""

    def mean(weights):
        model.update(weights)
        loss, tokens = batch_loss(model, mx.array(batch.source), mx.array(batch.target), smoothing)
        return loss / tokens

    weights = model.trainable_parameters()
    found = mx.value_and_grad(mean)(weights)
    model.update(weights)
    return found


def joined(batches):
    return Batch(*(np.concatenate(side) for side in zip(*batches, strict=True)))


class TestStep:
    def test_compiled_equals_uncompiled(self, tolerance):
        compiled, plain = make_trainer(), make_trainer()
        plain._once = plain.once
        for step in range(3):
            results = [trainer.update([make_batch(seed=step)]) for trainer in (compiled, plain)]
            assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=tolerance(1e-5))
            assert results[0][1].item() == pytest.approx(results[1][1].item(), rel=tolerance(1e-4))
        assert near(compiled.model.parameters(), plain.model.parameters(), tolerance(1e-4))
        assert near(compiled.average, plain.average, tolerance(1e-4))

    def test_dropout_is_repeatable_and_differs_between_steps_and_seeds(self):
        batch = make_batch()

        def losses(seed, dropout=0.2):
            mx.random.seed(1)
            model = Transformer(dataclasses.replace(MODEL, dropout=dropout))
            # A rate too low to change a weight: what differs is dropout.
            trainer = TrainState(model, dataclasses.replace(OPTIONS, seed=seed, learning_rate=1e-30))
            found = []
            for step in range(3):
                found.append(trainer.update([batch])[0].item())
                mx.random.normal((step + 1,))  # what others draw in between must not matter
            return found

        first = losses(seed=5)
        assert first == losses(seed=5)
        assert len(set(first)) == 3
        assert not set(first) & set(losses(seed=6))
        assert len(set(losses(seed=5, dropout=0.0))) == 1
        assert len(set(losses(seed=2**32 - 1))) == 3

    def test_training_is_on_even_after_validation(self):
        trainer, batch = make_trainer(), make_batch()
        trainer.model.eval()
        trainer.update([batch])
        assert trainer.model.training

    @pytest.mark.parametrize("clip_norm", [0.01, 1e9])
    def test_clipping_bounds_the_norm_of_the_update(self, clip_norm, tolerance):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        expected, gradients = gradients_of(model, make_batch())
        norm = math.sqrt(sum((array**2).sum().item() for array in arrays_of(gradients).values()))
        trainer = TrainState(model, dataclasses.replace(OPTIONS, clip_norm=clip_norm))
        loss, told = trainer.update([make_batch()])
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance(1e-5))
        assert told.item() == pytest.approx(norm, rel=tolerance(1e-4))
        # After one step Adam's first moment is (1 - 0.9) x the gradient that was used.
        moments = {name: array for name, array in arrays_of(trainer.optimizer.state).items() if name.endswith(".m")}
        used = 10 * math.sqrt(sum((array**2).sum().item() for array in moments.values()))
        assert used == pytest.approx(min(norm, clip_norm), rel=tolerance(1e-3))

    def test_the_moving_average(self, tolerance):
        trainer = make_trainer(ema_decay=0.25)
        expected = arrays_of(trainer.model.trainable_parameters())
        for step in range(1, 5):
            trainer.update([make_batch(seed=step)])
            decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12, then 0.25
            new = arrays_of(trainer.model.trainable_parameters())
            expected = {name: decay * array + (1 - decay) * new[name] for name, array in expected.items()}
        assert near(trainer.average, expected, tolerance(1e-6))
        assert not same_bits(trainer.average, trainer.model.trainable_parameters())

    def test_without_an_average_the_newest_weights_are_kept(self):
        trainer = make_trainer(ema_decay=0.0)
        for step in range(2):
            trainer.update([make_batch(seed=step)])
        assert trainer.average == {}
        assert same_bits(trainer.kept_model().parameters(), trainer.model.parameters())

    def test_fixed_positions_stay(self):
        trainer = make_trainer()
        before = mx.array(trainer.model.encoder.positions.weight)
        trainer.update([make_batch()])
        assert mx.array_equal(trainer.model.encoder.positions.weight, before)
        assert not any("positions" in name for name in arrays_of(trainer.average))

    def test_every_other_parameter_moves(self):
        """But a key's bias, which softmax cancels."""
        trainer = make_trainer()
        before = {
            name: mx.array(array) for name, array in split_projections(trainer.model.trainable_parameters()).items()
        }
        for step in range(2):
            trainer.update([make_batch(seed=step)])
        after = split_projections(trainer.model.trainable_parameters())
        still = [name for name in before if mx.array_equal(before[name], after[name])]
        assert [name for name in still if not name.endswith("key_proj.bias")] == []

    def test_the_optimizer_follows_the_schedule_from_its_first_step(self):
        trainer, batch = make_trainer(learning_rate=0.01, warmup_steps=2), make_batch()
        rates = []
        for _ in range(4):
            trainer.update([batch])
            rates.append(trainer.optimizer.learning_rate.item())
        assert rates == pytest.approx([0.005, 0.01, 0.01 * math.sqrt(2 / 3), 0.01 * math.sqrt(2 / 4)], rel=1e-5)

    def test_it_leaves_the_training_model_untouched(self):
        trainer = make_trainer()
        trainer.update([make_batch()])
        before = {name: mx.array(array) for name, array in arrays_of(trainer.model.parameters()).items()}
        kept = {name: mx.array(array) for name, array in arrays_of(trainer.average).items()}
        validated = trainer.kept_model()
        assert not validated.training and trainer.model.training
        assert same_bits(validated.trainable_parameters(), trainer.average)
        validated(mx.array(make_batch().source), mx.array(make_batch().target))
        assert same_bits(trainer.model.parameters(), before) and same_bits(trainer.average, kept)
        trainer.update([make_batch()])
        assert same_bits(validated.trainable_parameters(), kept)  # nor do later steps touch what is validated
        assert trainer.model.training


class TestOptimizers:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_each_learns(self, name):
        trainer = make_trainer(optimizer=name, warmup_steps=2, learning_rate=3e-3, weight_decay=0.01 * (name != "adam"))
        losses = [trainer.update([make_batch()])[0].item() for _ in range(25)]
        assert losses[-1] < losses[0] - 0.5

    def test_they_are_those_of_mlx(self, tolerance):
        """But for weight decay, which spares biases and norms."""
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
            _, gradients = gradients_of(model, make_batch())
            weights = model.trainable_parameters()
            decay = 0.0 if name == "adam" else 0.3
            expected = arrays_of(reference.apply_gradients(gradients, weights))
            decayed = {n: decay * 1e-2 * a if a.ndim == 1 else 0 for n, a in arrays_of(weights).items()}
            options = dataclasses.replace(OPTIONS, weight_decay=decay, **changes)
            trainer = TrainState(model, options)
            trainer.update([make_batch()])
            found = arrays_of(trainer.model.trainable_parameters())
            # Rounding decides where a gradient is next to nothing, of a key's bias: these optimizers look at its sign.
            names = [n for n in found if not n.endswith("key_value_proj.bias")]
            assert near({n: found[n] for n in names}, {n: expected[n] + decayed[n] for n in names}, tolerance(1e-4))

    def test_weights_decay_at_the_rate_of_their_step(self, tolerance):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, share_embeddings=False))
        rates = {"learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.5}
        trainer = TrainState(model, dataclasses.replace(OPTIONS, optimizer="adamw", **rates))
        unread = model.source_embedding.weight[Tokenizer.start_id] + 0  # no source has it: it has no gradient
        for _ in range(3):
            trainer.update([make_batch()])
        left = math.prod(1 - 0.5 * rate for rate in (0.05, 0.1, 0.1 * math.sqrt(2 / 3)))
        assert mx.allclose(model.source_embedding.weight[Tokenizer.start_id], left * unread, rtol=tolerance(1e-5))


class TestAccumulation:
    @pytest.mark.parametrize("count", [2, 3])
    def test_batches_of_an_update_are_one_larger_batch(self, count, tolerance):
        """Whatever their numbers of tokens: neither padding nor short batches weigh more."""
        batches = [make_batch(rows=2 + 3 * number, seed=number) for number in range(count)]
        mx.random.seed(1)
        plain = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        results = []
        for read in (batches, [joined(batches)]):
            mx.random.seed(1)
            model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
            trainer = TrainState(model, dataclasses.replace(OPTIONS, accumulate=len(read)))
            for _ in range(2):
                loss, norm = trainer.update(read)
            results.append((loss.item(), norm.item(), trainer.model.trainable_parameters()))
        (loss, norm, weights), (other_loss, other_norm, other_weights) = results
        assert loss == pytest.approx(other_loss, rel=tolerance(1e-4))
        assert norm == pytest.approx(other_norm, rel=tolerance(1e-3))
        kept = [
            {n: a for n, a in split_projections(tree).items() if "key_proj.bias" not in n}
            for tree in (weights, other_weights)
        ]
        assert near(*kept, tolerance(1e-3))
        assert not near(weights, plain.trainable_parameters(), 1e-3)

    def test_each_batch_drops_other_numbers(self):
        trainer = make_trainer(accumulate=2, learning_rate=1e-30)
        twice = trainer.update([make_batch(), make_batch()])[0].item()
        once = make_trainer(learning_rate=1e-30).update([make_batch()])[0].item()
        assert twice != pytest.approx(once, rel=1e-6)

    def test_batches_of_all_updates_are_numbered_on(self, tolerance):
        """Dropout of the second batch of an update is not that of the first one of the next."""
        single, double = make_trainer(learning_rate=1e-30), make_trainer(learning_rate=1e-30, accumulate=2)
        losses = [single.update([make_batch()])[0].item() for _ in range(4)]
        means = [double.update([make_batch()] * 2)[0].item() for _ in range(2)]
        assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=tolerance(1e-5))


class TestLowPrecision:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_weights_stay_in_float32_and_learn_as_well(self, dtype):
        low, full = make_trainer(compute_dtype=dtype), make_trainer()
        for _ in range(12):
            losses = [trainer.update([make_batch()])[0].item() for trainer in (low, full)]
        assert {array.dtype for array in arrays_of(low.model.parameters()).values()} == {mx.float32}
        assert losses[0] == pytest.approx(losses[1], abs=0.15) and losses[0] != losses[1]

    def test_it_computes_in_low_precision(self, monkeypatch):
        seen = []
        monkeypatch.setattr(
            train_state, "batch_loss", lambda model, *rest: seen.append(model.dtype) or batch_loss(model, *rest)
        )
        make_trainer(compute_dtype="bfloat16").update([make_batch()])
        assert seen == [mx.bfloat16]

    def test_an_overflow_changes_nothing_but_the_scale(self):
        trainer = make_trainer(compute_dtype="float16")
        trainer.update([make_batch()])
        trainer.scaling["scale"] = mx.array(2.0**40)
        mx.eval(trainer.state)
        before = [tree_map(lambda array: array + 0, tree) for tree in trainer._changing()]
        _, norm = trainer.update([make_batch(seed=1)])
        assert not mx.isfinite(norm).item()
        assert all(same_bits(*trees) for trees in zip(before, trainer._changing(), strict=True))
        assert trainer.scaling["scale"].item() == 2.0**24  # halved, but never more than that
        assert trainer.scaling["served"].item() == 0
        trainer.scaling["scale"] = mx.array(2.0**10)
        trainer.update([make_batch(seed=1)])
        assert not same_bits(before[0], trainer.model.trainable_parameters())
        assert trainer.scaling["served"].item() == 1

    def test_the_scale_doubles_after_a_while_and_halves_at_an_overflow(self, monkeypatch):
        monkeypatch.setattr(train_state, "LOSS_SCALE_INTERVAL", 2)
        trainer = make_trainer(compute_dtype="float16")
        scales = []
        for _ in range(4):
            trainer.update([make_batch()])
            scales.append(trainer.scaling["scale"].item())
        assert scales == [2.0**15, 2.0**16, 2.0**16, 2.0**17]
        trainer.scaling["scale"] = mx.array(2.0**23)
        bad = make_batch()
        trainer.model.source_embedding.weight = trainer.model.source_embedding.weight * 1e6
        trainer.update([bad])
        assert trainer.scaling["scale"].item() == 2.0**22

    def test_small_gradients_survive_in_float16(self):
        """Gradients of one token's loss over many pieces would be nothing without the scale."""
        trainer = make_trainer(compute_dtype="float16", learning_rate=1e-30)
        full = make_trainer(learning_rate=1e-30)
        norms = [trainer.update([make_batch()])[1].item() for trainer in (trainer, full)]
        assert norms[0] == pytest.approx(norms[1], rel=0.02)

    def test_frozen_and_fixed_weights_are_in_low_precision_too(self, monkeypatch):
        seen = set()

        def look(model, *rest):
            seen.update(array.dtype for array in arrays_of(model.parameters()).values())
            return batch_loss(model, *rest)

        monkeypatch.setattr(train_state, "batch_loss", look)
        model = Transformer(MODEL)
        freeze_parts(model, ("encoder",))
        TrainState(model, dataclasses.replace(OPTIONS, compute_dtype="bfloat16")).update([make_batch()])
        assert seen == {mx.bfloat16}

    def test_only_float16_needs_a_scale_which_is_never_below_1(self):
        assert make_trainer(compute_dtype="bfloat16").scaling == {}
        trainer = make_trainer(compute_dtype="float16")
        trainer.scaling["scale"] = mx.array(1.0)
        trainer.model.source_embedding.weight = trainer.model.source_embedding.weight * 1e6
        trainer.update([make_batch()])
        assert trainer.scaling["scale"].item() == 1


class TestRecomputing:
    @pytest.mark.parametrize("name", SETTINGS)
    def test_gradients_are_those_of_the_loss_with_the_numbers_that_were_dropped(self, name):
        """Along the gradient a small step changes the loss as the gradient says, with the same seed."""
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
        squares = sum((array**2).sum().item() for array in arrays_of(gradients).values())
        step = 3e-3 / math.sqrt(squares)
        moved = [tree_map(lambda w, g, s=sign: w + s * step * g, weights, gradients) for sign in (1, -1)]
        slope = (loss(moved[0]).item() - loss(moved[1]).item()) / (2 * step)
        assert slope == pytest.approx(squares, rel=0.02)
        model.recompute = False
        assert loss(weights).item() != value.item()  # numbers are dropped at all, others without recomputing

    def test_without_dropout_a_run_is_the_same(self, tolerance):
        trainers = []
        for recompute in (True, False):
            mx.random.seed(1)
            model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
            trainers.append(TrainState(model, dataclasses.replace(OPTIONS, recompute=recompute)))
            for step in range(2):
                trainers[-1].update([make_batch(seed=step)])
        kept = [
            {
                n: a
                for n, a in split_projections(trainer.model.trainable_parameters()).items()
                if "key_proj.bias" not in n
            }
            for trainer in trainers
        ]
        assert near(*kept, tolerance(1e-4))

    def test_it_is_done_if_asked_for(self):
        assert make_trainer(recompute=True).model.recompute and not make_trainer().model.recompute

    def test_each_drop_of_each_layer_has_its_own_numbers(self):
        class Twice(nn.Module):
            def __call__(self, x, mask, memory=None):
                return mx.stack([dropout.dropout(x, 0.5), dropout.dropout(x, 0.5)])

        x, layers = mx.ones((20, 20)), [dropout.grad_checkpoint(Twice()) for _ in range(2)]
        drawn = [dropped for layer in layers for dropped in layer(x, "causal")]
        assert not any(mx.array_equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))
        mx.random.seed(0)
        first = dropout.dropout(x, 0.5)  # what is outside of a layer draws from MLX's own state again
        mx.random.seed(0)
        assert mx.array_equal(first, mx.random.bernoulli(0.5, x.shape) * 2)


class TestFreezing:
    @pytest.mark.parametrize("part", ["encoder", "decoder", "embeddings", "output"])
    def test_frozen_parts_stay_and_all_others_move(self, part):
        mx.random.seed(1)
        pattern = {"embeddings": r"\w+_embedding\."}.get(part, part)
        config = dataclasses.replace(MODEL, share_embeddings=False, tie_output=part == "embeddings", output_bias=True)
        trainer = self.trained(config, (part,))
        before, after = self.before, split_projections(trainer.model.parameters())
        moved = {name for name in before if not mx.array_equal(before[name], after[name])}
        frozen = {name for name in before if re.match(pattern, name)}
        still = {name for name in before if name.endswith("key_proj.bias") or "positions" in name}
        assert frozen and not moved & frozen
        assert before.keys() - moved - still == frozen - still

    def trained(self, config, parts):
        model = Transformer(config)
        self.before = {name: array + 0 for name, array in split_projections(model.parameters()).items()}
        freeze_parts(model, parts)
        trainer = TrainState(model, OPTIONS)
        for step in range(2):
            trainer.update([make_batch(seed=step)])
        return trainer

    def test_what_is_validated_and_restored_has_the_frozen_parts_too(self, tmp_path):
        trainer = self.trained(MODEL, ("encoder",))
        assert same_bits(trainer.kept_model().encoder.parameters(), trainer.model.encoder.parameters())
        trainer.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
        model = Transformer(MODEL)
        freeze_parts(model, ("encoder",))
        other = TrainState(model, OPTIONS)
        other.restore(tmp_path)
        assert same_bits(other.model.parameters(), trainer.model.parameters())
        assert same_bits(other.optimizer.state, trainer.optimizer.state)

    def test_the_bias_of_a_tied_output_layer_is_of_the_output(self):
        model = Transformer(dataclasses.replace(MODEL, tie_output=True, output_bias=True))
        freeze_parts(model, ("output",))
        assert "output_bias" not in model.trainable_parameters()
        assert "source_embedding" in model.trainable_parameters()


class TestDropout:
    @pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
    def test_each_kind_drops_in_training_only(self, name):
        none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        model = random_model(dataclasses.replace(SETTINGS["pre_norm"], **none | {name: 0.5}))
        ids = mx.array([[3, 4, 5, 6]])
        model.eval()
        plain = model(ids, ids)
        assert mx.array_equal(plain, model(ids, ids))
        model.train()
        mx.random.seed(0)
        first, second = model(ids, ids), model(ids, ids)
        assert not mx.allclose(first, plain) and not mx.allclose(first, second)

    def test_what_is_left_makes_up_for_what_is_dropped(self):
        x = mx.ones((200, 100))
        dropped = np.array(dropout.dropout(x, 0.25))
        assert np.unique(dropped) == pytest.approx([0, 1 / 0.75])
        assert dropped.mean() == pytest.approx(1, abs=0.02)
        assert dropout.dropout(x, 0.0) is x
        assert dropout.dropout(x.astype(mx.float16), 0.5).dtype == mx.float16


class TestState:
    def test_restored_state_is_what_was_saved(self, tmp_path):
        tokenizer = Tokenizer.train(["ab"], ["ab"], 261)
        for changes in ({}, {"ema_decay": 0.0, "optimizer": "adafactor"}, {"compute_dtype": "float16"}):
            trainer, other = make_trainer(seed=1, **changes), make_trainer(seed=2, **changes)
            for step in range(3):
                trainer.update([make_batch(seed=step)])
            trainer.progress["best_score"] = -1.25
            trainer.write(tmp_path, tokenizer)
            other.restore(tmp_path)
            assert same_bits(trainer.model.parameters(), other.model.parameters())
            assert same_bits(trainer._beside(), other._beside())
            assert (trainer.step, trainer.progress) == (other.step, other.progress) == (3, {"best_score": -1.25})
            results = [part.update([make_batch(seed=9)]) for part in (trainer, other)]
            assert results[0][0].item() == results[1][0].item()
            assert same_bits(trainer._beside(), other._beside())

    @pytest.mark.parametrize("ema_decay", [0.0, 0.5])
    def test_the_mean_of_several_checkpoints(self, ema_decay, tmp_path, tolerance):
        trainer = make_trainer(ema_decay=ema_decay)
        kept = []
        for step in range(3):
            trainer.update([make_batch(seed=step)])
            kept.append(arrays_of(trainer.average or trainer.model.trainable_parameters()))
            (tmp_path / str(step)).mkdir()
            trainer.write(tmp_path / str(step), None)
        mean = {name: sum(arrays[name] for arrays in kept) / 3 for name in kept[0]}
        found = trainer.kept_model([tmp_path / "1", tmp_path / "0"])
        assert near(found.trainable_parameters(), mean, tolerance(1e-6))
        assert not near(found.trainable_parameters(), kept[-1], 1e-4)

    def test_the_scale_and_its_age_are_kept(self, tmp_path):
        trainer, other = make_trainer(compute_dtype="float16"), make_trainer(compute_dtype="float16")
        for _ in range(2):
            trainer.update([make_batch()])
        trainer.scaling["scale"] = mx.array(2.0**9)
        trainer.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
        other.restore(tmp_path)
        assert {name: array.item() for name, array in other.scaling.items()} == {"scale": 2.0**9, "served": 2}


def test_a_copy_task_is_learned():
    mx.random.seed(0)
    model = Transformer(dataclasses.replace(MODEL, dropout=0.0, source_vocab_size=10, target_vocab_size=10))
    trainer = TrainState(model, dataclasses.replace(OPTIONS, warmup_steps=30, learning_rate=8e-3, ema_decay=0.9))
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(3, 10, (64, 5))
        source = np.concatenate([ids, np.ones((64, 1))], axis=1).astype(np.int32)
        target = np.concatenate([np.full((64, 1), 2), source], axis=1).astype(np.int32)
        trainer.update([Batch(source, target)])
    unseen = rng.integers(3, 10, (64, 5)).tolist()
    source = mx.array([[*ids, 1] for ids in unseen], mx.int32)
    results = generate_ids(trainer.kept_model(), source, SearchConfig(max_tokens=8))
    assert np.mean([best.ids == ids for (best, *_), ids in zip(results, unseen, strict=True)]) > 0.95


def test_a_batch_without_a_token_changes_no_number_to_nan():
    trainer = make_trainer()
    loss, norm = trainer.update([Batch(np.array([[1, 0]], np.int32), np.zeros((1, 3), np.int32))])
    assert (loss.item(), norm.item()) == (0, 0)
    assert all(mx.isfinite(array).all().item() for array in arrays_of(trainer.model.parameters()).values())


class TestRestoring:
    def test_what_is_restored_no_longer_depends_on_the_files(self, tmp_path):
        trainer, other = make_trainer(seed=1), make_trainer(seed=2)
        trainer.update([make_batch()])
        trainer.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
        other.restore(tmp_path)
        for path in tmp_path.glob("*.safetensors"):
            path.write_bytes(b"")
        assert same_bits(trainer.model.parameters(), other.model.parameters())
        assert same_bits(trainer._beside(), other._beside())
