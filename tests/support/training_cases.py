"""What the tests of training share: a tiny model, batches, trainers, comparisons of bits; and corpora in files."""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.train_state import TrainState

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
    return TrainState(Transformer(MODEL), dataclasses.replace(OPTIONS, **changes))


def run_options(folder, **changes):
    """A short run on the corpora of `write_corpora`."""
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


def write_corpora(folder):
    """Six words in turn, and the same backwards."""
    words = ["ab", "cd", "ef", "gh", "ij", "kl"]
    for name, count, start in (("train", 72, 0), ("valid", 12, 5)):
        rows = [[words[(start + i * k) % 6] for k in (1, 5, 7)] for i in range(count)]
        (folder / f"{name}.tsv").write_text("".join(f"{' '.join(r)}\t{' '.join(r[::-1])}\n" for r in rows))
    return folder


def state_of(run):
    """All bits that a run has left to go on with, and the model that it kept."""
    files = ("last/model.safetensors", "last/training.safetensors", "best/model.safetensors")
    arrays = {name: mx.load(str(Path(run) / name)) for name in files}
    return arrays, json.loads((Path(run) / "last" / "training.json").read_text())


def same_run(first, second):
    (arrays, progress), (other_arrays, other_progress) = state_of(first), state_of(second)
    return progress == other_progress and same_bits(arrays, other_arrays)


def log_of(run, event):
    entries = map(json.loads, (Path(run) / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["event"] == event]
