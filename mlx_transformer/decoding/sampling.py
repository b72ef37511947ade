"""Selection of the next tokens: exact top-k by chunk maxima, and sampling (Holtzman et al. 2020 for top-p)."""

import math

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import MAX_BEAM_SIZE, SearchConfig
from mlx_transformer.decoding.logits_processors import NEG_INF, vocab_size
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.reductions import CHUNK_SIZE, reduce_chunks
from mlx_transformer.model.shortlist import Shortlist

CPU_CHUNK_SIZE = 8  # of the second division


def top_k(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return the k largest values of each row, largest first, and their indices, uint32 (rows, k).

    Ties keep the lower index; -inf entries may repeat an index. Sorting a whole row is slow on a GPU. The k largest
    values lie in the k chunks with the largest maxima, so only these chunks are sorted.
    """
    if k == 1:
        indices = mx.argmax(values, axis=-1, keepdims=True)
        return mx.take_along_axis(values, indices, axis=-1), indices
    return _top_k_of_chunks(values, k, chunk_sizes())


def chunk_sizes() -> list[int]:
    """Return the sizes of the chunks in `top_k`.

    With chunks of 64 there are about as many of them in 8,000 to 32,000 values as candidates from 8. A CPU, which sorts
    slowly, divides both once more.
    """
    return [CHUNK_SIZE, CPU_CHUNK_SIZE] if mx.default_device() == mx.cpu else [CHUNK_SIZE]


def _top_k_of_chunks(values: mx.array, k: int, sizes: list[int]) -> tuple[mx.array, mx.array]:
    sizes = [size for size in sizes if values.shape[1] > k * size]
    if not sizes:
        indices = mx.argsort(-values, axis=-1)[:, :k]
        return mx.take_along_axis(values, indices, axis=-1), indices
    size, *smaller = sizes
    maxima = reduce_chunks(values, mx.max, size)
    best, chunks = _top_k_of_chunks(maxima, k, smaller)
    if smaller:  # entries of -inf may repeat a chunk, so they get one behind the last
        chunks = mx.where(best == NEG_INF, maxima.shape[1], chunks)
    # Chunks in the order of their indices, so that ties keep the lower index.
    indices = (mx.sort(chunks, axis=-1)[..., None] * size + constant_arange(size, np.uint32)).flatten(1)
    in_row = indices < values.shape[1]
    indices = mx.where(in_row, indices, 0)  # MLX does not check bounds
    candidates = mx.take_along_axis(values, indices, axis=1)
    best, order = _top_k_of_chunks(mx.where(in_row, candidates, NEG_INF), k, smaller)
    return best, mx.take_along_axis(indices, order, axis=1)


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
    scores = scores / search.temperature
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
