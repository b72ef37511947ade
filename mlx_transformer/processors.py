"""What a search may change in the log-probabilities of the next token, with the rules and the order of transformers 5.

Everything is array code, for it runs inside the compiled step: histories have a fixed capacity, of which the first
`length` tokens are filled, the start token among them.
"""

import mlx.core as mx
import numpy as np

from mlx_transformer.config import ModelConfig, SearchConfig

NEVER = -float("inf")


def process(
    logprobs: mx.array,
    search: SearchConfig,
    config: ModelConfig,
    history: mx.array,
    length: mx.array,
    limits: mx.array,
) -> mx.array:
    """Log-probabilities of the next token after all rules of a search.

    Args:
        logprobs: (rows, vocab).
        search: The rules.
        config: The model's; its end token may have to wait, its padding is never generated.
        history: The start token and the tokens generated so far, int32 (rows, capacity + 1).
        length: Number of tokens in the history, an int32 scalar.
        limits: Most tokens of each row, the start token not counted, (rows,).
    """
    if search.repetition_penalty != 1 and search.beam_size > 1:
        logprobs = penalize(logprobs, search.repetition_penalty, history, length)
    if search.no_repeat_ngram_size:
        logprobs = forbid(logprobs, *repeated(history, length, search.no_repeat_ngram_size))
    for size in sorted({len(word) for word in search.bad_words}):
        words = mx.array([word for word in search.bad_words if len(word) == size])
        logprobs = forbid(logprobs, *completed(history, length, words))
    tokens = mx.arange(logprobs.shape[-1])
    logprobs = mx.where((tokens == config.eos_id) & (length < search.min_tokens), NEVER, logprobs)
    if search.forced_bos_id is not None:
        logprobs = mx.where(length == 1, forced(tokens, search.forced_bos_id), logprobs)
    if search.forced_eos_id is not None:
        logprobs = mx.where((length == limits)[:, None], forced(tokens, search.forced_eos_id), logprobs)
    suppressed = np.isin(np.arange(logprobs.shape[-1]), [config.pad_id, *search.suppress_ids])
    logprobs = mx.where(mx.array(suppressed), NEVER, logprobs)
    if search.renormalize:
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    return logprobs


def forced(tokens: mx.array, token: int) -> mx.array:
    """Scores that leave one token."""
    return mx.where(tokens == token, 0.0, NEVER)


def penalize(scores: mx.array, penalty: float, history: mx.array, length: mx.array) -> mx.array:
    """Worse scores for the tokens of the history, each once (Keskar et al. 2019, section 4.1).

    Args:
        scores: Log-probabilities or logits, (rows, vocab).
        penalty: Negative scores are multiplied by it, others divided.
        history: As in `process`.
        length: As in `process`.
    """
    filled = mx.arange(history.shape[1]) < length
    worse = mx.where(scores < 0, scores * penalty, scores / penalty)
    return mx.where(chosen(scores, history, mx.broadcast_to(filled, history.shape)), worse, scores)


def forbid(logprobs: mx.array, tokens: mx.array, wanted: mx.array) -> mx.array:
    """Without `tokens`, (rows, number), where `wanted`, bool of the same shape."""
    return mx.where(chosen(logprobs, tokens, wanted), NEVER, logprobs)


def chosen(logprobs: mx.array, tokens: mx.array, wanted: mx.array) -> mx.array:
    """True at the `wanted` ones of `tokens`, bool (rows, vocab)."""
    rows, vocab = logprobs.shape
    # Those that are not wanted mark a column past the vocabulary.
    marks = mx.put_along_axis(
        mx.zeros((rows, vocab + 1), mx.bool_), mx.where(wanted, tokens, vocab), mx.array(True), axis=1
    )
    return marks[:, :vocab]


def last(history: mx.array, length: mx.array, count: int) -> mx.array:
    """The newest `count` tokens, (rows, count)."""
    return mx.take(history, mx.maximum(length - count, 0) + mx.arange(count), axis=1)


def repeated(history: mx.array, length: mx.array, size: int) -> tuple[mx.array, mx.array]:
    """The tokens that followed the newest size - 1 ones wherever those stood before."""
    if size > history.shape[1]:
        return history, mx.zeros(history.shape, mx.bool_)
    windows = history.shape[1] - size + 1
    same = mx.broadcast_to(mx.arange(windows) + size <= length, (history.shape[0], windows))
    newest = last(history, length, size - 1)
    for place in range(size - 1):
        same = same & (history[:, place : place + windows] == newest[:, place : place + 1])
    return history[:, size - 1 :], same


def completed(history: mx.array, length: mx.array, words: mx.array) -> tuple[mx.array, mx.array]:
    """The last tokens of words of one size whose other tokens are the newest ones."""
    count, size = words.shape
    begun = (last(history, length, size - 1)[:, None] == words[:, :-1]).all(axis=-1) & (length >= size)
    return mx.broadcast_to(words[:, -1], (history.shape[0], count)), begun
