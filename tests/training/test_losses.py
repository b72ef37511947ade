"""The loss: cross entropy with smoothing, and that of an output layer whose logits are never all in memory."""

import dataclasses
import math
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.paths import TESTS
from support.training_cases import MODEL, arrays_of, make_batch, near

from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import losses as losses_module
from mlx_transformer.training.losses import batch_loss, chunk_sizes, chunked_cross_entropy, token_losses


def gradients_of(model, batch, smoothing=0.1):
    value_and_grad = nn.value_and_grad(model, lambda *arrays: batch_loss(*arrays)[0])
    return value_and_grad(model, mx.array(batch.source), mx.array(batch.target), smoothing)


class TestTokenLosses:
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


class TestSummedLoss:
    """Against the plain loss of plain logits, whose gradient MLX finds by itself."""

    def inputs(self, dtype=mx.float32):
        rng = np.random.default_rng(0)
        hidden_states, weight, bias = (
            mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype) for shape in ((37, 16), (50, 16), 50)
        )
        return [hidden_states, weight, bias], mx.array(rng.integers(0, 50, 37)), mx.array((np.arange(37) % 5 > 0) * 1.0)

    def both(self, smoothing, bias=True, dtype=mx.float32):
        arrays, targets, real = self.inputs(dtype)
        arrays = arrays if bias else arrays[:2]

        def plain(hidden_states, weight, bias=None):
            logits = hidden_states.astype(mx.float32) @ weight.astype(mx.float32).T
            logits = logits if bias is None else logits + bias.astype(mx.float32)
            return 3 * (token_losses(logits, targets, smoothing) * real).sum()

        def ours(hidden_states, weight, bias=None):
            return 3 * chunked_cross_entropy(hidden_states, weight, bias, targets, real, smoothing)

        places = tuple(range(len(arrays)))
        return [mx.value_and_grad(call, argnums=places)(*arrays) for call in (plain, ours)]

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("piece", [None, 500, 1])
    def test_value_and_gradients_are_those_of_the_plain_loss(self, smoothing, bias, piece, monkeypatch, tolerance):
        if piece is not None:
            monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
            monkeypatch.setattr(losses_module, "CHUNK_LOGITS", piece)
            assert len(list(chunk_sizes(37, 50))) == {500: 4, 1: 37}[piece]
        (plain, plain_gradients), (value, gradients) = self.both(smoothing, bias)
        assert value.item() == pytest.approx(plain.item(), rel=tolerance(1e-6))
        assert near(list(gradients), list(plain_gradients), tolerance(1e-5))

    def test_compiled_it_is_the_same(self, monkeypatch, tolerance):
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 500)
        arrays, targets, real = self.inputs()

        def value_and_gradient(weight):
            return mx.value_and_grad(lambda w: chunked_cross_entropy(arrays[0], w, arrays[2], targets, real, 0.1))(
                weight
            )

        plain, compiled = value_and_gradient(arrays[1]), mx.compile(value_and_gradient)(arrays[1])
        assert near(list(plain), list(compiled), tolerance(1e-5))

    def test_low_precision_adds_up_in_float32(self, monkeypatch):
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 1)
        (_, exact), (_, gradients) = self.both(0.1, dtype=mx.bfloat16)
        assert [array.dtype for array in gradients] == [mx.bfloat16] * 3
        for found, wanted in zip(gradients, exact, strict=True):
            error = mx.abs(found.astype(mx.float32) - wanted.astype(mx.float32)).max() / mx.abs(wanted).max()
            assert error.item() < 0.02

    @pytest.mark.cpu
    @pytest.mark.slow
    def test_a_large_vocabulary_needs_little_memory(self):
        """The logits of 2,048 tokens over 250,000 pieces alone would be 2 GB; see benchmarks/train.py for more."""
        program = """
import conftest
import mlx.core as mx
from mlx_transformer.training.losses import chunked_cross_entropy
mx.set_default_device(mx.cpu)
hidden, weight = mx.random.normal((2048, 16)), mx.random.normal((250_000, 16))
targets, real = mx.random.randint(0, 250_000, (2048,)), mx.ones(2048)
mx.eval(hidden, weight, targets, real)
before = mx.get_active_memory()
mx.reset_peak_memory()
mx.eval(mx.value_and_grad(lambda w: chunked_cross_entropy(hidden, w, None, targets, real, 0.1))(weight))
print(mx.get_peak_memory() - before)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True, timeout=500, check=True
        )
        assert 0 < int(done.stdout) < 0.9e9

    def test_large_logits_do_not_overflow(self, tolerance):
        rng = np.random.default_rng(0)
        hidden_states, weight = (
            mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((5, 16), (50, 16))
        )
        targets, real = mx.array(rng.integers(0, 50, 5)), mx.ones(5)

        def ours(weight):
            return chunked_cross_entropy(100 * hidden_states, weight, None, targets, real, 0.1)

        def plain(weight):
            return token_losses(100 * hidden_states @ weight.T, targets, 0.1).sum()

        (value, gradient), (expected, wanted) = (mx.value_and_grad(call)(weight) for call in (ours, plain))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance(1e-5))
        assert near([gradient], [wanted], tolerance(1e-4))

    def test_many_pieces_add_up_in_float32(self, monkeypatch):
        """In bfloat16 a sum of equal numbers stops growing at some hundreds of them."""
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 2)
        hidden_states, weight, bias = (
            mx.ones((600, 2), mx.bfloat16),
            mx.zeros((2, 2), mx.bfloat16),
            mx.zeros(2, mx.bfloat16),
        )
        targets, real = mx.zeros(600, mx.int32), mx.ones(600)
        call = mx.value_and_grad(
            lambda *output: chunked_cross_entropy(hidden_states, *output, targets, real), argnums=(0, 1)
        )
        _, gradients = call(weight, bias)
        for gradient in gradients:  # each token's is the probability, 1/2, less 1 for the target
            assert mx.abs(gradient).astype(mx.float32).min().item() == pytest.approx(300, rel=0.01)

    def test_pieces_hold_so_many_logits(self):
        assert [len(range(2**20)[piece]) for piece in chunk_sizes(2**17, 2**10)] == [2**17]
        assert {len(range(2**20)[piece]) for piece in chunk_sizes(2**18, 2**10)} == {2**14}
        assert list(chunk_sizes(0, 10)) == []


class TestBatchLoss:
    def test_it_is_the_sum_over_real_tokens(self, tolerance):
        model, batch = Transformer(MODEL), make_batch()
        model.eval()
        wanted = mx.array(batch.target[:, 1:])
        losses = np.array(token_losses(model(mx.array(batch.source), mx.array(batch.target[:, :-1])), wanted, 0.1))
        loss, tokens = batch_loss(model, mx.array(batch.source), mx.array(batch.target), 0.1)
        real = losses[batch.target[:, 1:] != 0]
        assert (loss.item(), tokens.item()) == (pytest.approx(real.sum(), rel=tolerance(1e-5)), len(real))

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
        assert padded_loss.item() == pytest.approx(loss.item(), rel=tolerance(1e-6))
        assert near(gradients, padded_gradients, tolerance(1e-5))

    def test_a_batch_without_a_token_has_no_loss(self):
        batch = Batch(np.array([[1, 0]], np.int32), np.zeros((1, 3), np.int32))
        loss, gradients = gradients_of(Transformer(MODEL), batch)
        assert loss.item() == 0
        assert all(mx.isfinite(array).all().item() for array in arrays_of(gradients).values())

    def test_padding_is_what_the_model_says(self):
        mx.random.seed(0)
        model = Transformer(dataclasses.replace(MODEL, pad_id=3, dropout=0.0))
        batch = make_batch()
        ids = [mx.where(mx.array(side) == 0, 3, mx.where(mx.array(side) == 3, 0, mx.array(side))) for side in batch]
        _, tokens = batch_loss(model, *ids, 0.1)
        assert tokens.item() == (batch.target[:, 1:] != 0).sum()
