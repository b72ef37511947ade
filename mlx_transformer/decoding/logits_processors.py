"""What a search may change in the scores of the next token, with the rules and the order of transformers 5.

Everything is array code, for it runs inside the compiled step: histories have a fixed capacity, of which the first
`length` tokens are filled, the start token among them.
"""

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.model.positions import constant_arange

NEG_INF = -float("inf")


def process_logits(
    logits: mx.array,
    search: SearchConfig,
    config: ModelConfig,
    inputs: DecodingInputs,
    history: mx.array,
    length: mx.array,
) -> tuple[mx.array, mx.array]:
    """What the next token scores after all rules of a search.

    Args:
        logits: float32 (rows, vocab).
        search: The rules.
        config: The model's; its end token may have to wait, its padding is never generated.
        inputs: What differs from row to row.
        history: The start token and the tokens so far, (rows, capacity + 1); of no width where no rule reads it.
        length: Number of tokens in the history, an int32 scalar.

    Returns:
        Scores, (rows, vocab), and what they exceed log-probabilities by, (rows, 1): the latter are not computed for the
        whole vocabulary, as only a few of them are wanted.
    """
    if search.repetition_penalty != 1 and not search.is_beam_search:
        logits = repetition_penalty(logits, search.repetition_penalty, history, length)
    scores, normalizer = logits, mx.logsumexp(logits, axis=-1, keepdims=True)
    if search.repetition_penalty != 1 and search.is_beam_search:
        scores = repetition_penalty(logits - normalizer, search.repetition_penalty, history, length)
        normalizer = mx.zeros_like(normalizer)
    if search.no_repeat_ngram_size:
        scores = mask_tokens(
            scores, *ngram_continuations(history, length, history, length, search.no_repeat_ngram_size)
        )
    if search.source_no_repeat_ngram_size:
        whole = mx.array(inputs.source.shape[1])
        size = search.source_no_repeat_ngram_size
        scores = mask_tokens(scores, *ngram_continuations(inputs.source, whole, history, length, size))
    for size in sorted({len(word) for word in search.bad_words} - {1}):
        words = mx.array([word for word in search.bad_words if len(word) == size])
        scores = mask_tokens(scores, *matched_bad_words(history, length, words))
    scores = suppress_tokens(scores, [word[0] for word in search.bad_words if len(word) == 1])
    tokens = constant_arange(scores.shape[-1])
    generated = length - inputs.prefix_lengths
    scores = mx.where((tokens == config.eos_id) & (generated < inputs.min_new_tokens), NEG_INF, scores)
    if search.forced_bos_id is not None:
        scores = mx.where(length == 1, force_token(tokens, inputs.first_ids, normalizer), scores)
    if search.forced_eos_id is not None:
        scores = mx.where(
            generated == inputs.max_new_tokens, force_token(tokens, search.forced_eos_id, normalizer), scores
        )
    scores = suppress_tokens(scores, [config.pad_id, *search.suppress_ids])
    if search.renormalize:
        normalizer = mx.logsumexp(scores, axis=-1, keepdims=True)
    if inputs.prefix_ids.shape[1]:
        given = mx.take(inputs.prefix_ids, mx.minimum(length, inputs.prefix_ids.shape[1])[None] - 1, axis=1)
        scores = mx.where(generated < 1, force_token(tokens, given, normalizer), scores)
    return scores, normalizer


def suppress_tokens(scores: mx.array, tokens: list[int]) -> mx.array:
    """Scores without some tokens, the same ones for all rows; ids outside the vocabulary do nothing."""
    if not tokens:
        return scores
    return mx.where(mx.array(np.isin(np.arange(scores.shape[-1]), tokens)), NEG_INF, scores)


def force_token(tokens: mx.array, token: mx.array | int, normalizer: mx.array) -> mx.array:
    """Scores that leave one token with a log-probability of 0, the same for all or one for each row, (rows, 1)."""
    return mx.where(tokens == token, normalizer, NEG_INF)


def repetition_penalty(scores: mx.array, penalty: float, history: mx.array, length: mx.array) -> mx.array:
    """Worse scores for the tokens of the history, each once (Keskar et al. 2019, section 4.1).

    Args:
        scores: Log-probabilities or logits, (rows, vocab).
        penalty: Negative scores are multiplied by it, others divided.
        history: As in `process`.
        length: As in `process`.
    """
    filled = constant_arange(history.shape[1]) < length
    worse = mx.where(scores < 0, scores * penalty, scores / penalty)
    return mx.where(token_mask(scores, history, mx.broadcast_to(filled, history.shape)), worse, scores)


def mask_tokens(logprobs: mx.array, tokens: mx.array, wanted: mx.array) -> mx.array:
    """Without `tokens`, (rows, number), where `wanted`, bool of the same shape."""
    return mx.where(token_mask(logprobs, tokens, wanted), NEG_INF, logprobs)


def token_mask(logprobs: mx.array, tokens: mx.array, wanted: mx.array) -> mx.array:
    """True at the `wanted` ones of `tokens`, bool (rows, vocab)."""
    rows, vocab = logprobs.shape
    # Those that are not wanted mark a column past the vocabulary; MLX checks no bounds.
    places = mx.where(wanted & (tokens >= 0) & (tokens < vocab), tokens, vocab)
    marks = mx.put_along_axis(mx.zeros((rows, vocab + 1), mx.bool_), places, mx.array(True), axis=1)
    return marks[:, :vocab]


def previous_token(history: mx.array, length: mx.array, back: int) -> mx.array:
    """The last token of the history (`back` 1), the one before it (2) and so on, (rows, 1)."""
    return mx.take(history, mx.maximum(length - back, 0)[None], axis=1)


def ngram_continuations(
    text: mx.array, filled: mx.array, history: mx.array, length: mx.array, size: int
) -> tuple[mx.array, mx.array]:
    """The tokens that follow the newest size - 1 ones of the history wherever these stand in a text.

    Args:
        text: Token ids, (rows, places): the history itself, or the source.
        filled: How many places of the text count, a scalar.
        history: As in `process`.
        length: As in `process`.
        size: Tokens of such a sequence and its follower.

    Returns:
        Tokens and whether they follow, (rows, places - size + 1).
    """
    if size > min(text.shape[1], history.shape[1]):
        return text, mx.zeros(text.shape, mx.bool_)
    windows = text.shape[1] - size + 1
    same = mx.broadcast_to((constant_arange(windows) + size <= filled) & (length >= size - 1), (text.shape[0], windows))
    for place in range(size - 1):
        same = same & (text[:, place : place + windows] == previous_token(history, length, size - 1 - place))
    return text[:, size - 1 :], same


def matched_bad_words(history: mx.array, length: mx.array, words: mx.array) -> tuple[mx.array, mx.array]:
    """The last tokens of words of one size whose other tokens are the newest ones."""
    shape, size = (history.shape[0], words.shape[0]), words.shape[1]
    begun = mx.broadcast_to(length >= size, shape)
    for place in range(size - 1):
        begun = begun & (words[:, place] == previous_token(history, length, size - 1 - place))
    return mx.broadcast_to(words[:, -1], shape), begun
