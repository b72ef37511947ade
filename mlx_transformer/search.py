"""Beam search: one loop over compiled steps, on the device, for a batch of sources; greedy search is a beam of one.

Scores and stopping follow the beam search of transformers 5 (Sutskever et al. 2014; Wu et al. 2016 for the length
penalty): every sentence has `beam_size` living and as many finished hypotheses, and ends when none of the living can
still come in. A sentence that is done is frozen: its result does not depend on the others of its batch.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.cache import Cache
from mlx_transformer.config import SearchConfig
from mlx_transformer.model import Memory, Transformer
from mlx_transformer.processors import NEVER, Request, penalize, process

STEPS_PER_TEST = 4  # the host asks only so often whether all is done: asking makes it wait for the device
CHUNK = 128  # values that are looked at together when the largest are sought


@dataclass(frozen=True)
class Hypothesis:
    """A candidate target.

    Attributes:
        ids: Token ids, without start and end tokens.
        score: Sum of log-probabilities (natural logarithm) / length ** length_penalty, the end token counted.
        finish_reason: "stop" for an end token, "length" where max_tokens was reached.
        text: The text, where a tokenizer was given.
        truncated: Whether the source was cut to the length that the model can read.
    """

    ids: list[int]
    score: float
    finish_reason: str
    text: str | None = None
    truncated: bool = False


class State(NamedTuple):
    """All that changes from step to step; `beams` living and `beams` finished hypotheses of each sentence.

    Attributes:
        cache: Keys and values of each decoder layer, rows are batch x beams.
        length: Number of tokens generated so far, int32 scalar.
        tokens: The newest token of the living, (batch, beams).
        ids: Tokens of the living, (batch, beams, capacity).
        scores: Sum of log-probabilities of the living, best first, (batch, beams).
        finished_ids: Tokens of the finished with their end token, (batch, beams, capacity).
        finished_scores: Normalised scores, best first; minus infinity where there is none yet, (batch, beams).
        finished_lengths: Number of tokens, (batch, beams).
        done: Sentences whose result is final, (batch,).
        all_done: Whether all are, a scalar.
    """

    cache: list[mx.array]
    length: mx.array
    tokens: mx.array
    ids: mx.array
    scores: mx.array
    finished_ids: mx.array
    finished_scores: mx.array
    finished_lengths: mx.array
    done: mx.array
    all_done: mx.array


def generate_ids(
    model: Transformer,
    source: mx.array,
    search: SearchConfig | None = None,
    max_tokens: list[int] | None = None,
    start_ids: list[int] | None = None,
    forced_bos_ids: list[int] | None = None,
) -> list[list[Hypothesis]]:
    """Search for the most probable targets of a batch of sources.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        search: How to search; `model.search_defaults` if None.
        max_tokens: A limit for each source, instead of the search's. Never more than the decoder has positions.
        start_ids: The decoder's first input for each source, instead of the model's.
        forced_bos_ids: The first token for each source, instead of the search's.

    Returns:
        For each source `num_hypotheses` hypotheses, best first; fewer only where no more exist.

    Raises:
        ValueError: If a source is longer than the encoder has positions, if a limit is not positive, or if the logits
            are not numbers.
    """
    search = search or model.search_defaults
    request = _request(model, source, search, max_tokens, start_ids, forced_bos_ids)
    longest = max(np.array(request.limits).tolist())
    forced = forced_bos_ids is not None or search.forced_bos_id is not None
    memory = model.compiled(_encode, search.beam_size)(source)
    # What the step does not read must not be part of its key: each key is traced anew.
    key = replace(search, max_tokens=None, num_hypotheses=1, forced_bos_id=0 if forced else None)
    step = model.compiled(_step, key)
    state = _start(model, search, request, _capacity(1))
    for length in range(longest):
        if length == state.ids.shape[-1]:
            state = _grow(state, _capacity(length + 1))
        all_done = state.all_done
        state = step(state, memory, request)
        mx.async_eval(state)  # the next step is under way before the last one is asked about
        if length and length % STEPS_PER_TEST == 0 and all_done.item():
            break
    return _hypotheses(state, search, model.config.eos_id)


def token_limit(model: Transformer, source_length: int, search: SearchConfig) -> int:
    """The most tokens that the target of a source of `source_length` tokens may have."""
    wanted = 2 * source_length + 50 if search.max_tokens is None else search.max_tokens
    return min(wanted, model.config.decoder.max_length)


def _request(
    model: Transformer,
    source: mx.array,
    search: SearchConfig,
    max_tokens: list[int] | None,
    start_ids: list[int] | None,
    forced_bos_ids: list[int] | None,
) -> Request:
    """What is asked for each source, with the usual values for what is not given."""
    if max_tokens is None:
        lengths = np.array((source != model.config.pad_id).sum(axis=1)).tolist()
        max_tokens = [token_limit(model, length, search) for length in lengths]
    limits = [min(limit, model.config.decoder.max_length) for limit in max_tokens]
    batch, last = source.shape[0], model.config.target_vocab_size - 1
    return Request(
        source,
        _numbers("max_tokens", limits, batch, 1, model.config.decoder.max_length),
        _numbers("start_ids", start_ids or [model.config.start_id] * batch, batch, 0, last),
        _numbers("forced_bos_ids", forced_bos_ids or [search.forced_bos_id or 0] * batch, batch, 0, last),
    )


def _numbers(name: str, values: list[int], count: int, least: int, most: int) -> mx.array:
    """A number for each source, (count,)."""
    if len(values) != count or not all(least <= value <= most for value in values):
        raise ValueError(f"{name} must be {count} numbers from {least} to {most}, one for each source, not {values}.")
    return mx.array(values, mx.int32)


def _encode(model: Transformer, beams: int, source: mx.array) -> Memory:
    """The memory of a batch; its mask in full shape, or fused attention would copy it in each layer of each step."""
    memory = model.encode(source)
    batch, _, _, length = memory.mask.shape
    shape = (batch, model.config.decoder.num_heads, beams, length)
    return memory._replace(mask=mx.contiguous(mx.broadcast_to(memory.mask, shape)))


def _start(model: Transformer, search: SearchConfig, request: Request, capacity: int) -> State:
    """Before the first step: the beams of a sentence are alike, so only the first of them may be continued."""
    batch, beams = request.start_ids.size, search.beam_size
    cache = model.new_cache(batch * beams, capacity)
    none = mx.full((batch, beams), NEVER)
    return State(
        cache=cache.layers,
        length=cache.length,
        tokens=mx.broadcast_to(request.start_ids[:, None], (batch, beams)),
        ids=mx.zeros((batch, beams, capacity), mx.int32),
        scores=mx.where(mx.arange(beams) == 0, 0.0, none),
        finished_ids=mx.zeros((batch, beams, capacity), mx.int32),
        finished_scores=none,
        finished_lengths=mx.zeros((batch, beams), mx.int32),
        done=mx.zeros(batch, mx.bool_),
        all_done=mx.array(False),
    )


def _step(model: Transformer, search: SearchConfig, state: State, memory: Memory, request: Request) -> State:
    """Extend every living hypothesis by one token, keep the best."""
    batch, beams = state.tokens.shape
    cache = Cache(list(state.cache), state.length)
    logits = model.decode(state.tokens.reshape(-1, 1), memory, cache)[:, -1].astype(mx.float32)
    rows = Request(*(mx.repeat(array, beams, axis=0) for array in request))
    history = mx.concatenate([rows.start_ids[:, None], state.ids.flatten(0, 1)], axis=1)
    if search.repetition_penalty != 1 and beams == 1:
        logits = penalize(logits, search.repetition_penalty, history, cache.length)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    logprobs = process(logprobs, search, model.config, rows, history, cache.length)
    vocab = logprobs.shape[-1]

    # Twice as many candidates as beams: even if every beam ends, as many are left to live on.
    totals = state.scores[:, :, None] + logprobs.reshape(batch, beams, vocab)
    scores, places = top_k(totals.reshape(batch, -1), 2 * beams)
    parents, tokens = places // vocab, places % vocab
    written = mx.arange(state.ids.shape[-1]) == state.length
    ids = mx.where(written, tokens[..., None], mx.take_along_axis(state.ids, parents[..., None], axis=1))
    ended = (tokens == model.config.eos_id) | (cache.length >= request.limits[:, None])

    state = _finish(state, search, scores, ids, ended, cache.length)
    places = mx.argsort(mx.arange(2 * beams) + 2 * beams * ended, axis=1)[:, :beams]  # the best that have not ended
    scores = mx.take_along_axis(mx.where(ended, NEVER, scores), places, axis=1)
    kept = (mx.take_along_axis(parents, places, axis=1) + beams * mx.arange(batch)[:, None]).flatten()
    done = state.done | _decided(state, search, scores[:, 0], cache.length, request.limits)
    return state._replace(
        cache=cache.layers if beams == 1 else [mx.take(layer, kept, axis=0) for layer in cache.layers],
        length=cache.length,
        tokens=mx.take_along_axis(tokens, places, axis=1),
        ids=mx.take_along_axis(ids, places[..., None], axis=1),
        scores=scores,
        done=done,
        all_done=done.all(),
    )


def _finish(
    state: State, search: SearchConfig, scores: mx.array, ids: mx.array, ended: mx.array, length: mx.array
) -> State:
    """Take candidates that ended, of the best `beams` ones, among the finished, and keep the best of these."""
    beams = search.beam_size
    accepted = ended & (mx.arange(2 * beams) < beams) & ~state.done[:, None]
    normalised = mx.where(accepted, scores / length.astype(mx.float32) ** search.length_penalty, NEVER)
    finished_scores, places = top_k(mx.concatenate([state.finished_scores, normalised], axis=1), beams)
    all_ids = mx.concatenate([state.finished_ids, ids], axis=1)
    lengths = mx.concatenate([state.finished_lengths, mx.broadcast_to(length, ended.shape)], axis=1)
    return state._replace(
        finished_scores=finished_scores,
        finished_ids=mx.take_along_axis(all_ids, places[..., None], axis=1),
        finished_lengths=mx.take_along_axis(lengths, places, axis=1),
    )


def _decided(state: State, search: SearchConfig, best: mx.array, length: mx.array, limits: mx.array) -> mx.array:
    """Sentences that nothing can change any more, given the sum of log-probabilities of their best living beam."""
    worst = state.finished_scores.min(axis=1)
    full = worst > NEVER
    at_limit = length >= limits
    if search.early_stopping is True or search.beam_size == 1:
        return full | at_limit
    final = limits if search.early_stopping == "never" and search.length_penalty > 0 else length
    attainable = best / final.astype(mx.float32) ** search.length_penalty
    return (attainable <= worst) | at_limit


def top_k(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest values of each row, (rows, values), and their places, largest first; all where there are fewer.

    A GPU would sort the whole row. But the k chunks with the largest maxima hold the k largest values: only they are.
    """
    rows, length = values.shape
    places = mx.broadcast_to(mx.arange(length), values.shape)
    if length > k * CHUNK:
        chunks = mx.pad(values, [(0, 0), (0, -length % CHUNK)], constant_values=NEVER).reshape(rows, -1, CHUNK)
        best = mx.argsort(-chunks.max(axis=-1), axis=-1)[:, :k, None]
        values = mx.take_along_axis(chunks, best, axis=1).reshape(rows, -1)
        places = mx.minimum(best * CHUNK + mx.arange(CHUNK), length - 1).reshape(rows, -1)
    order = mx.argsort(-values, axis=-1)[:, :k]
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(places, order, axis=-1)


