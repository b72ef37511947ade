"""Logits processors, with the rules of transformers 5.

Their order is that of transformers, too, except that tokens are forced last: what a search suppresses cannot be forced.
They run inside the compiled decode step, so everything is array code. A history has a fixed capacity; the first
tokens of each row are filled, as many as `lengths` says, beginning with the start token.
"""

import functools
import operator
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.model.exponential import logsumexp
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.reductions import top_k
from mlx_transformer.model.shortlist import Shortlist, columns_to_ids, ids_to_columns

NEG_INF = -float("inf")
MAX_SUPPRESSED = 8  # for so many tokens, comparisons and additional candidates cost less than a mask of all tokens


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
        logits: (rows, columns), one column for each token of the vocabulary or for each row of the shortlist.
        search: The search configuration.
        config: The model configuration.
        inputs: Per-sentence settings.
        history: Start token and generated tokens, (rows, capacity + 1); width 0 if no processor reads it.
        lengths: Number of tokens in each row of the history, int32 (rows or 1, 1).
        normalize: Whether log-probabilities are needed; the normalizer is zero if not.
        shortlist: The tokens of the columns; None for all tokens in their order.

    Returns:
        Scores, (rows, columns), and a normalizer, (rows, 1). Scores minus normalizer are log-probabilities; they are
        not computed for the whole vocabulary here, because only the best few are needed. Scores without a normalizer
        have the type of the logits unless a penalty calculates with them: only their order counts.
    """
    if search.repetition_penalty != 1 and not search.is_beam_search:
        logits = repetition_penalty(logits.astype(mx.float32), search.repetition_penalty, history, lengths, shortlist)
    scores, normalizer = logits, logsumexp(logits) if normalize else mx.zeros((logits.shape[0], 1), logits.dtype)
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
    tokens = columns_to_ids(constant_arange(scores.shape[-1]), shortlist)
    scores = suppress_tokens(scores, tokens, search, config, inputs, lengths)
    if search.renormalize and normalize:
        normalizer = mx.maximum(logsumexp(scores), mx.finfo(mx.float32).min)  # a token may be forced if none is left
    for is_forced, token in forced_tokens(search, inputs, lengths):  # with log-probability 0
        scores = mx.where(is_forced, mx.where(tokens == token, normalizer, NEG_INF), scores)
    return scores, normalizer


def reads_all_logits(search: SearchConfig, config: ModelConfig) -> bool:
    """Whether the logits processors must see all logits, because they may change more than a few of them."""
    return search.reads_history or search.renormalize or max_suppressed(search, config) > MAX_SUPPRESSED


def process_best_logits(
    logits: mx.array,
    k: int,
    search: SearchConfig,
    config: ModelConfig,
    inputs: DecodingInputs,
    lengths: mx.array,
    shortlist: Shortlist | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Apply the logits processors of a search to the best tokens only; the search must not need all logits.

    See `reads_all_logits`.

    Args:
        logits: See `process_logits`.
        k: Number of tokens that are needed. As many more are processed as may be suppressed.
        search: The search configuration.
        config: The model configuration.
        inputs: Per-sentence settings.
        lengths: See `process_logits`.
        shortlist: See `process_logits`.

    Returns:
        Scores and tokens, (rows, k + a few), of which the best k are those of all tokens, and the normalizer,
        (rows, 1).
    """
    scores, columns = top_k(logits, k + max_suppressed(search, config))
    scores, tokens, normalizer = scores.astype(mx.float32), columns_to_ids(columns, shortlist), logsumexp(logits)
    scores = suppress_tokens(scores, tokens, search, config, inputs, lengths)
    # A forced token, which need not be among the best, takes the place of the last one, with log-probability 0.
    is_last = constant_arange(scores.shape[1]) == scores.shape[1] - 1
    for is_forced, token in forced_tokens(search, inputs, lengths):
        scores = mx.where(is_forced, mx.where(is_last, normalizer, NEG_INF), scores)
        tokens = mx.where(is_forced & is_last, token, tokens)
    return scores, tokens, normalizer


def suppressed_ids(search: SearchConfig, config: ModelConfig) -> list[int]:
    """Return the tokens that a search never generates, unless they are forced."""
    words = {word[0] for word in search.bad_words if len(word) == 1}
    return sorted(token for token in {config.pad_id, *search.suppress_ids, *words} if token < config.target_vocab_size)


def max_suppressed(search: SearchConfig, config: ModelConfig) -> int:
    """Return how many tokens `suppress_tokens` may suppress in a row."""
    return len(suppressed_ids(search, config)) + len(config.eos_ids)


def suppress_tokens(
    scores: mx.array,
    tokens: mx.array,
    search: SearchConfig,
    config: ModelConfig,
    inputs: DecodingInputs,
    lengths: mx.array,
) -> mx.array:
    """Set the scores of tokens that are never generated, and of end tokens before the minimum length, to -inf.

    Args:
        scores: (rows, number).
        tokens: The token of each score, (number,) or (rows, number).
        search: The search configuration.
        config: The model configuration.
        inputs: Per-sentence settings.
        lengths: See `process_logits`.
    """
    is_early = lengths - inputs.prefix_lengths < inputs.min_new_tokens
    suppressed = is_any_of(tokens, suppressed_ids(search, config), config)
    return mx.where(suppressed | (is_end_token(tokens, config) & is_early), NEG_INF, scores)


def is_end_token(tokens: mx.array, config: ModelConfig) -> mx.array:
    """Return which tokens end a target, a boolean array of the same shape."""
    return is_any_of(tokens, config.eos_ids, config)


def is_any_of(tokens: mx.array, ids: Sequence[int], config: ModelConfig) -> mx.array:
    """Return which tokens are among `ids`, of which there is at least one; a boolean array of the same shape."""
    if len(ids) > MAX_SUPPRESSED:
        return mx.take(mx.array(np.isin(np.arange(config.target_vocab_size), ids)), tokens)
    return functools.reduce(operator.or_, [tokens == token for token in ids])


def forced_tokens(search: SearchConfig, inputs: DecodingInputs, lengths: mx.array) -> list[tuple[mx.array, mx.array]]:
    """Return the rows in which a token is forced, bool (rows or 1, 1), and the token, uint32, for each rule.

    Where several rules force a token, the last one decides.
    """
    forced, generated = [], lengths - inputs.prefix_lengths
    if search.forced_bos_id is not None:
        forced.append((lengths == 1, inputs.first_ids))
    if search.forced_eos_id is not None:
        forced.append((generated == inputs.max_new_tokens, mx.array(search.forced_eos_id)))
    if inputs.prefix_ids.shape[1]:
        prefix_token = take_column(inputs.prefix_ids, mx.minimum(lengths, inputs.prefix_ids.shape[1]) - 1)
        forced.append((generated < 1, prefix_token))
    return [(is_forced, token.astype(mx.uint32)) for is_forced, token in forced]


def vocab_size(scores: mx.array, shortlist: Shortlist | None) -> int:
    """Return the number of tokens of the vocabulary, of which scores may have the columns of a shortlist only."""
    return scores.shape[-1] if shortlist is None else shortlist.columns.shape[0]


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
