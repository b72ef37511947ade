"""One step of a search: array code on the device, compiled, for a batch of sentences with the beams of each.

A sentence has `beam_size` living and as many finished hypotheses, and is done when none of the living can still come
in. Where beams do not compete (`SearchConfig.joint` is false), each goes its own way.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.decoding.logits_processors import NEG_INF, process_logits
from mlx_transformer.decoding.sampling import sample, top_k
from mlx_transformer.model.kv_cache import KVCache
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.transformer import Memory, Transformer


class BeamState(NamedTuple):
    """All that changes from step to step; `beams` living and `beams` finished hypotheses of each sentence.

    Hypotheses are chains of links: a link is the beam of the parent x vocab + the newest token.

    Attributes:
        cache: Keys and values of each decoder layer, rows are batch x beams.
        length: Number of target tokens that the cache holds, int32 scalar.
        tokens: The newest token of the living, uint32 (batch, beams).
        scores: Sum of log-probabilities of the living, best first; minus infinity for none, (batch, beams).
        history: Start token and tokens of the living, uint32 (rows, capacity + 1); of no width if no rule reads it.
        backpointers: The links of the living at each position, uint32 (capacity, batch, beams).
        finished_backpointers: The last links of the finished, uint32 (batch, beams).
        finished_lengths: Their number of tokens, with prefix and end token, (batch, beams).
        finished_scores: Normalised scores, minus infinity where there is none yet, (batch, beams).
        done: Sentences whose result is final, (batch,).
    """

    cache: list[mx.array]
    length: mx.array
    tokens: mx.array
    scores: mx.array
    history: mx.array
    backpointers: mx.array
    finished_backpointers: mx.array
    finished_lengths: mx.array
    finished_scores: mx.array
    done: mx.array


def decode_step(
    model: Transformer, search: SearchConfig, state: BeamState, memory: Memory, inputs: DecodingInputs
) -> BeamState:
    """Extend every living hypothesis by one token, keep the best."""
    batch, beams = state.tokens.shape
    cache = KVCache(list(state.cache), state.length)
    logits = model.decode(state.tokens.reshape(-1, 1), memory, cache)[:, -1].astype(mx.float32)
    vocab, length = logits.shape[-1], cache.length
    scores, normalizer = process_logits(logits, search, model.config, inputs, state.history, length)
    if search.is_beam_search:
        totals, backpointers = expand_beams(state, scores, normalizer)
    else:
        totals, backpointers = extend_each_beam(search, state, inputs, scores, normalizer, length)

    max_new_tokens = inputs.max_new_tokens.reshape(batch, beams)[:, :1]
    generated = length - inputs.prefix_lengths.reshape(batch, beams)[:, :1]
    ended = ((backpointers % vocab == model.config.eos_id) & (generated > 0)) | (generated >= max_new_tokens)
    state = _add_finished(search, state, totals, backpointers, ended, length, generated)
    totals = mx.where(ended, NEG_INF, totals)
    if search.is_beam_search:
        order = mx.argsort(constant_arange(2 * beams) + 2 * beams * ended, axis=1)[
            :, :beams
        ]  # the best that have not ended
        totals, backpointers = (
            mx.take_along_axis(totals, order, axis=1),
            mx.take_along_axis(backpointers, order, axis=1),
        )
    done = state.done | is_done(search, state, totals, generated, max_new_tokens)
    parents = (backpointers // vocab + beams * constant_arange(batch, np.uint32)[:, None]).flatten()
    tokens, history = backpointers % vocab, state.history
    if search.reads_history:
        history = history if not search.is_beam_search else mx.take(history, parents, axis=0)
        history = mx.where(constant_arange(history.shape[1]) == length, tokens.reshape(-1, 1), history)
    return state._replace(
        cache=[mx.take(layer, parents, axis=0) for layer in cache.layers] if search.is_beam_search else cache.layers,
        length=length,
        tokens=tokens,
        scores=totals,
        history=history,
        backpointers=mx.slice_update(state.backpointers, backpointers[None], state.length, axes=(0,)),
        done=done,
    )


def expand_beams(state: BeamState, scores: mx.array, normalizer: mx.array) -> tuple[mx.array, mx.array]:
    """The best continuations of all beams of a sentence together: totals and links, (batch, 2 x beams).

    Twice as many candidates as beams: even if every beam ends, as many are left to live on.
    """
    (batch, beams), vocab = state.scores.shape, scores.shape[-1]
    values, tokens = top_k(scores, 2 * beams)
    totals = (values - normalizer).reshape(batch, beams, -1) + state.scores[..., None]
    backpointers = tokens.reshape(batch, beams, -1) + vocab * constant_arange(beams, np.uint32)[:, None]
    totals, order = top_k(totals.flatten(1), 2 * beams)
    return totals, mx.take_along_axis(backpointers.flatten(1), order, axis=1)


def extend_each_beam(
    search: SearchConfig,
    state: BeamState,
    inputs: DecodingInputs,
    scores: mx.array,
    normalizer: mx.array,
    length: mx.array,
) -> tuple[mx.array, mx.array]:
    """One continuation of each beam: totals and links, (batch, beams)."""
    (batch, beams), vocab = state.scores.shape, scores.shape[-1]
    if search.temperature:
        tokens = sample(scores, search, inputs.keys, length)
    elif search.alternatives:
        given = mx.maximum(inputs.prefix_lengths, int(search.forced_bos_id is not None))
        first = length - given == 1
        rank = mx.where(first, (constant_arange(batch * beams) % beams)[:, None], 0)
        tokens = mx.take_along_axis(top_k(scores, beams)[1], rank, axis=1)
    else:
        tokens = mx.argmax(scores, axis=-1, keepdims=True)
    values = mx.take_along_axis(scores, tokens, axis=1) - normalizer
    return state.scores + values.reshape(batch, beams), tokens.reshape(batch, beams) + vocab * constant_arange(
        beams, np.uint32
    )


def _add_finished(
    search: SearchConfig,
    state: BeamState,
    totals: mx.array,
    backpointers: mx.array,
    ended: mx.array,
    length: mx.array,
    generated: mx.array,
) -> BeamState:
    """Take candidates that ended among the finished hypotheses; where beams compete, the best ones of both."""
    beams = search.beam_size
    totals, backpointers, ended = totals[:, :beams], backpointers[:, :beams], ended[:, :beams]
    scores = totals / mx.maximum(generated, 1).astype(mx.float32) ** search.length_penalty
    lengths = mx.broadcast_to(length, backpointers.shape)
    if not search.is_beam_search:
        new = ended & (totals > NEG_INF)
        return state._replace(
            finished_backpointers=mx.where(new, backpointers, state.finished_backpointers),
            finished_lengths=mx.where(new, lengths, state.finished_lengths),
            finished_scores=mx.where(new, scores, state.finished_scores),
        )
    scores = mx.where(ended & ~state.done[:, None], scores, NEG_INF)
    scores, order = top_k(mx.concatenate([state.finished_scores, scores], axis=1), beams)
    backpointers = mx.concatenate([state.finished_backpointers, backpointers], axis=1)
    lengths = mx.concatenate([state.finished_lengths, lengths], axis=1)
    return state._replace(
        finished_backpointers=mx.take_along_axis(backpointers, order, axis=1),
        finished_lengths=mx.take_along_axis(lengths, order, axis=1),
        finished_scores=scores,
    )


def is_done(
    search: SearchConfig, state: BeamState, scores: mx.array, generated: mx.array, max_new_tokens: mx.array
) -> mx.array:
    """Sentences that nothing can change any more, given the sums of log-probabilities of the living, best first."""
    if not search.is_beam_search:
        return (scores == NEG_INF).all(axis=1)
    worst = state.finished_scores.min(axis=1, keepdims=True)
    over = generated >= max_new_tokens
    if search.early_stopping is True:
        return (over | (worst > NEG_INF))[:, 0]
    final = (
        max_new_tokens if search.early_stopping == "never" and search.length_penalty > 0 else mx.maximum(generated, 1)
    )
    attainable = scores[:, :1] / final.astype(mx.float32) ** search.length_penalty
    return (over | (attainable <= worst))[:, 0]
