"""Training: loss, schedule, step, runs that resume exactly, and that a task is learned."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_transformer as mt
from mlx_transformer import evaluation, recipe, training
from mlx_transformer import trainer as trainer_module
from mlx_transformer.config import ModelConfig, SearchConfig, StackConfig
from mlx_transformer.data import Batch, Corpus, batches
from mlx_transformer.layout import split
from mlx_transformer.loss import batch_loss, token_losses
from mlx_transformer.model import Transformer
from mlx_transformer.recipe import Preset, TrainingConfig
from mlx_transformer.search import generate_ids
from mlx_transformer.tokenizer import Tokenizer
from mlx_transformer.trainer import Trainer, inverse_square_root
from mlx_transformer.training import train, validate

ROOT = Path(__file__).resolve().parent.parent
TINY = Preset(dims=64, layers=1, mlp_dims=32)
STACK = StackConfig(num_layers=1, num_heads=2, mlp_dims=32, norm_first=True, final_norm=True, max_length=16)
MODEL = ModelConfig(source_vocab_size=20, target_vocab_size=20, dims=32, encoder=STACK, decoder=STACK, dropout=0.2)
OPTIONS = TrainingConfig(train=("-",), valid=("-",), output="-", learning_rate=1e-2, warmup_steps=4)


def arrays_of(tree):
    return dict(tree_flatten(tree))


def same_bits(first, second):
    first, second = arrays_of(first), arrays_of(second)
    return first.keys() == second.keys() and all(mx.array_equal(array, second[name]) for name, array in first.items())


def near(first, second, tolerance):
    first, second = arrays_of(first), arrays_of(second)
    return first.keys() == second.keys() and all(
        mx.allclose(array, second[name], rtol=tolerance, atol=tolerance) for name, array in first.items()
    )


def make_batch(rows=4, length=6, seed=0):
    """Pairs of several lengths; targets are the sources."""
    rng = np.random.default_rng(seed)
    source = np.zeros((rows, length), np.int32)
    target = np.zeros((rows, length + 1), np.int32)
    target[:, 0] = 2
    for row in range(rows):
        ids = [*rng.integers(3, 20, length - 1 - row % 3), 1]
        source[row, : len(ids)] = ids
        target[row, 1 : len(ids) + 1] = ids
    return Batch(source, target)


def make_trainer(seed=1, **changes):
    mx.random.seed(seed)
    return Trainer(Transformer(MODEL), dataclasses.replace(OPTIONS, **changes))


def gradients_of(model, batch, smoothing=0.1):
    value_and_grad = nn.value_and_grad(model, batch_loss)
    return value_and_grad(model, mx.array(batch.source), mx.array(batch.target), smoothing)


class TestLoss:
    def logits(self, scale=3.0):
        rng = np.random.default_rng(0)
        return rng.standard_normal((3, 4, 11)).astype(np.float32) * scale, rng.integers(0, 11, (3, 4))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
    def test_it_is_the_cross_entropy_with_the_smoothed_target(self, smoothing, tolerance):
        logits, targets = self.logits()
        wide = logits.astype(np.float64)
        logprobs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        smoothed = (1 - smoothing) * np.eye(11)[targets] + smoothing / 11
        expected = -(smoothed * logprobs).sum(-1)
        losses = token_losses(mx.array(logits), mx.array(targets), smoothing)
        assert losses.shape == targets.shape
        np.testing.assert_allclose(np.array(losses), expected, atol=tolerance(1e-5), rtol=tolerance(1e-5))

    @pytest.mark.torch
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_values_and_gradients_of_torch(self, smoothing, tolerance):
        torch = pytest.importorskip("torch")
        logits, targets = self.logits()
        weights = np.random.default_rng(1).random(targets.shape).astype(np.float32)

        def loss(logits):
            return (token_losses(logits, mx.array(targets), smoothing) * mx.array(weights)).sum()

        value, gradient = mx.value_and_grad(loss)(mx.array(logits))
        leaf = torch.tensor(logits, requires_grad=True)
        losses = torch.nn.functional.cross_entropy(
            leaf.reshape(-1, 11), torch.tensor(targets.reshape(-1)), label_smoothing=smoothing, reduction="none"
        )
        expected = (losses * torch.tensor(weights.reshape(-1))).sum()
        expected.backward()
        assert value.item() == pytest.approx(expected.item(), abs=tolerance(1e-5), rel=tolerance(1e-5))
        np.testing.assert_allclose(np.array(gradient), leaf.grad.numpy(), atol=tolerance(1e-5))

    def test_large_logits_do_not_overflow(self):
        logits, targets = self.logits(scale=300.0)
        value, gradient = mx.value_and_grad(lambda x: token_losses(x, mx.array(targets), 0.1).sum())(mx.array(logits))
        assert math.isfinite(value.item()) and mx.isfinite(gradient).all().item()

    def test_low_precision_is_summed_in_float32(self):
        logits, targets = self.logits()
        losses = token_losses(mx.array(logits).astype(mx.float16), mx.array(targets))
        assert losses.dtype == mx.float32

    def test_it_is_the_mean_over_real_tokens(self, tolerance):
        model, batch = Transformer(MODEL), make_batch()
        model.eval()
        wanted = mx.array(batch.target[:, 1:])
        losses = np.array(token_losses(model(mx.array(batch.source), mx.array(batch.target[:, :-1])), wanted, 0.1))
        loss = batch_loss(model, mx.array(batch.source), mx.array(batch.target), 0.1).item()
        assert loss == pytest.approx(losses[batch.target[:, 1:] != 0].mean(), abs=tolerance(1e-5))

    @pytest.mark.parametrize("change", ["columns", "rows"])
    def test_padding_changes_neither_loss_nor_gradients(self, change, tolerance):
        model, batch = Transformer(MODEL), make_batch()
        model.eval()
        if change == "columns":
            padded = Batch(*(np.pad(side, ((0, 0), (0, 3))) for side in batch))
        else:
            padded = Batch(*(np.pad(side, ((0, 2), (0, 0))) for side in batch))
            padded.source[4:, 0] = Tokenizer.eos_id  # as data.batches fills up a batch
        loss, gradients = gradients_of(model, batch)
        padded_loss, padded_gradients = gradients_of(model, padded)
        assert padded_loss.item() == pytest.approx(loss.item(), abs=tolerance(1e-6))
        assert near(gradients, padded_gradients, tolerance(1e-6))

    def test_a_batch_without_a_token_has_no_loss(self):
        batch = Batch(np.array([[1, 0]], np.int32), np.zeros((1, 3), np.int32))
        loss, gradients = gradients_of(Transformer(MODEL), batch)
        assert loss.item() == 0
        assert all(mx.isfinite(array).all().item() for array in arrays_of(gradients).values())


class TestSchedule:
    def rate(self, step, **changes):
        options = {"learning_rate": 0.5, "warmup_steps": 100} | changes
        return inverse_square_root(mx.array(step - 1), **options).item()

    def test_it_has_the_shape_of_the_paper(self):
        """Vaswani et al. 2017, section 5.3: proportional to min(step ** -0.5, step * warmup_steps ** -1.5)."""
        ratios = [
            self.rate(step) / min(step**-0.5, step * 100**-1.5) for step in (1, 2, 50, 99, 100, 101, 150, 1000, 99999)
        ]
        assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-5)

    def test_the_highest_rate_is_reached_after_warm_up(self):
        rates = [self.rate(step) for step in range(1, 400)]
        assert max(rates) == rates[99] == pytest.approx(0.5)
        assert rates[0] == pytest.approx(0.005)

    def test_it_halves_when_the_steps_quadruple(self):
        for step in (100, 400, 5000):
            assert self.rate(4 * step) == pytest.approx(self.rate(step) / 2, rel=1e-5)

    def test_the_optimizer_follows_it_from_its_first_step(self):
        trainer, batch = make_trainer(learning_rate=0.01, warmup_steps=2), make_batch()
        rates = []
        for _ in range(4):
            trainer.update(batch)
            rates.append(trainer.optimizer.learning_rate.item())
        expected = [self.rate(step, learning_rate=0.01, warmup_steps=2) for step in (1, 2, 3, 4)]
        assert rates == pytest.approx(expected, rel=1e-5)


class TestStep:
    def test_compiled_equals_uncompiled(self, tolerance):
        compiled, plain = make_trainer(), make_trainer()
        plain._compiled_step = plain._step
        for step in range(3):
            results = [trainer.update(make_batch(seed=step)) for trainer in (compiled, plain)]
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
            trainer = Trainer(model, dataclasses.replace(OPTIONS, seed=seed, learning_rate=1e-30))
            found = []
            for step in range(3):
                found.append(trainer.update(batch)[0].item())
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
        trainer.update(batch)
        assert trainer.model.training

    @pytest.mark.parametrize("clip_norm", [0.01, 1e9])
    def test_clipping_bounds_the_norm_of_the_update(self, clip_norm, tolerance):
        mx.random.seed(1)
        model = Transformer(dataclasses.replace(MODEL, dropout=0.0))
        expected, gradients = gradients_of(model, make_batch())
        norm = math.sqrt(sum((array**2).sum().item() for array in arrays_of(gradients).values()))
        trainer = Trainer(model, dataclasses.replace(OPTIONS, clip_norm=clip_norm))
        loss, told = trainer.update(make_batch())
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
            trainer.update(make_batch(seed=step))
            decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12, then 0.25
            new = arrays_of(trainer.model.trainable_parameters())
            expected = {name: decay * array + (1 - decay) * new[name] for name, array in expected.items()}
        assert near(trainer.average, expected, tolerance(1e-6))
        assert not same_bits(trainer.average, trainer.model.trainable_parameters())

    def test_without_an_average_the_newest_weights_are_kept(self):
        trainer = make_trainer(ema_decay=0.0)
        for step in range(2):
            trainer.update(make_batch(seed=step))
        assert same_bits(trainer.average, trainer.model.trainable_parameters())

    def test_fixed_positions_stay(self):
        trainer = make_trainer()
        before = mx.array(trainer.model.encoder.positions.weight)
        trainer.update(make_batch())
        assert mx.array_equal(trainer.model.encoder.positions.weight, before)
        assert not any("positions" in name for name in arrays_of(trainer.average))

    def test_every_other_parameter_moves(self):
        """But a key's bias, which softmax cancels."""
        trainer = make_trainer()
        before = {name: mx.array(array) for name, array in split(trainer.model.trainable_parameters()).items()}
        for step in range(2):
            trainer.update(make_batch(seed=step))
        after = split(trainer.model.trainable_parameters())
        still = [name for name in before if mx.array_equal(before[name], after[name])]
        assert [name for name in still if not name.endswith("key_proj.bias")] == []


