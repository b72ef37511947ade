"""Sampling of the next tokens (Holtzman et al. 2020 for top-p)."""

import math

import mlx.core as mx

from mlx_transformer.config.search import MAX_BEAM_SIZE, SearchConfig
from mlx_transformer.decoding.logits_processors import NEG_INF, vocab_size
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.reductions import top_k
from mlx_transformer.model.shortlist import Shortlist


def sample(
    scores: mx.array, search: SearchConfig, keys: mx.array, lengths: mx.array, shortlist: Shortlist | None = None
) -> mx.array:
    """Sample one token per row, with temperature, top-k, top-p and min-p.

    Args:
        scores: Log-probabilities up to a constant, (rows, columns).
        search: The search configuration.
        keys: A random key for each row, uint32 (rows, 2), the same for all beams of a sentence.
        lengths: Number of preceding tokens, int32 (rows or 1, 1); key, beam and length determine the random number of
            each token of the vocabulary.
        shortlist: The tokens of the columns; None for all tokens in their order.

    Returns:
        Columns, uint32 (rows, 1).

    Source: Gumbel-max trick (Gumbel 1954; Maddison et al. 2014).
    """
    rows, vocab = scores.shape[0], vocab_size(scores, shortlist)
    scores = scores.astype(mx.float32) / search.temperature
    scores = mx.where(scores < _threshold(scores, search), NEG_INF, scores)
    beams = constant_arange(rows) % search.beam_size
    counters = mx.stack([lengths[:, 0] * MAX_BEAM_SIZE + beams, mx.zeros_like(beams)], axis=1).astype(mx.uint32)
    noise = mx.vmap(lambda key: mx.random.gumbel((vocab,), key=key))(keys ^ counters)
    if shortlist is not None:
        noise = mx.take(noise, shortlist.ids, axis=1)
    return mx.argmax(scores + noise, axis=-1, keepdims=True)


def _threshold(scores: mx.array, search: SearchConfig) -> mx.array | float:
    """Return the lowest score that may be sampled, (rows, 1): top-k, then top-p, then min-p, as in transformers."""
    if not search.top_k and search.top_p == 1 and search.min_p == 0:
        return NEG_INF
    if not search.top_k and search.top_p == 1:
        return scores.max(axis=-1, keepdims=True) + math.log(search.min_p)
    best, _ = top_k(scores, min(search.top_k or scores.shape[1], scores.shape[1]))
    threshold = best[:, -1:]
    probabilities = mx.softmax(best, axis=-1)
    if search.top_p < 1:
        # A token stays if the more probable ones do not reach top_p together; the first always stays.
        preceding = mx.cumsum(probabilities, axis=-1) - probabilities
        threshold = mx.maximum(
            threshold, mx.where(preceding < search.top_p, best, float("inf")).min(axis=-1, keepdims=True)
        )
    if search.min_p:
        is_probable = probabilities >= search.min_p * probabilities[:, :1]
        threshold = mx.maximum(threshold, mx.where(is_probable, best, float("inf")).min(axis=-1, keepdims=True))
    return threshold
