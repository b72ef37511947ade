"""What training minimises: the cross entropy of target tokens, with label smoothing, without padding."""

from collections.abc import Iterator
from typing import cast

import mlx.core as mx

from mlx_transformer.model.transformer import Transformer

MAX_UNCHUNKED_LOGITS = 2**27  # so many logits, half a gigabyte, are computed at once
CHUNK_LOGITS = 2**24  # where there are more, so many at a time, and the next only when these are done with


def token_losses(logits: mx.array, targets: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """Cross entropy at each position, in float32, in nats.

    Args:
        logits: (..., vocab).
        targets: Token ids, int32 (...).
        label_smoothing: Share of the target's probability that is spread evenly over the vocabulary
            (Szegedy et al. 2016, section 7).
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
    """Sum of the losses of a batch's tokens, and their number; padding counts in neither.

    Args:
        model: The model.
        source: Token ids, int32 (batch, source_length), padded on the right.
        target: Token ids with the decoder's first input, int32 (batch, target_length + 1), padded likewise.
        label_smoothing: See `token_losses`.
    """
    labels = target[:, 1:].flatten()
    mask = (labels != model.config.pad_id).astype(mx.float32)
    hidden_states = model.hidden_states(source, target[:, :-1]).flatten(0, 1)
    return chunked_cross_entropy(hidden_states, *model.output_layer, labels, mask, label_smoothing), mask.sum()


def chunked_cross_entropy(
    hidden_states: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    targets: mx.array,
    mask: mx.array,
    label_smoothing: float = 0.0,
) -> mx.array:
    """The sum of `token_losses` of an output layer, whose logits are never all in memory.

    The gradient is computed with the loss, while the logits are there.

    Args:
        hidden_states: What the output layer reads, (tokens, dims).
        weight: Its matrix, (vocab, dims).
        bias: Its bias, (vocab,), if it has one.
        targets: Token ids, int32 (tokens,).
        mask: 1 for tokens that count, 0 for padding, float32 (tokens,).
        label_smoothing: See `token_losses`.
    """

    @mx.custom_function
    def loss(hidden_states: mx.array, *output: mx.array) -> tuple[mx.array, ...]:
        total = mx.zeros(())
        rows: list[mx.array] = []
        sums: list[mx.array] = []
        center = [array.astype(mx.float32).mean(axis=0) for array in output]
        for piece in chunk_sizes(len(targets), len(weight)):
            # Wait for the piece before, or the logits of several would be in memory.
            (read,) = mx.depends([hidden_states[piece]], [total, *rows[-1:], *sums])
            logits, mean = (_project(read, *layer) for layer in (output, center))
            losses, slopes = _losses_and_gradients(logits, targets[piece, None], mean[:, None], label_smoothing)
            total = total + (losses * mask[piece]).sum()
            slopes = (slopes * mask[piece, None]).astype(hidden_states.dtype)
            rows.append(slopes @ output[0])
            found = [(slopes.T @ read).astype(mx.float32), slopes.astype(mx.float32).sum(axis=0)][: len(output)]
            sums = [before + new for before, new in zip(sums, found, strict=True)] if sums else found
        return total, mx.concatenate(rows), *sums

    @loss.vjp
    def loss_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        return tuple(
            (cotangents[0] * gradient).astype(array.dtype) for gradient, array in zip(outputs[1:], primals, strict=True)
        )

    found = cast(tuple[mx.array, ...], loss(hidden_states, weight, *([] if bias is None else [bias])))
    return found[0]


def chunk_sizes(tokens: int, vocab: int) -> Iterator[slice]:
    """Cut tokens into pieces whose logits fit in memory."""
    size = tokens if tokens * vocab <= MAX_UNCHUNKED_LOGITS else max(CHUNK_LOGITS // vocab, 1)
    return (slice(first, first + size) for first in range(0, tokens, max(size, 1)))


def _project(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """A linear layer, in float32: (tokens, dims) -> (tokens, outputs), or (tokens,) for a weight of one row."""
    product = (x @ weight.T.astype(x.dtype)).astype(mx.float32)
    return product if bias is None else product + bias.astype(mx.float32)


def _losses_and_gradients(
    logits: mx.array, targets: mx.array, mean: mx.array, smoothing: float
) -> tuple[mx.array, mx.array]:
    """The losses, (tokens,), of targets, (tokens, 1), and their derivatives by the logits, (tokens, vocab).

    `mean`, (tokens, 1), is that of the logits.
    """
    vocab = logits.shape[-1]
    correct = mx.take_along_axis(logits, targets, axis=-1)
    if mx.default_device() == mx.gpu:
        normaliser = mx.fast.cross_entropy(logits, targets.squeeze(-1))[:, None] + correct
        probabilities = mx.exp(logits - normaliser)
    else:  # exponentials are most of the work there: compute them once
        largest = logits.max(axis=-1, keepdims=True)
        exponentials = mx.exp(logits - largest)
        sums = exponentials.sum(axis=-1, keepdims=True)
        normaliser, probabilities = largest + mx.log(sums), exponentials / sums
    losses = normaliser - (1 - smoothing) * correct - smoothing * mean
    smoothed_labels = mx.where(mx.arange(vocab) == targets, 1 - smoothing + smoothing / vocab, smoothing / vocab)
    return losses.squeeze(-1), probabilities - smoothed_labels
