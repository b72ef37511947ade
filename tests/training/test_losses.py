"""Cross entropy with label smoothing, and the chunked loss of an output layer."""

import dataclasses
import math
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.paths import TESTS
from support.training_cases import MODEL, all_close, flatten, make_batch

from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model import dense_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import losses as losses_module
from mlx_transformer.training.losses import (
    batch_loss,
    chunk_slices,
    chunked_cross_entropy,
    frozen_cross_entropy,
    token_losses,
)


def loss_and_gradients(model, batch, smoothing=0.1):
    value_and_grad = nn.value_and_grad(model, lambda *arrays: batch_loss(*arrays)[0])
    return value_and_grad(model, mx.array(batch.source), mx.array(batch.target), smoothing)


class TestTokenLosses:
    def logits(self, scale=3.0):
        rng = np.random.default_rng(0)
        return rng.standard_normal((3, 4, 11)).astype(np.float32) * scale, rng.integers(0, 11, (3, 4))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
    def test_cross_entropy_with_label_smoothing_matches_numpy(self, smoothing, tolerance):
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
    def test_values_and_gradients_match_torch(self, smoothing, tolerance):
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

    def test_losses_are_float32_for_low_precision_logits(self):
        logits, targets = self.logits()
        losses = token_losses(mx.array(logits).astype(mx.float16), mx.array(targets))
        assert losses.dtype == mx.float32


