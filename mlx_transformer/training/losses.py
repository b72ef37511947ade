"""Cross entropy of target tokens, with label smoothing and without padding."""

import math
from collections.abc import Iterator
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_transformer.model.dense_weights import dense_weight, row_slices
from mlx_transformer.model.token_ids import check_token_ids
from mlx_transformer.model.transformer import Transformer

MAX_UNCHUNKED_LOGITS = 2**27  # logits computed at once, half a gigabyte
CHUNK_LOGITS = 2**24  # logits per chunk, if there are more


def token_losses(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """Return the cross entropy at each position, in nats, as float32 (...).

    Args:
        logits: (..., vocab).
        targets: Token ids, int32 (...).
        label_smoothing: Probability mass of the target that is spread evenly over the vocabulary (Szegedy et al. 2016,
            section 7).
    """
    logits = logits.astype(mx.float32)
    losses = mx.fast.cross_entropy(logits, targets)
    if not label_smoothing:
        return losses
    correct = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return losses + label_smoothing * (correct - logits.mean(axis=-1))


def batch_loss(
    model: Transformer, source: mx.array, target: mx.array, label_smoothing: float
) -> tuple[mx.array, mx.array]:
    """Return the summed loss of a batch and its number of target tokens, both without padding.

    Args:
        model: The model.
        source: Token ids, int32 (batch, source_length), padded on the right.
        target: Token ids after the start token, int32 (batch, target_length + 1), padded on the right.
        label_smoothing: See `token_losses`.
    """
    labels = target[:, 1:].flatten()
    mask = (labels != model.config.pad_id).astype(mx.float32)
    hidden_states = model.hidden_states(source, target[:, :-1]).flatten(0, 1)
    if _has_frozen_output(model):
        loss = frozen_cross_entropy(
            hidden_states, model.output_module, model.output_layer[1], labels, mask, label_smoothing
        )
    else:
        loss = chunked_cross_entropy(hidden_states, *model.output_layer, labels, mask, label_smoothing)
    return loss, mask.sum()


def _has_frozen_output(model: Transformer) -> bool:
    is_frozen = not model.output_module.trainable_parameters()
    return is_frozen and "output_bias" not in model.trainable_parameters()


def frozen_cross_entropy(
    hidden_states: mx.array,
    layer: nn.Module,
    bias: mx.array | None,
    targets: mx.array,
    mask: mx.array,
    label_smoothing: float = 0.0,
) -> mx.array:
    """Return what `chunked_cross_entropy` does, for an output layer that is not trained and may be quantised.

    The weight is read once, in slices of rows, so that neither all logits nor the dequantised weight is in memory. The
    gradient needs the mean of its rows, weighted by the softmax of the logits, which is computed online as attention is
    (Dao et al. 2022).

    Args:
        hidden_states: Inputs of the output layer, (tokens, dims).
        layer: A linear layer or an embedding, with a weight of (vocab, dims).
        bias: Bias of the output layer, (vocab,), if it has one.
        targets: Token ids, int32 (tokens,).
        mask: 1 for tokens, 0 for padding, float32 (tokens,).
        label_smoothing: See `token_losses`.
    """

    @mx.custom_function
    def loss(hidden_states: mx.array) -> tuple[mx.array, mx.array]:
        losses, gradients = _frozen_losses(hidden_states, layer, bias, targets, label_smoothing)
        return (losses * mask).sum(), gradients * mask[:, None]

    @loss.vjp
    def loss_vjp(primal: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]) -> mx.array:
        return (cotangents[0] * outputs[1]).astype(primal.dtype)

    return cast(tuple[mx.array, ...], loss(hidden_states))[0]


def _frozen_losses(
    hidden_states: mx.array, layer: nn.Module, bias: mx.array | None, targets: mx.array, smoothing: float
) -> tuple[mx.array, mx.array]:
    """Return losses, (tokens,), and their gradients with respect to the hidden states, (tokens, dims), in float32."""
    vocab, dtype = len(layer.weight), hidden_states.dtype
    largest, sums = mx.full((len(targets), 1), -math.inf), mx.zeros((len(targets), 1))
    weighted_rows, row_sum = mx.zeros(hidden_states.shape), mx.zeros(hidden_states.shape[-1])
    for rows in row_slices(vocab, max(hidden_states.shape)):
        # Each slice depends on the previous one, so that only one of them is in memory.
        weight = dense_weight(layer, rows, after=[hidden_states, largest, sums, weighted_rows, row_sum]).astype(dtype)
        logits = _project(hidden_states, weight, None if bias is None else bias[rows])
        previous, largest = largest, mx.maximum(largest, logits.max(axis=-1, keepdims=True))
        rescale, exponentials = mx.exp(previous - largest), mx.exp(logits - largest)
        sums = rescale * sums + exponentials.sum(axis=-1, keepdims=True)
        weighted_rows = rescale * weighted_rows + exponentials.astype(dtype) @ weight
        row_sum = row_sum + weight.astype(mx.float32).sum(axis=0)
    mean_bias, target_bias = (0.0, 0.0) if bias is None else (bias.astype(mx.float32).mean(), bias[targets])
    target_rows, mean_row = dense_weight(layer, targets).astype(mx.float32), row_sum / vocab
    smoothed_rows = (1 - smoothing) * target_rows + smoothing * mean_row
    smoothed_logits = (
        (hidden_states * smoothed_rows).sum(axis=-1) + (1 - smoothing) * target_bias + smoothing * mean_bias
    )
    losses = (largest + mx.log(sums)).squeeze(-1) - smoothed_logits
    return losses, weighted_rows / sums - smoothed_rows


