"""Tests of mlx.nn.Transformer as a peer."""

from dataclasses import replace

import mlx.core as mx
import pytest
from support.training_benchmarks import RECIPE, TINY, padded_batch

from benchmarks import mlx_model


def test_padding_does_not_change_the_loss():
    trainer = mlx_model.MlxTrainer(mlx_model.MlxTransformer(replace(TINY, length=12).model), RECIPE)
    source, target = map(mx.array, padded_batch())
    loss = trainer._loss(source, target)
    assert trainer._loss(*(mx.pad(ids, [(0, 0), (0, 3)]) for ids in (source, target))).item() == pytest.approx(
        loss.item(), abs=1e-5
    )
