"""Which tokens come next: the k best by chunk maxima, or one drawn at random (Holtzman et al. 2020 for the nucleus)."""

import math

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import MAX_BEAM_SIZE, SearchConfig
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.model.positions import constant_arange

CHUNK_SIZE = 128  # values that are looked at together when the largest are sought


def top_k(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest values of each row, (rows, length), and their places, uint32, largest first; all if fewer.

    Of equal values the one at the lower place comes first; of minus infinities any, and their places may be alike.
    A GPU would sort the whole row. But the k chunks with the largest maxima hold the k largest values: only they are.
    """
    if k == 1:
        places = mx.argmax(values, axis=-1, keepdims=True)
        return mx.take_along_axis(values, places, axis=-1), places
    if values.shape[1] <= k * CHUNK_SIZE:
        return _top_k_sorted(values, k)
    _, chunks = _top_k_sorted(_chunk_maxima(values), k)
    # The chunks by their places, so that of equal values the lower place is found first.
    places = (mx.sort(chunks, axis=-1)[..., None] * CHUNK_SIZE + constant_arange(CHUNK_SIZE, np.uint32)).flatten(1)
    there = places < values.shape[1]
    places = mx.where(there, places, 0)  # a place past the end, though worth nothing, would be read somewhere
    candidates = mx.take_along_axis(values, places, axis=1)
    best, order = _top_k_sorted(mx.where(there, candidates, NEG_INF), k)
    return best, mx.take_along_axis(places, order, axis=1)


def _top_k_sorted(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    places = mx.argsort(-values, axis=-1)[:, :k]
    return mx.take_along_axis(values, places, axis=-1), places


def _chunk_maxima(values: mx.array) -> mx.array:
    """The largest value of each chunk of each row, (rows, chunks); the last chunk may be short."""
    whole = values.shape[1] // CHUNK_SIZE * CHUNK_SIZE
    maxima = values[:, :whole].reshape(values.shape[0], -1, CHUNK_SIZE).max(axis=-1)
    if whole == values.shape[1]:
        return maxima
    return mx.concatenate([maxima, values[:, whole:].max(axis=-1, keepdims=True)], axis=1)


def sample(scores: mx.array, search: SearchConfig, keys: mx.array, length: mx.array) -> mx.array:
    """One token of each row, drawn from the probabilities that temperature, top_k, top_p and min_p leave.

    Args:
        scores: Log-probabilities up to a constant, (rows, vocab).
        search: Temperature and filters.
        keys: A random key for each row, uint32 (rows, 2): the same for all beams of a sentence.
        length: Number of tokens before this one, which with key and beam decides the draw, an int32 scalar.

    Returns:
        Token ids, uint32 (rows, 1).

    Source: the largest sum of log-probability and Gumbel noise is a draw (Gumbel 1954; Maddison et al. 2014).
    """
    rows, vocab = scores.shape
    scores = scores / search.temperature
    scores = mx.where(scores < _threshold(scores, search), NEG_INF, scores)
    beams = constant_arange(rows) % search.beam_size
    counters = mx.stack([length * MAX_BEAM_SIZE + beams, mx.zeros_like(beams)], axis=1).astype(mx.uint32)
    noise = mx.vmap(lambda key: mx.random.gumbel((vocab,), key=key))(keys ^ counters)
    return mx.argmax(scores + noise, axis=-1, keepdims=True)


def _threshold(scores: mx.array, search: SearchConfig) -> mx.array | float:
    """What a score must reach to be drawn, (rows, 1), as transformers has it: top_k, of these top_p, of these min_p."""
    if not search.top_k and search.top_p == 1 and search.min_p == 0:
        return NEG_INF
    if not search.top_k and search.top_p == 1:
        return scores.max(axis=-1, keepdims=True) + math.log(search.min_p)
    best, _ = top_k(scores, min(search.top_k or scores.shape[1], scores.shape[1]))
    least = best[:, -1:]
    probabilities = mx.softmax(best, axis=-1)
    if search.top_p < 1:
        # A token stays if the likelier ones do not reach top_p; the first always does.
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        least = mx.maximum(least, mx.where(before < search.top_p, best, float("inf")).min(axis=-1, keepdims=True))
    if search.min_p:
        enough = probabilities >= search.min_p * probabilities[:, :1]
        least = mx.maximum(least, mx.where(enough, best, float("inf")).min(axis=-1, keepdims=True))
    return least