def loss(model: Transformer, source: mx.array, target: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """Return the mean cross entropy of a batch per target token, in nats, without padding.

    `nn.value_and_grad(model, mt.loss)` also returns the gradients of the model's parameters.

    Args:
        model: The model.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        target: The start token and the token ids of the targets, int32 (batch, target_length + 1), padded likewise.
        label_smoothing: Probability mass of each target token that is spread evenly over the vocabulary.

    Raises:
        ValueError: If the arrays are not token ids of the model, `target` has no token after the start token, or
            `label_smoothing` is not at least 0 and below 1.
    """
    check_token_ids("target", target, model.config.target_vocab_size)
    if target.shape[1] < 2:
        raise ValueError("target must have at least one token after the start token: add the ids of the targets.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}.")
    total, tokens = batch_loss(model, source, target, label_smoothing)
    return total / mx.maximum(tokens, 1)


def chunked_cross_entropy(
    hidden_states: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    targets: mx.array,
    mask: mx.array,
    label_smoothing: float = 0.0,
) -> mx.array:
    """Return the sum of `token_losses` of an output layer, without holding all its logits in memory.

    The gradients are computed together with the loss, chunk by chunk.

    Args:
        hidden_states: Inputs of the output layer, (tokens, dims).
        weight: Weight of the output layer, (vocab, dims).
        bias: Bias of the output layer, (vocab,), if it has one.
        targets: Token ids, int32 (tokens,).
        mask: 1 for tokens, 0 for padding, float32 (tokens,).
        label_smoothing: See `token_losses`.
    """

    @mx.custom_function
    def total_loss(hidden_states: mx.array, *output: mx.array) -> tuple[mx.array, ...]:
        total = mx.zeros(())
        hidden_gradients: list[mx.array] = []
        output_gradients: list[mx.array] = []
        mean_output = [array.astype(mx.float32).mean(axis=0) for array in output]
        for chunk in chunk_slices(len(targets), len(weight)):
            # Each chunk depends on the previous one, so that only one chunk of logits is in memory.
            (inputs,) = mx.depends([hidden_states[chunk]], [total, *hidden_gradients[-1:], *output_gradients])
            logits, mean = (_project(inputs, *layer) for layer in (output, mean_output))
            losses, gradient = _losses_and_gradients(logits, targets[chunk, None], mean[:, None], label_smoothing)
            total = total + (losses * mask[chunk]).sum()
            gradient = (gradient * mask[chunk, None]).astype(hidden_states.dtype)
            hidden_gradients.append(gradient @ output[0])
            new = [(gradient.T @ inputs).astype(mx.float32), gradient.astype(mx.float32).sum(axis=0)][: len(output)]
            output_gradients = list(map(mx.add, output_gradients, new)) if output_gradients else new
        return total, mx.concatenate(hidden_gradients), *output_gradients

    @total_loss.vjp
    def total_loss_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        return tuple(
            (cotangents[0] * gradient).astype(array.dtype) for gradient, array in zip(outputs[1:], primals, strict=True)
        )

    results = cast(tuple[mx.array, ...], total_loss(hidden_states, weight, *([] if bias is None else [bias])))
    return results[0]


def chunk_slices(tokens: int, vocab: int) -> Iterator[slice]:
    """Split a number of tokens into chunks whose logits fit in memory."""
    size = tokens if tokens * vocab <= MAX_UNCHUNKED_LOGITS else max(CHUNK_LOGITS // vocab, 1)
    return (slice(start, start + size) for start in range(0, tokens, max(size, 1)))


def _project(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """Apply a linear layer, with outputs in float32: (tokens, dims) -> (tokens, outputs), or (tokens,) for one row."""
    product = (x @ weight.T.astype(x.dtype)).astype(mx.float32)
    return product if bias is None else product + bias.astype(mx.float32)


def _losses_and_gradients(
    logits: mx.array, targets: mx.array, mean: mx.array, smoothing: float
) -> tuple[mx.array, mx.array]:
    """Return losses, (tokens,), and their gradients with respect to the logits, (tokens, vocab).

    `targets` and `mean`, the mean of each token's logits, have the shape (tokens, 1).
    """
    vocab = logits.shape[-1]
    correct = mx.take_along_axis(logits, targets, axis=-1)
    if mx.default_device() == mx.gpu:
        normaliser = mx.fast.cross_entropy(logits, targets.squeeze(-1))[:, None] + correct
        probabilities = mx.exp(logits - normaliser)
    else:  # on the CPU exponentials dominate: compute them once
        largest = logits.max(axis=-1, keepdims=True)
        exponentials = mx.exp(logits - largest)
        sums = exponentials.sum(axis=-1, keepdims=True)
        normaliser, probabilities = largest + mx.log(sums), exponentials / sums
    losses = normaliser - (1 - smoothing) * correct - smoothing * mean
    smoothed_labels = mx.where(mx.arange(vocab) == targets, 1 - smoothing + smoothing / vocab, smoothing / vocab)
    return losses.squeeze(-1), probabilities - smoothed_labels