def _capacity(length: int) -> int:
    """The smallest of the few capacities that holds `length` tokens: 32, 64, 128 and so on."""
    return max(32, 1 << (length - 1).bit_length())


def _grow(state: State, capacity: int) -> State:
    """Room for `capacity` tokens."""
    missing = capacity - state.ids.shape[-1]

    def pad(array: mx.array, axis: int) -> mx.array:
        return mx.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])

    return state._replace(
        cache=[pad(layer, 3) for layer in state.cache],
        ids=pad(state.ids, 2),
        finished_ids=pad(state.finished_ids, 2),
    )


def _hypotheses(state: State, search: SearchConfig, eos_id: int) -> list[list[Hypothesis]]:
    """Read the finished hypotheses from the device."""
    if not (np.array(state.finished_scores[:, 0]) > NEVER).all():
        raise ValueError(
            "Search found no hypothesis: the model's logits are not numbers, or all tokens are suppressed; "
            "compute in float32, and look at suppress_ids."
        )
    columns = [np.array(a).tolist() for a in (state.finished_ids, state.finished_scores, state.finished_lengths)]
    return [
        [
            _hypothesis(row[:length], score, eos_id)
            for row, score, length in zip(*sentence, strict=True)
            if score > NEVER
        ][: search.num_hypotheses]
        for sentence in zip(*columns, strict=True)
    ]


def _hypothesis(ids: list[int], score: float, eos_id: int) -> Hypothesis:
    stopped = ids[-1] == eos_id
    return Hypothesis(ids[:-1] if stopped else ids, score, "stop" if stopped else "length")
