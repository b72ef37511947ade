"""One step of a search: array code on the device, compiled, for a batch of sentences with the beams of each.

A sentence has `beam_size` living and as many finished hypotheses, and is done when none of the living can still come
in. Where beams do not compete (`SearchConfig.joint` is false), each goes its own way.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import Request
from mlx_transformer.decoding.logits_processors import NEVER, process
from mlx_transformer.decoding.sampling import draw, top_k
from mlx_transformer.model.kv_cache import Cache
from mlx_transformer.model.positions import numbers
from mlx_transformer.model.transformer import Memory, Transformer


class State(NamedTuple):
    """All that changes from step to step; `beams` living and `beams` finished hypotheses of each sentence.

    Hypotheses are chains of links: a link is the beam of the parent x vocab + the newest token.

    Attributes:
        cache: Keys and values of each decoder layer, rows are batch x beams.
        length: Number of target tokens that the cache holds, int32 scalar.
        tokens: The newest token of the living, uint32 (batch, beams).
        scores: Sum of log-probabilities of the living, best first; minus infinity for none, (batch, beams).
        history: Start token and tokens of the living, uint32 (rows, capacity + 1); of no width if no rule reads it.
        links: The links of the living at each position, uint32 (capacity, batch, beams).
        finished_links: The last links of the finished, uint32 (batch, beams).
        finished_lengths: Their number of tokens, with prefix and end token, (batch, beams).
        finished_scores: Normalised scores, minus infinity where there is none yet, (batch, beams).
        done: Sentences whose result is final, (batch,).
    """

    cache: list[mx.array]
    length: mx.array
    tokens: mx.array
    scores: mx.array
    history: mx.array
    links: mx.array
    finished_links: mx.array
    finished_lengths: mx.array
    finished_scores: mx.array
    done: mx.array


def step(model: Transformer, search: SearchConfig, state: State, memory: Memory, request: Request) -> State:
    """Extend every living hypothesis by one token, keep the best."""
    batch, beams = state.tokens.shape
    cache = Cache(list(state.cache), state.length)
    logits = model.decode(state.tokens.reshape(-1, 1), memory, cache)[:, -1].astype(mx.float32)
    vocab, length = logits.shape[-1], cache.length
    scores, normalizer = process(logits, search, model.config, request, state.history, length)
    if search.joint:
        totals, links = _compete(state, scores, normalizer)
    else:
        totals, links = _go_on(search, state, request, scores, normalizer, length)

    most = request.most.reshape(batch, beams)[:, :1]
    generated = length - request.prefix_lengths.reshape(batch, beams)[:, :1]
    ended = ((links % vocab == model.config.eos_id) & (generated > 0)) | (generated >= most)
    state = _finish(search, state, totals, links, ended, length, generated)
    totals = mx.where(ended, NEVER, totals)
    if search.joint:
        order = mx.argsort(numbers(2 * beams) + 2 * beams * ended, axis=1)[:, :beams]  # the best that have not ended
        totals, links = mx.take_along_axis(totals, order, axis=1), mx.take_along_axis(links, order, axis=1)
    done = state.done | _decided(search, state, totals, generated, most)
    parents = (links // vocab + beams * numbers(batch, np.uint32)[:, None]).flatten()
    tokens, history = links % vocab, state.history
    if search.reads_history:
        history = history if not search.joint else mx.take(history, parents, axis=0)
        history = mx.where(numbers(history.shape[1]) == length, tokens.reshape(-1, 1), history)
    return state._replace(
        cache=[mx.take(layer, parents, axis=0) for layer in cache.layers] if search.joint else cache.layers,
        length=length,
        tokens=tokens,
        scores=totals,
        history=history,
        links=mx.slice_update(state.links, links[None], state.length, axes=(0,)),
        done=done,
    )


def _compete(state: State, scores: mx.array, normalizer: mx.array) -> tuple[mx.array, mx.array]:
    """The best continuations of all beams of a sentence together: totals and links, (batch, 2 x beams).

    Twice as many candidates as beams: even if every beam ends, as many are left to live on.
    """
    (batch, beams), vocab = state.scores.shape, scores.shape[-1]
    values, tokens = top_k(scores, 2 * beams)
    totals = (values - normalizer).reshape(batch, beams, -1) + state.scores[..., None]
    links = tokens.reshape(batch, beams, -1) + vocab * numbers(beams, np.uint32)[:, None]
    totals, order = top_k(totals.flatten(1), 2 * beams)
    return totals, mx.take_along_axis(links.flatten(1), order, axis=1)


def _go_on(
    search: SearchConfig, state: State, request: Request, scores: mx.array, normalizer: mx.array, length: mx.array
) -> tuple[mx.array, mx.array]:
    """One continuation of each beam: totals and links, (batch, beams)."""
    (batch, beams), vocab = state.scores.shape, scores.shape[-1]
    if search.temperature:
        tokens = draw(scores, search, request.keys, length)
    elif search.alternatives:
        given = mx.maximum(request.prefix_lengths, int(search.forced_bos_id is not None))
        first = length - given == 1
        rank = mx.where(first, (numbers(batch * beams) % beams)[:, None], 0)
        tokens = mx.take_along_axis(top_k(scores, beams)[1], rank, axis=1)
    else:
        tokens = mx.argmax(scores, axis=-1, keepdims=True)
    values = mx.take_along_axis(scores, tokens, axis=1) - normalizer
    return state.scores + values.reshape(batch, beams), tokens.reshape(batch, beams) + vocab * numbers(beams, np.uint32)


def _finish(
    search: SearchConfig,
    state: State,
    totals: mx.array,
    links: mx.array,
    ended: mx.array,
    length: mx.array,
    generated: mx.array,
) -> State:
    """Take candidates that ended among the finished hypotheses; where beams compete, the best ones of both."""
    beams = search.beam_size
    totals, links, ended = totals[:, :beams], links[:, :beams], ended[:, :beams]
    scores = totals / mx.maximum(generated, 1).astype(mx.float32) ** search.length_penalty
    lengths = mx.broadcast_to(length, links.shape)
    if not search.joint:
        new = ended & (totals > NEVER)
        return state._replace(
            finished_links=mx.where(new, links, state.finished_links),
            finished_lengths=mx.where(new, lengths, state.finished_lengths),
            finished_scores=mx.where(new, scores, state.finished_scores),
        )
    scores = mx.where(ended & ~state.done[:, None], scores, NEVER)
    scores, order = top_k(mx.concatenate([state.finished_scores, scores], axis=1), beams)
    links = mx.concatenate([state.finished_links, links], axis=1)
    lengths = mx.concatenate([state.finished_lengths, lengths], axis=1)
    return state._replace(
        finished_links=mx.take_along_axis(links, order, axis=1),
        finished_lengths=mx.take_along_axis(lengths, order, axis=1),
        finished_scores=scores,
    )


def _decided(search: SearchConfig, state: State, scores: mx.array, generated: mx.array, most: mx.array) -> mx.array:
    """Sentences that nothing can change any more, given the sums of log-probabilities of the living, best first."""
    if not search.joint:
        return (scores == NEVER).all(axis=1)
    worst = state.finished_scores.min(axis=1, keepdims=True)
    over = generated >= most
    if search.early_stopping is True:
        return (over | (worst > NEVER))[:, 0]
    final = most if search.early_stopping == "never" and search.length_penalty > 0 else mx.maximum(generated, 1)
    attainable = scores[:, :1] / final.astype(mx.float32) ** search.length_penalty
    return (over | (attainable <= worst))[:, 0]
