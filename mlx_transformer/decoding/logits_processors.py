"""Logits processors, with the rules and the order of transformers 5.

They run inside the compiled decode step, so everything is array code. A history has a fixed capacity; the first
tokens of each row are filled, as many as `lengths` says, beginning with the start token.
"""

import functools
import operator

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.model.exponential import logsumexp
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.shortlist import Shortlist, columns_to_ids, ids_to_columns

NEG_INF = -float("inf")


def process_logits(
    logits: mx.array,
    search: SearchConfig,
    config: ModelConfig,
    inputs: DecodingInputs,
    history: mx.array,
    lengths: mx.array,
    normalize: bool = True,
    shortlist: Shortlist | None = None,
) -> tuple[mx.array, mx.array]:
    """Apply all logits processors of a search.

    Args:
        logits: float32 (rows, columns), one column for each token of the vocabulary or for each row of the shortlist.
        search: The search configuration.
        config: The model configuration.
        inputs: Per-sentence settings.
        history: Start token and generated tokens, (rows, capacity + 1); width 0 if no processor reads it.
        lengths: Number of tokens in each row of the history, int32 (rows or 1, 1).
        normalize: Whether log-probabilities are needed; the normalizer is zero if not.
        shortlist: The tokens of the columns; None for all tokens in their order.

    Returns:
        Scores, (rows, columns), and a normalizer, (rows, 1). Scores minus normalizer are log-probabilities; they are
        not computed for the whole vocabulary here, because only the best few are needed.
    """
    if search.repetition_penalty != 1 and not search.is_beam_search:
        logits = repetition_penalty(logits, search.repetition_penalty, history, lengths, shortlist)
    scores, normalizer = logits, logsumexp(logits) if normalize else mx.zeros((logits.shape[0], 1))
    if search.repetition_penalty != 1 and search.is_beam_search:
        scores = repetition_penalty(logits - normalizer, search.repetition_penalty, history, lengths, shortlist)
        normalizer = mx.zeros_like(normalizer)
    if search.no_repeat_ngram_size:
        size = search.no_repeat_ngram_size
        scores = mask_tokens(scores, *ngram_continuations(history, lengths, history, lengths, size), shortlist)
    if search.source_no_repeat_ngram_size:
        source_length = mx.array(inputs.source.shape[1])
        size = search.source_no_repeat_ngram_size
        matches = ngram_continuations(inputs.source, source_length, history, lengths, size)
        scores = mask_tokens(scores, *matches, shortlist)
    for size in sorted({len(word) for word in search.bad_words} - {1}):
        words = mx.array([word for word in search.bad_words if len(word) == size])
        scores = mask_tokens(scores, *matched_bad_words(history, lengths, words), shortlist)
    scores = suppress_tokens(scores, [word[0] for word in search.bad_words if len(word) == 1], shortlist)
    tokens = columns_to_ids(constant_arange(scores.shape[-1]), shortlist)
    generated = lengths - inputs.prefix_lengths
    scores = mx.where(is_end_token(tokens, config) & (generated < inputs.min_new_tokens), NEG_INF, scores)
    if search.forced_bos_id is not None:
        scores = mx.where(lengths == 1, force_token(tokens, inputs.first_ids, normalizer), scores)
    if search.forced_eos_id is not None:
        scores = mx.where(
            generated == inputs.max_new_tokens, force_token(tokens, search.forced_eos_id, normalizer), scores
        )
    scores = suppress_tokens(scores, [config.pad_id, *search.suppress_ids], shortlist)
    if search.renormalize and normalize:
        normalizer = logsumexp(scores)
    if inputs.prefix_ids.shape[1]:
        prefix_token = take_column(inputs.prefix_ids, mx.minimum(lengths, inputs.prefix_ids.shape[1]) - 1)
        scores = mx.where(generated < 1, force_token(tokens, prefix_token, normalizer), scores)
    return scores, normalizer


def is_end_token(tokens: mx.array, config: ModelConfig) -> mx.array:
    """Return which tokens end a target, a boolean array of the same shape."""
    return functools.reduce(operator.or_, [tokens == token for token in config.eos_ids])


def suppress_tokens(scores: mx.array, tokens: list[int], shortlist: Shortlist | None = None) -> mx.array:
    """Set the scores of tokens to -inf in all rows; ids outside the vocabulary are ignored."""
    if not tokens:
        return scores
    mask = mx.array(np.isin(np.arange(vocab_size(scores, shortlist)), tokens))
    return mx.where(mask if shortlist is None else mx.take(mask, shortlist.ids), NEG_INF, scores)