class TestValidation:
    def make_corpus(self, count=9):
        tokenizer = Tokenizer.train(["ab cd ef gh"], ["ab cd ef gh"], 261)
        words = ["ab", "cd ef", "gh ab cd", "ef"]
        pairs = [(" ".join(words[: 1 + i % 4]), words[i % 4]) for i in range(count)]
        return Corpus.build(pairs, tokenizer), tokenizer

    @pytest.mark.parametrize("favourite", [Tokenizer.pad_id, Tokenizer.eos_id])
    def test_loss_and_accuracy_are_those_of_each_pair_alone(self, favourite, tolerance):
        corpus, tokenizer = self.make_corpus()
        stack = dataclasses.replace(STACK, max_length=64)
        model = Transformer(ModelConfig(261, 261, 32, stack, stack, output_bias=True))
        model.output_bias[favourite] = 9  # what it foretells nearly everywhere, also at padding
        model.eval()
        losses, correct = [], []
        for i in range(len(corpus)):
            ids = [side.ids[side.offsets[i] : side.offsets[i + 1]] for side in (corpus.source, corpus.target)]
            target = mx.array([[2, *ids[1].tolist()]], mx.int32)
            logits = model(mx.array(ids[0][None]), target[:, :-1])
            losses += token_losses(logits, target[:, 1:])[0].tolist()
            correct += (logits.argmax(-1) == target[:, 1:])[0].tolist()
        results = validate(model, corpus, 128)
        assert results["loss"] == pytest.approx(np.mean(losses), rel=tolerance(1e-5))
        assert results["token_accuracy"] == pytest.approx(np.mean(correct))
        assert any(correct) == (favourite == Tokenizer.eos_id)

    def test_every_epoch_has_the_same_pairs_in_another_order(self):
        corpus, _ = self.make_corpus(40)
        count = len(list(batches(corpus, OPTIONS.batch_tokens // 64, seed=0)))
        stream = training._stream(corpus, dataclasses.replace(OPTIONS, batch_tokens=64, max_length=64))
        epochs = [
            [tuple(row[row > 0].tolist()) for batch in islice(stream, count) for row in batch.target if row.any()]
            for _ in range(3)
        ]
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]) and len(epochs[0]) == 40
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    def test_it_leaves_the_training_model_untouched(self):
        trainer = make_trainer()
        trainer.update(make_batch())
        before = {name: mx.array(array) for name, array in arrays_of(trainer.model.parameters()).items()}
        kept = {name: mx.array(array) for name, array in arrays_of(trainer.average).items()}
        averaged = trainer.averaged()
        assert not averaged.training and trainer.model.training
        assert same_bits(averaged.trainable_parameters(), trainer.average)
        averaged(mx.array(make_batch().source), mx.array(make_batch().target))
        assert same_bits(trainer.model.parameters(), before) and same_bits(trainer.average, kept)
        trainer.update(make_batch())
        assert same_bits(averaged.trainable_parameters(), kept)  # nor do later steps touch what is validated
        assert trainer.model.training


def test_a_copy_task_is_learned():
    mx.random.seed(0)
    model = Transformer(dataclasses.replace(MODEL, dropout=0.0, source_vocab_size=10, target_vocab_size=10))
    trainer = Trainer(model, dataclasses.replace(OPTIONS, warmup_steps=30, learning_rate=8e-3, ema_decay=0.9))
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(3, 10, (64, 5))
        source = np.concatenate([ids, np.ones((64, 1))], axis=1).astype(np.int32)
        target = np.concatenate([np.full((64, 1), 2), source], axis=1).astype(np.int32)
        trainer.update(Batch(source, target))
    unseen = rng.integers(3, 10, (64, 5)).tolist()
    source = mx.array([[*ids, 1] for ids in unseen], mx.int32)
    results = generate_ids(trainer.averaged(), source, SearchConfig(max_tokens=8))
    assert np.mean([best.ids == ids for (best, *_), ids in zip(results, unseen, strict=True)]) > 0.95


# Runs, by files.


@pytest.fixture
def corpora(tmp_path):
    words = ["ab", "cd", "ef", "gh", "ij", "kl"]
    for name, count, start in (("train", 72, 0), ("valid", 12, 5)):
        rows = [[words[(start + i * k) % 6] for k in (1, 5, 7)] for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("".join(f"{' '.join(r)}\t{' '.join(r[::-1])}\n" for r in rows))
    return tmp_path


@pytest.fixture
def options(corpora, monkeypatch):
    monkeypatch.setitem(recipe.PRESETS, "tiny", TINY)
    return run_options(corpora)


def run_options(folder):
    return TrainingConfig(
        train=(str(folder / "train.tsv"),),
        valid=(str(folder / "valid.tsv"),),
        output=str(folder / "run"),
        preset="tiny",
        steps=12,
        batch_tokens=64,
        max_length=16,
        vocab_size=270,
        learning_rate=3e-3,
        warmup_steps=3,
        valid_every=4,
        log_every=2,
        bleu_sentences=0,
        seed=4,
    )


def state_of(run):
    """All bits that a run has left to go on with, and the model that it kept."""
    files = ("last/model.safetensors", "last/training.safetensors", "best/model.safetensors")
    arrays = {name: mx.load(str(run / name)) for name in files}
    return arrays, json.loads((run / "last" / "training.json").read_text())


def same_run(first, second):
    (arrays, progress), (other_arrays, other_progress) = state_of(Path(first)), state_of(Path(second))
    return progress == other_progress and same_bits(arrays, other_arrays)


def log_of(run, event):
    entries = map(json.loads, (Path(run) / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["event"] == event]


class TestRun:
    def test_best_and_last_are_model_folders_and_the_log_is_what_was_reported(self, options):
        reports = []
        options = dataclasses.replace(options, bleu_sentences=5, ema_decay=0.5)
        best = train(options, reports.append)
        run = Path(options.output)
        assert best == run / "best"
        lines = (run / "log.jsonl").read_text().splitlines()
        assert lines == [json.dumps(entry) for entry in reports]
        assert [entry["event"] for entry in reports] == ["start", *(["step"] * 2 + ["validation"]) * 3]
        assert [entry["step"] for entry in reports] == [0, 2, 4, 4, 6, 8, 8, 10, 12, 12]
        start, *_ = reports
        assert start["pairs"] == 72 and start["too_long"] == 0
        assert (
            TrainingConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in start["config"].items()}) == options
        )
        for entry in log_of(run, "step"):
            assert entry.keys() >= {"steps", "loss", "tokens_per_second", "learning_rate", "gradient_norm"}
            assert entry["seconds_left"] >= 0 and entry["steps"] == 12
        for entry in log_of(run, "validation"):
            assert {"loss", "token_accuracy", "exact_match", "best"} <= entry.keys()

        for folder in (best, run / "last"):
            model, tokenizer = mt.load(folder)
            assert model.num_parameters == start["parameters"]
            assert isinstance(mt.generate(model, tokenizer, "ab cd ef"), str)
            assert model.search_defaults.suppress_ids == (Tokenizer.start_id,)
        assert sorted(path.name for path in run.iterdir()) == ["best", "last", "log.jsonl", "options.json"]

    def test_best_is_the_average_of_the_best_validation(self, options):
        best = train(dataclasses.replace(options, ema_decay=0.5))
        entries = log_of(options.output, "validation")
        assert [e["best"] for e in entries] == [
            e["loss"] < min([math.inf, *(f["loss"] for f in entries[:i])]) for i, e in enumerate(entries)
        ]
        assert entries[-1]["best"]  # this run still improves: its last average is what is kept
        arrays, _ = state_of(Path(options.output))
        kept = arrays["best/model.safetensors"]
        average = arrays["last/training.safetensors"]
        assert all(mx.array_equal(average[f"average.{n}"], kept[n]) for n in kept if "positions" not in n)
        model, tokenizer = mt.load(best)
        pairs = [line.split("\t") for line in Path(options.valid[0]).read_text().splitlines()]
        again = validate(model, Corpus.build(pairs, tokenizer, options.max_length), options.batch_tokens)
        assert again["loss"] == pytest.approx(entries[-1]["loss"], rel=1e-6)

    @pytest.mark.cpu
    def test_validation_does_not_change_the_run(self, options, tmp_path):
        train(options)
        train(dataclasses.replace(options, output=str(tmp_path / "other"), valid_every=5, bleu_sentences=2))
        first, second = (mx.load(f"{run}/last/training.safetensors") for run in (options.output, tmp_path / "other"))
        assert same_bits(first, second)

    def test_best_by_bleu(self, options, monkeypatch):
        scores = iter([10.0, 30.0, 20.0])
        monkeypatch.setattr(training, "_translate", lambda *_: {"bleu": next(scores), "exact_match": 0.0})
        train(dataclasses.replace(options, best_by="bleu", bleu_sentences=5))
        assert [entry["best"] for entry in log_of(options.output, "validation")] == [True, True, False]

    def test_bleu_needs_sacrebleu_before_anything_is_done(self, options, monkeypatch):
        monkeypatch.setattr(evaluation, "has_sacrebleu", lambda: False)
        with pytest.raises(ValueError, match="sacrebleu, which is not installed: pip install"):
            train(dataclasses.replace(options, best_by="bleu", bleu_sentences=5))
        assert not Path(options.output).exists()

    def test_exact_matches_are_counted_without_sacrebleu(self, options, monkeypatch):
        monkeypatch.setattr(training, "has_sacrebleu", lambda: False)
        train(dataclasses.replace(options, steps=1, bleu_sentences=2))
        (entry,) = log_of(options.output, "validation")
        assert "exact_match" in entry and "bleu" not in entry

    def test_bad_lines_are_skipped_only_if_asked(self, options, caplog):
        with open(options.train[0], "a") as file:
            file.write("no tab\n")
        with pytest.raises(ValueError, match="line 73"):
            train(options)
        assert not Path(options.output).exists()
        with caplog.at_level("WARNING", logger="mlx_transformer.training"):
            train(dataclasses.replace(options, skip_bad_lines=True, steps=1))
        assert "1 bad lines of" in caplog.text
        assert log_of(options.output, "start")[0]["pairs"] == 72

    def test_separate_vocabularies(self, options):
        best = train(dataclasses.replace(options, shared_vocabulary=False, steps=1))
        model, tokenizer = mt.load(best)
        assert not tokenizer.shared and not model.config.share_embeddings


@pytest.mark.cpu
class TestResume:
    def test_twice_n_steps_are_n_resumed_for_n(self, options, tmp_path):
        halves = dataclasses.replace(options, output=str(tmp_path / "halves"))
        train(options)
        train(dataclasses.replace(halves, steps=4))
        assert not same_run(options.output, halves.output)
        train(dataclasses.replace(halves, resume=True))
        assert same_run(options.output, halves.output)
        whole, resumed = (log_of(run, "validation") for run in (options.output, halves.output))
        assert whole == resumed  # also the losses, which are those of one unbroken run
        strip = [
            {k: e[k] for k in ("step", "loss", "learning_rate", "gradient_norm")}
            for e in log_of(options.output, "step")
        ]
        assert strip == [{k: e[k] for k in strip[0]} for e in log_of(halves.output, "step")]

    def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(self, options, tmp_path):
        killed = tmp_path / "killed"
        script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest  # first of all, so that the bits are those of the same BLAS
import mlx.core as mx
mx.set_default_device(mx.cpu)
import dataclasses, pathlib, test_training as t
t.recipe.PRESETS["tiny"] = t.TINY
def report(entry):
    if entry["event"] == "step" and entry["step"] == 6:  # two steps after a checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
t.train(dataclasses.replace(t.run_options(pathlib.Path({str(tmp_path)!r})), output={str(killed)!r}), report)
"""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=300)
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        assert json.loads((killed / "last" / "training.json").read_text())["step"] == 4
        train(options)
        train(dataclasses.replace(options, output=str(killed), resume=True))
        assert same_run(options.output, killed)
        steps = [[entry["step"] for entry in log_of(run, "step")] for run in (options.output, killed)]
        assert steps[0] == steps[1]  # what was done after the last checkpoint is logged once

    def test_a_cut_between_two_renames_is_put_right(self, options):
        train(dataclasses.replace(options, steps=4))
        run = Path(options.output)
        before = state_of(run)
        for name in ("last", "best"):
            (run / name).rename(run / f".{name}.old")
        train(dataclasses.replace(options, steps=4, resume=True))
        after = state_of(run)
        assert before[1] == after[1] and same_bits(before[0], after[0])

    def test_a_run_that_exists_is_not_overwritten(self, options):
        train(dataclasses.replace(options, steps=1))
        before = state_of(Path(options.output))
        with pytest.raises(FileExistsError, match=f"{options.output} holds a run already: resume it"):
            train(options)
        (Path(options.output) / "last").rename(Path(options.output) / ".last.old")
        with pytest.raises(FileExistsError, match="holds a run already"):
            train(options)
        after = state_of(Path(options.output))
        assert before[1] == after[1] and same_bits(before[0], after[0])

    def test_without_a_checkpoint_there_is_nothing_to_resume(self, options):
        resumed = dataclasses.replace(options, resume=True)
        told = f"There is no run to resume in {options.output}: start one"
        with pytest.raises(FileNotFoundError, match=told):
            train(resumed)
        assert not Path(options.output).exists()

        def stop(entry):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(options, stop)
        assert (Path(options.output) / "options.json").exists()
        with pytest.raises(FileNotFoundError, match=told):
            train(resumed)

    def test_other_options_are_refused_by_name(self, options):
        train(dataclasses.replace(options, steps=1))
        other = dataclasses.replace(options, resume=True, seed=9, learning_rate=1.0, steps=3)
        with pytest.raises(ValueError, match="but learning_rate, seed differ from .*options.json; only steps may"):
            train(other)
        train(dataclasses.replace(options, resume=True, steps=2))

    def test_fewer_steps_than_were_done_are_refused(self, options):
        train(dataclasses.replace(options, steps=2))
        with pytest.raises(ValueError, match="steps must not be less than the run has done: 1 is less than 2"):
            train(dataclasses.replace(options, resume=True, steps=1))

    def test_the_random_numbers_of_the_caller_go_on(self, options):
        mx.random.seed(5)
        expected = mx.random.uniform().item()
        mx.random.seed(5)
        train(dataclasses.replace(options, steps=1))
        assert mx.random.uniform().item() == expected

    def test_restored_state_is_what_was_saved(self, tmp_path):
        tokenizer = Tokenizer.train(["ab"], ["ab"], 261)
        trainer, other = make_trainer(seed=1), make_trainer(seed=2)
        for step in range(3):
            trainer.update(make_batch(seed=step))
        trainer.best_score = -1.25
        trainer.save(tmp_path / "last", tokenizer)
        stored = mx.load(str(tmp_path / "last" / "training.safetensors"))
        assert {name.replace("value_proj", "key_proj") for name in stored if "value_proj" in name} == {
            name for name in stored if "key_proj" in name
        }
        other.restore(tmp_path / "last")
        assert same_bits(trainer.model.parameters(), other.model.parameters())
        assert same_bits(trainer.optimizer.state, other.optimizer.state)
        assert same_bits(trainer.average, other.average)
        assert (trainer.step, trainer.best_score) == (other.step, other.best_score) == (3, -1.25)
        results = [part.update(make_batch(seed=9)) for part in (trainer, other)]
        assert results[0][0].item() == results[1][0].item()
        assert same_bits(trainer.average, other.average)


class TestDivergence:
    @pytest.mark.parametrize("log_every", [1, 100])
    def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_kept(self, options, log_every, monkeypatch):
        """Whether the log or the validation sees it first."""
        options = dataclasses.replace(options, steps=8, valid_every=2, log_every=log_every)
        train(dataclasses.replace(options, steps=2))
        before = state_of(Path(options.output))
        # Resuming with another rate is refused, so let the schedule itself go mad.
        monkeypatch.setattr(trainer_module, "inverse_square_root", lambda step, **_: mx.array(1e30))
        with pytest.raises(ValueError, match=r"not finite any more at step \d: lower learning_rate, .* last/ holds"):
            train(dataclasses.replace(options, resume=True))
        after = state_of(Path(options.output))
        assert after[1]["step"] < 8
        for arrays in after[0].values():
            assert all(mx.isfinite(array).all().item() for array in arrays.values())
        assert before[1]["best_score"] <= after[1]["best_score"]

    def test_a_huge_learning_rate_is_told_at_the_next_line_of_the_log(self, options):
        options = dataclasses.replace(options, learning_rate=1e30, warmup_steps=1, valid_every=12)
        with pytest.raises(ValueError, match="at step 2: lower learning_rate, or raise warmup_steps"):
            train(options)
        assert not (Path(options.output) / "last").exists()
        assert all(json.loads(line) for line in (Path(options.output) / "log.jsonl").read_text().splitlines())