class TestChunkedCrossEntropy:
    """The reference is the loss of all logits at once, differentiated by MLX."""

    def inputs(self, dtype=mx.float32):
        rng = np.random.default_rng(0)
        hidden_states, weight, bias = (
            mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype) for shape in ((37, 16), (50, 16), 50)
        )
        return [hidden_states, weight, bias], mx.array(rng.integers(0, 50, 37)), mx.array((np.arange(37) % 5 > 0) * 1.0)

    def compute_both(self, smoothing, bias=True, dtype=mx.float32):
        arrays, targets, mask = self.inputs(dtype)
        arrays = arrays if bias else arrays[:2]

        def reference(hidden_states, weight, bias=None):
            logits = hidden_states.astype(mx.float32) @ weight.astype(mx.float32).T
            logits = logits if bias is None else logits + bias.astype(mx.float32)
            return 3 * (token_losses(logits, targets, smoothing) * mask).sum()

        def chunked(hidden_states, weight, bias=None):
            return 3 * chunked_cross_entropy(hidden_states, weight, bias, targets, mask, smoothing)

        argnums = tuple(range(len(arrays)))
        return [mx.value_and_grad(loss, argnums=argnums)(*arrays) for loss in (reference, chunked)]

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("chunk", [None, 500, 1])
    def test_chunked_loss_and_gradients_match_the_unchunked_loss(self, smoothing, bias, chunk, monkeypatch, tolerance):
        if chunk is not None:
            monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
            monkeypatch.setattr(losses_module, "CHUNK_LOGITS", chunk)
            assert len(list(chunk_slices(37, 50))) == {500: 4, 1: 37}[chunk]
        (expected, expected_gradients), (value, gradients) = self.compute_both(smoothing, bias)
        assert value.item() == pytest.approx(expected.item(), rel=tolerance(1e-6))
        assert all_close(list(gradients), list(expected_gradients), tolerance(1e-5))

    def test_compiled_and_uncompiled_losses_agree(self, monkeypatch, tolerance):
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 500)
        arrays, targets, mask = self.inputs()

        def value_and_gradient(weight):
            return mx.value_and_grad(lambda w: chunked_cross_entropy(arrays[0], w, arrays[2], targets, mask, 0.1))(
                weight
            )

        uncompiled, compiled = value_and_gradient(arrays[1]), mx.compile(value_and_gradient)(arrays[1])
        assert all_close(list(uncompiled), list(compiled), tolerance(1e-5))

    def test_low_precision_gradients_are_summed_in_float32(self, monkeypatch):
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 1)
        (_, expected_gradients), (_, gradients) = self.compute_both(0.1, dtype=mx.bfloat16)
        assert [array.dtype for array in gradients] == [mx.bfloat16] * 3
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            error = mx.abs(gradient.astype(mx.float32) - expected.astype(mx.float32)).max() / mx.abs(expected).max()
            assert error.item() < 0.02

    @pytest.mark.cpu
    @pytest.mark.slow
    def test_a_large_vocabulary_needs_little_memory(self):
        """All logits of 2,048 tokens and a vocabulary of 250,000 would be 2 GB; benchmarks/train.py measures more."""
        program = """
import conftest
import mlx.core as mx
from mlx_transformer.training.losses import chunked_cross_entropy
mx.set_default_device(mx.cpu)
hidden, weight = mx.random.normal((2048, 16)), mx.random.normal((250_000, 16))
targets, mask = mx.random.randint(0, 250_000, (2048,)), mx.ones(2048)
mx.eval(hidden, weight, targets, mask)
before = mx.get_active_memory()
mx.reset_peak_memory()
mx.eval(mx.value_and_grad(lambda w: chunked_cross_entropy(hidden, w, None, targets, mask, 0.1))(weight))
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
        targets, mask = mx.array(rng.integers(0, 50, 5)), mx.ones(5)

        def chunked(weight):
            return chunked_cross_entropy(100 * hidden_states, weight, None, targets, mask, 0.1)

        def reference(weight):
            return token_losses(100 * hidden_states @ weight.T, targets, 0.1).sum()

        (value, gradient), (expected, expected_gradient) = (
            mx.value_and_grad(loss)(weight) for loss in (chunked, reference)
        )
        assert value.item() == pytest.approx(expected.item(), rel=tolerance(1e-5))
        assert all_close([gradient], [expected_gradient], tolerance(1e-4))

    def test_gradients_of_many_chunks_are_summed_in_float32(self, monkeypatch):
        """In bfloat16 a sum of equal numbers stops growing after some hundreds of them."""
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", 2)
        hidden_states, weight, bias = (
            mx.ones((600, 2), mx.bfloat16),
            mx.zeros((2, 2), mx.bfloat16),
            mx.zeros(2, mx.bfloat16),
        )
        targets, mask = mx.zeros(600, mx.int32), mx.ones(600)
        call = mx.value_and_grad(
            lambda *output: chunked_cross_entropy(hidden_states, *output, targets, mask), argnums=(0, 1)
        )
        _, gradients = call(weight, bias)
        for gradient in gradients:  # of each token: the probability, 1/2, minus 1 for the target
            assert mx.abs(gradient).astype(mx.float32).min().item() == pytest.approx(300, rel=0.01)

    def test_chunk_slices_limit_the_number_of_logits(self):
        assert [len(range(2**20)[chunk]) for chunk in chunk_slices(2**17, 2**10)] == [2**17]
        assert {len(range(2**20)[chunk]) for chunk in chunk_slices(2**18, 2**10)} == {2**14}
        assert list(chunk_slices(0, 10)) == []


class TestFrozenCrossEntropy:
    """The reference is the loss of all logits at once, differentiated by MLX."""

    def layer(self, vocab, dims, bits=None, kind=nn.Embedding):
        mx.random.seed(0)
        layer = kind(vocab, dims) if kind is nn.Embedding else kind(dims, vocab)
        layer.weight = mx.random.normal((vocab, dims))
        return layer.to_quantized(32, bits) if bits else layer

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("kind", [nn.Embedding, nn.Linear])
    @pytest.mark.parametrize("bits", [None, 8, 4])
    @pytest.mark.parametrize("slice_size", [2**23, 37 * 20, 1])
    def test_loss_and_gradient_match_all_logits_at_once(
        self, smoothing, kind, bits, slice_size, monkeypatch, tolerance
    ):
        monkeypatch.setattr(dense_weights, "SLICE_SIZE", slice_size)
        layer, hidden_states = self.layer(50, 32, bits, kind), mx.random.normal((37, 32))
        targets, mask = mx.arange(37) % 50, (mx.arange(37) % 5 > 0) * 1.0
        bias = mx.random.normal((50,))

        def frozen(hidden_states):
            return 3 * frozen_cross_entropy(hidden_states, layer, bias, targets, mask, smoothing)

        def reference(hidden_states):
            logits = hidden_states @ dense_weights.dense_weight(layer).T + bias
            return 3 * (token_losses(logits, targets, smoothing) * mask).sum()

        expected, expected_gradient = mx.value_and_grad(reference)(hidden_states)
        for function in (mx.value_and_grad(frozen), mx.compile(mx.value_and_grad(frozen))):
            value, gradient = function(hidden_states)
            assert value.item() == pytest.approx(expected.item(), rel=tolerance(1e-6))
            assert all_close(gradient, expected_gradient, tolerance(1e-5))

    def test_large_logits_do_not_overflow(self):
        layer, hidden_states = self.layer(50, 32), 300 * mx.random.normal((5, 32))
        value, gradient = mx.value_and_grad(
            lambda x: frozen_cross_entropy(x, layer, None, mx.arange(5), mx.ones(5), 0.1)
        )(hidden_states)
        assert math.isfinite(value.item()) and mx.isfinite(gradient).all().item()

    @pytest.mark.cpu
    @pytest.mark.parametrize("bits", [None, 4])
    def test_neither_all_logits_nor_a_dequantised_weight_is_in_memory(self, bits, monkeypatch):
        monkeypatch.setattr(dense_weights, "SLICE_SIZE", 2**16)
        layer, hidden_states = self.layer(2**15, 64, bits), mx.random.normal((64, 64))
        mx.eval(layer.parameters(), hidden_states)
        function = mx.compile(
            mx.value_and_grad(lambda x: frozen_cross_entropy(x, layer, None, mx.arange(64), mx.ones(64), 0.1))
        )
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(function(hidden_states))
        assert mx.get_peak_memory() - before < 2**15 * 64 * 4 / 2  # either has 2**15 * 64 numbers


class TestBatchLoss:
    def test_loss_is_summed_over_tokens_without_padding(self, tolerance):
        model, batch = Transformer(MODEL), make_batch()
        model.eval()
        labels = mx.array(batch.target[:, 1:])
        losses = np.array(token_losses(model(mx.array(batch.source), mx.array(batch.target[:, :-1])), labels, 0.1))
        loss, tokens = batch_loss(model, mx.array(batch.source), mx.array(batch.target), 0.1)
        losses = losses[batch.target[:, 1:] != 0]
        assert (loss.item(), tokens.item()) == (pytest.approx(losses.sum(), rel=tolerance(1e-5)), len(losses))

    @pytest.mark.parametrize("change", ["columns", "rows"])
    def test_padding_changes_neither_loss_nor_gradients(self, change, tolerance):
        model, batch = Transformer(MODEL), make_batch()
        model.eval()
        if change == "columns":
            padded = Batch(*(np.pad(side, ((0, 0), (0, 3))) for side in batch))
        else:
            padded = Batch(*(np.pad(side, ((0, 2), (0, 0))) for side in batch))
            padded.source[4:, 0] = Tokenizer.eos_id  # as in batches that are filled up
        loss, gradients = loss_and_gradients(model, batch)
        padded_loss, padded_gradients = loss_and_gradients(model, padded)
        assert padded_loss.item() == pytest.approx(loss.item(), rel=tolerance(1e-6))
        assert all_close(gradients, padded_gradients, tolerance(1e-5))

    def test_a_batch_without_target_tokens_has_zero_loss(self):
        batch = Batch(np.array([[1, 0]], np.int32), np.zeros((1, 3), np.int32))
        loss, gradients = loss_and_gradients(Transformer(MODEL), batch)
        assert loss.item() == 0
        assert all(mx.isfinite(array).all().item() for array in flatten(gradients).values())

    def test_the_padding_id_of_the_model_is_used(self):
        mx.random.seed(0)
        model = Transformer(dataclasses.replace(MODEL, pad_id=3, dropout=0.0))
        batch = make_batch()
        ids = [mx.where(mx.array(side) == 0, 3, mx.where(mx.array(side) == 3, 0, mx.array(side))) for side in batch]
        _, tokens = batch_loss(model, *ids, 0.1)
        assert tokens.item() == (batch.target[:, 1:] != 0).sum()


class TestLoss:
    def test_it_is_the_mean_over_target_tokens(self, tolerance):
        model, batch = Transformer(MODEL).eval(), make_batch()
        source, target = mx.array(batch.source), mx.array(batch.target)
        inputs, labels = target[:, :-1], target[:, 1:]
        for smoothing in (0.0, 0.1):
            losses = nn.losses.cross_entropy(model(source, inputs), labels, label_smoothing=smoothing)
            mean = (losses * (labels != 0)).sum() / (labels != 0).sum()
            assert losses_module.loss(model, source, target, smoothing).item() == pytest.approx(
                mean.item(), rel=tolerance(1e-5)
            )

    def test_it_is_zero_without_target_tokens(self):
        assert losses_module.loss(Transformer(MODEL), mx.array([[1, 0]]), mx.zeros((1, 3), mx.int32)).item() == 0

    @pytest.mark.parametrize(
        ("target", "smoothing", "message"),
        [
            (mx.array([2, 3]), 0.1, "target must have two axes, .rows, length., not the shape .2,.: add an axis"),
            ([[2, 3]], 0.1, "target must be token ids in an mlx.core.array, not list"),
            (mx.array([[2, 20]]), 0.1, "target must be token ids from 0 to 19, not 20"),
            (mx.array([[2]]), 0.1, "target must have at least one token after the start token"),
            (mx.array([[2, 3]]), 1, "label_smoothing must be at least 0 and below 1, not 1"),
        ],
    )
    def test_bad_arguments_are_refused(self, target, smoothing, message):
        with pytest.raises(ValueError, match=message):
            losses_module.loss(Transformer(MODEL), mx.array([[3, 1]]), target, smoothing)
