"""Freezing parts of a model."""

import dataclasses
import re

import mlx.core as mx
import pytest
from support.training_cases import MODEL, OPTIONS, bitwise_equal, copy_arrays, make_batch

from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.builders import freeze_parts
from mlx_transformer.training.train_state import TrainState


def train_with_frozen_parts(model, parts):
    freeze_parts(model, parts)
    state = TrainState(model, OPTIONS)
    for step in range(2):
        state.update([make_batch(seed=step)])
    return state


@pytest.mark.parametrize("part", ["encoder", "decoder", "embeddings", "output"])
def test_frozen_parts_stay_and_all_others_change(part):
    mx.random.seed(1)
    pattern = {"embeddings": r"\w+_embedding\."}.get(part, part)
    config = dataclasses.replace(MODEL, share_embeddings=False, tie_output=part == "embeddings", output_bias=True)
    model = Transformer(config)
    before = copy_arrays(split_projections(model.parameters()))
    train_with_frozen_parts(model, (part,))
    after = split_projections(model.parameters())
    changed = {name for name in before if not mx.array_equal(before[name], after[name])}
    frozen = {name for name in before if re.match(pattern, name)}
    constant = {name for name in before if name.endswith("key_proj.bias") or "positions" in name}
    assert frozen and not changed & frozen
    assert before.keys() - changed - constant == frozen - constant


def test_evaluated_and_restored_models_include_frozen_parts(tmp_path):
    state = train_with_frozen_parts(Transformer(MODEL), ("encoder",))
    assert bitwise_equal(state.eval_model().encoder.parameters(), state.model.encoder.parameters())
    state.write(tmp_path, Tokenizer.train(["ab"], ["ab"], 261))
    model = Transformer(MODEL)
    freeze_parts(model, ("encoder",))
    other = TrainState(model, OPTIONS)
    other.restore(tmp_path)
    assert bitwise_equal(other.model.parameters(), state.model.parameters())
    assert bitwise_equal(other.optimizer.state, state.optimizer.state)


def test_freezing_a_tied_output_freezes_its_bias_only():
    model = Transformer(dataclasses.replace(MODEL, tie_output=True, output_bias=True))
    freeze_parts(model, ("output",))
    assert "output_bias" not in model.trainable_parameters()
    assert "source_embedding" in model.trainable_parameters()