def vocab_size(scores: mx.array, shortlist: Shortlist | None) -> int:
    """Return the number of tokens of the vocabulary, of which scores may have the columns of a shortlist only."""
    return scores.shape[-1] if shortlist is None else shortlist.columns.shape[0]


def force_token(tokens: mx.array, token: mx.array | int, normalizer: mx.array) -> mx.array:
    """Return scores in which `token` (one for all rows, or (rows, 1)) has log-probability 0, all others -inf."""
    return mx.where(tokens == token, normalizer, NEG_INF)


def repetition_penalty(
    scores: mx.array, penalty: float, history: mx.array, lengths: mx.array, shortlist: Shortlist | None = None
) -> mx.array:
    """Lower the scores of tokens that occur in the history (Keskar et al. 2019, section 4.1).

    Args:
        scores: Log-probabilities or logits, (rows, columns).
        penalty: Factor of negative scores; positive scores are divided by it.
        history: See `process_logits`.
        lengths: See `process_logits`.
        shortlist: See `process_logits`.
    """
    filled = constant_arange(history.shape[1]) < lengths
    penalized = mx.where(scores < 0, scores * penalty, scores / penalty)
    mask = token_mask(scores, history, mx.broadcast_to(filled, history.shape), shortlist)
    return mx.where(mask, penalized, scores)


def mask_tokens(logprobs: mx.array, tokens: mx.array, mask: mx.array, shortlist: Shortlist | None = None) -> mx.array:
    """Set the scores of `tokens`, (rows, number), to -inf where `mask`, a boolean of the same shape, is True."""
    return mx.where(token_mask(logprobs, tokens, mask, shortlist), NEG_INF, logprobs)


def token_mask(logprobs: mx.array, tokens: mx.array, mask: mx.array, shortlist: Shortlist | None = None) -> mx.array:
    """Return a mask over the columns, bool (rows, columns), of those `tokens` for which `mask` is True."""
    rows, width = logprobs.shape
    is_token = mask & (tokens >= 0) & (tokens < vocab_size(logprobs, shortlist))
    # All others mark an extra column behind the last; MLX does not check bounds.
    columns = mx.where(is_token, ids_to_columns(mx.where(is_token, tokens, 0), shortlist), width)
    marks = mx.put_along_axis(mx.zeros((rows, width + 1), mx.bool_), columns, mx.array(True), axis=1)
    return marks[:, :width]


def take_column(array: mx.array, columns: mx.array) -> mx.array:
    """Return the value in one column of each row, (rows, 1); `columns` is (rows or 1, 1)."""
    return mx.take_along_axis(array, mx.broadcast_to(columns, (array.shape[0], 1)), axis=1)


def previous_token(history: mx.array, lengths: mx.array, back: int) -> mx.array:
    """Return the token `back` places from the end of the history, 1 for the last, (rows, 1)."""
    return take_column(history, mx.maximum(lengths - back, 0))


def ngram_continuations(
    text: mx.array, filled: mx.array, history: mx.array, lengths: mx.array, size: int
) -> tuple[mx.array, mx.array]:
    """Find the tokens that would complete an n-gram of a text after the last n - 1 tokens of the history.

    Args:
        text: Token ids, (rows, text_length): the history itself, or the source.
        filled: Number of valid tokens of the text, a scalar or (rows or 1, 1).
        history: See `process_logits`.
        lengths: See `process_logits`.
        size: The n of the n-grams.

    Returns:
        The last token of every n-gram of the text, and whether its other tokens match, both (rows, text_length - size
        + 1).
    """
    if size > min(text.shape[1], history.shape[1]):
        return text, mx.zeros(text.shape, mx.bool_)
    windows = text.shape[1] - size + 1
    matches = mx.broadcast_to(
        (constant_arange(windows) + size <= filled) & (lengths >= size - 1), (text.shape[0], windows)
    )
    for i in range(size - 1):
        matches = matches & (text[:, i : i + windows] == previous_token(history, lengths, size - 1 - i))
    return text[:, size - 1 :], matches


def matched_bad_words(history: mx.array, lengths: mx.array, words: mx.array) -> tuple[mx.array, mx.array]:
    """Return the last token of each word, all of one size, and whether its other tokens match the history's end."""
    shape, size = (history.shape[0], words.shape[0]), words.shape[1]
    matches = mx.broadcast_to(lengths >= size, shape)
    for i in range(size - 1):
        matches = matches & (words[:, i] == previous_token(history, lengths, size - 1 - i))
    return mx.broadcast_to(words[:, -1], shape), matches
