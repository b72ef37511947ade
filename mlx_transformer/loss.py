"""What training minimises: the cross entropy of target tokens, with label smoothing, without padding."""

from typing import cast

import mlx.core as mx

from mlx_transformer.model import Transformer


@mx.custom_function
def _log_sum_exp(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The logarithm of the sum of exponentials over the last axis, and what its gradient can use again."""
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = mx.exp(logits - largest)
    sums = exponentials.sum(axis=-1, keepdims=True)
    return largest + mx.log(sums), exponentials, sums


@_log_sum_exp.vjp
def _log_sum_exp_vjp(logits: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]) -> mx.array:
    """The softmax, from exponentials computed once: over a large vocabulary they are much of the work."""
    _, exponentials, sums = outputs
    return cotangents[0] / sums * exponentials


def token_losses(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """Cross entropy at each position, in float32, in nats.

    Args:
        logits: (..., vocab).
        targets: Token ids, int32 (...).
        label_smoothing: Share of the target's probability that is spread evenly over the vocabulary
            (Szegedy et al. 2016, section 7).
    """
    logits = logits.astype(mx.float32)
    correct = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    expected = (1 - label_smoothing) * correct
    if label_smoothing:
        expected = expected + label_smoothing * logits.mean(axis=-1)
    normaliser, *_ = cast(tuple[mx.array, ...], _log_sum_exp(logits))
    return normaliser.squeeze(-1) - expected


def batch_loss(model: Transformer, source: mx.array, target: mx.array, label_smoothing: float) -> mx.array:
    """Mean loss of the real tokens of a batch; padding counts neither in the sum nor in the divisor."""
    wanted = target[:, 1:]
    real = wanted != model.config.pad_id
    losses = token_losses(model(source, target[:, :-1]), wanted, label_smoothing)
    return (losses * real).sum() / mx.maximum(real.sum(), 1)
