"""Shared by the tests of training: a tiny model, batches, short runs on small corpora, and comparisons."""

import dataclasses
import json
import signal
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.train_state import TrainState

STACK = StackConfig(num_layers=1, num_heads=2, mlp_dims=32, norm_first=True, final_norm=True, max_length=16)
MODEL = ModelConfig(source_vocab_size=20, target_vocab_size=20, dims=32, encoder=STACK, decoder=STACK, dropout=0.2)
OPTIONS = TrainingConfig(train=("-",), valid=("-",), output="-", learning_rate=1e-2, warmup_steps=4)
NEW_MODEL_DEFAULTS = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000}


def flatten(tree):
    return dict(tree_flatten(tree))


def bitwise_equal(first, second):
    first, second = flatten(first), flatten(second)
    return first.keys() == second.keys() and all(mx.array_equal(array, second[name]) for name, array in first.items())


def all_close(first, second, tolerance):
    first, second = flatten(first), flatten(second)
    return first.keys() == second.keys() and all(
        mx.allclose(array, second[name], rtol=tolerance, atol=tolerance) for name, array in first.items()
    )


def without_key_biases(parameters):
    """Parameters by name, without key biases, whose gradient is zero but for rounding errors: softmax cancels them."""
    return {name: array for name, array in split_projections(parameters).items() if "key_proj.bias" not in name}


def copy_arrays(tree):
    return {name: mx.array(array) for name, array in flatten(tree).items()}


def make_batch(rows=4, length=6, seed=0):
    """Pairs of several lengths; targets equal their sources."""
    rng = np.random.default_rng(seed)
    source = np.zeros((rows, length), np.int32)
    target = np.zeros((rows, length + 1), np.int32)
    target[:, 0] = 2
    for row in range(rows):
        ids = [*rng.integers(3, 20, length - 1 - row % 3), 1]
        source[row, : len(ids)] = ids
        target[row, 1 : len(ids) + 1] = ids
    return Batch(source, target)


def make_train_state(seed=1, **changes):
    mx.random.seed(seed)
    return TrainState(Transformer(MODEL), dataclasses.replace(OPTIONS, **changes))


def mean_loss_and_gradients(model, batch, smoothing=0.1):
    """The loss per token and its gradients, without compilation or chunking by TrainState."""

    def mean_loss(weights):
        model.update(weights)
        loss, tokens = batch_loss(model, mx.array(batch.source), mx.array(batch.target), smoothing)
        return loss / tokens

    weights = model.trainable_parameters()
    results = mx.value_and_grad(mean_loss)(weights)
    model.update(weights)
    return results


def run_options(folder, **changes):
    """Options of a short run on the corpora of `write_corpora`."""
    options = TrainingConfig(
        train=(str(folder / "train.tsv"),),
        valid=(str(folder / "valid.tsv"),),
        output=str(folder / "run"),
        num_layers=1,
        dims=64,
        mlp_dims=32,
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
    return dataclasses.replace(options, **changes)


def fine_tuning_options(options, model, **changes):
    """The same options for fine-tuning a model."""
    return dataclasses.replace(options, **NEW_MODEL_DEFAULTS | {"init": str(model)} | changes)


def interrupt_at(*steps, event="step"):
    """A report callback that sends SIGINT at the log entries of some steps."""

    def report(entry):
        if entry["event"] == event and entry["step"] in steps:
            signal.raise_signal(signal.SIGINT)

    return report


def write_corpora(folder):
    """Sequences of six words as sources, reversed as targets."""
    words = ["ab", "cd", "ef", "gh", "ij", "kl"]
    for name, count, start in (("train", 72, 0), ("valid", 12, 5)):
        rows = [[words[(start + i * k) % 6] for k in (1, 5, 7)] for i in range(count)]
        (folder / f"{name}.tsv").write_text("".join(f"{' '.join(r)}\t{' '.join(r[::-1])}\n" for r in rows))
    return folder


def run_state(run):
    """The arrays of the latest checkpoint and of the best model, and the checkpoint's training.json."""
    files = [*Path(run, "last").glob("*.safetensors"), *Path(run, "best").glob("*.safetensors")]
    assert len(files) == 3
    arrays = {f"{file.parent.name}/{file.name}": mx.load(str(file)) for file in files}
    return arrays, json.loads((Path(run) / "last" / "training.json").read_text())


def runs_equal(first, second):
    (arrays, progress), (other_arrays, other_progress) = run_state(first), run_state(second)
    return progress == other_progress and bitwise_equal(arrays, other_arrays)


def log_events(run, event):
    """The entries of a run's log for one event."""
    entries = map(json.loads, (Path(run) / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["event"] == event]
