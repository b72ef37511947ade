"""A tiny model, recipe and batch for the tests of the training benchmarks."""

from dataclasses import replace

import numpy as np

from benchmarks.train import Options
from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch

TINY = Options(layers=2, dims=32, heads=2, mlp=48, vocab=60, rows=3, length=7, dropout=0.0, threads=1)
RECIPE = TrainingConfig(
    train=("none",),
    valid=("none",),
    output="none",
    learning_rate=0.01,
    warmup_steps=2,
    label_smoothing=0.1,
    clip_norm=1.5,
    ema_decay=0.0,
    accumulate=2,
)


def model_config(norm_first: bool, **changes: object) -> ModelConfig:
    """Return the configuration of the tiny model, pre-norm or post-norm."""
    config = replace(TINY, **changes).model
    stack = replace(config.encoder, norm_first=norm_first, final_norm=norm_first)
    return replace(config, encoder=stack, decoder=stack)


def padded_batch(seed: int = 0) -> Batch:
    """Return a random batch with padding in sources and targets."""
    ids = np.random.default_rng(seed).integers(3, TINY.vocab, (2, TINY.rows, TINY.length + 1), np.int32)
    ids[1, :, 0] = 2
    ids[0, 0, 3:] = ids[0, 1, 5:] = ids[1, 1, 4:] = ids[1, 2, 6:] = 0
    return Batch(ids[0, :, :-1], ids[1])
