"""Tests of the reference built from torch's layers: it is equivalent to our model and training step."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.training_benchmarks import RECIPE, TINY, model_config, padded_batch

import mlx_transformer as mt
from mlx_transformer.training.train_state import TrainState

torch = pytest.importorskip("torch")
torch_model = pytest.importorskip("benchmarks.torch_model")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_torch_thread")]


def models_with_equal_weights(config, tmp_path):
    """Return a model of torch with reproducible weights, and ours with the same weights."""
    torch.manual_seed(0)
    theirs, ours = torch_model.TorchTransformer(config), mt.Transformer(config)
    torch_model.load_torch_weights(ours, theirs.state_dict(), tmp_path / "weights.pt")
    return theirs, ours


@pytest.mark.parametrize("norm_first", [True, False])
def test_converted_weights_give_the_logits_of_torch(norm_first, tmp_path, tolerance):
    theirs, ours = models_with_equal_weights(model_config(norm_first), tmp_path)
    source, target = padded_batch()
    with torch.no_grad():
        expected = theirs(torch.tensor(source), torch.tensor(target[:, :-1])).numpy()
    actual = np.array(ours(mx.array(source), mx.array(target[:, :-1])))
    assert np.abs(actual - expected).max() <= tolerance(1e-4) and np.abs(expected).max() > 1


def test_weights_of_another_shape_are_rejected(tmp_path):
    theirs, ours = torch_model.TorchTransformer(model_config(True)), mt.Transformer(model_config(False))
    with pytest.raises(ValueError, match="must have the shape of ours"):
        torch_model.load_torch_weights(ours, theirs.state_dict(), tmp_path / "weights.pt")


@pytest.mark.parametrize("norm_first", [True, False])
def test_updates_equal_ours(norm_first, tmp_path, tolerance):
    theirs, ours = models_with_equal_weights(model_config(norm_first), tmp_path)
    trainers = TrainState(ours, RECIPE), torch_model.TorchTrainer(theirs, RECIPE)
    clipped = set()
    for number in range(5):
        batches = [padded_batch(number), replace(TINY, rows=2).batch]
        (loss, norm), (their_loss, their_norm) = (trainer.update(batches) for trainer in trainers)
        assert loss.item() == pytest.approx(their_loss.item(), abs=tolerance(1e-4))
        assert norm.item() == pytest.approx(their_norm.item(), rel=tolerance(1e-3))
        clipped.add(norm.item() > RECIPE.clip_norm)
    assert clipped == {True, False}


def test_initial_weights_have_our_standard_deviations(tmp_path):
    theirs, ours = models_with_equal_weights(model_config(True, dims=128, mlp=256, vocab=500), tmp_path)
    sizes = (
        {name: array.std().item() for name, array in tree_flatten(model.trainable_parameters())}
        for model in (ours, mt.Transformer(ours.config))
    )
    assert next(sizes) == pytest.approx(next(sizes), rel=0.05)


def test_dropout_rates_match_ours():
    config = replace(model_config(True, dropout=0.5), attention_dropout=0.25, activation_dropout=0.125)
    theirs = torch_model.TorchTransformer(config)
    rates = {name: module.p for name, module in theirs.named_modules() if isinstance(module, torch.nn.Dropout)}
    attention = [module.dropout for module in theirs.modules() if isinstance(module, torch.nn.MultiheadAttention)]
    inside = {name for name, rate in rates.items() if rate == 0.125}
    assert inside == {f"{side}.layers.{i}.dropout" for side in ("encoder", "decoder") for i in (0, 1)}
    assert {rate for name, rate in rates.items() if name not in inside} == {0.5}
    assert len(rates) == 1 + 2 * (1 + 2) + 2 * (1 + 3) and attention == [0.25] * 6


def test_the_latest_checkpoints_are_averaged():
    trainer = torch_model.TorchTrainer(
        torch_model.TorchTransformer(model_config(True)), replace(RECIPE, average_checkpoints=2, keep=2)
    )
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(trainer.model.embedding.weight, value)
        trainer.keep_checkpoint()
    assert trainer.averaged_weights()["embedding.weight"].unique().tolist() == [3]
