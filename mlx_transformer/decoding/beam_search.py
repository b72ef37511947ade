"""Greedy and beam search and sampling: one loop over compiled steps, on the device, for a batch of sources.

Scores and stopping follow the beam search of transformers 5 (Sutskever et al. 2014; Wu et al. 2016 for the length
penalty). A sentence that is done is frozen, so its result does not depend on the others of its batch; when half of a
batch is done, it leaves. Greedy search is a beam of one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.decode_step import BeamState, decode_step
from mlx_transformer.decoding.hypothesis import Hypothesis, backtrace
from mlx_transformer.decoding.inputs import DecodingInputs, check_per_source, make_decoding_inputs
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.model.transformer import Memory, Transformer

DecodeStep = Callable[[BeamState, Memory, DecodingInputs], BeamState]
NO_HYPOTHESIS = (
    "Search found no hypothesis: the model's logits are not numbers, or all tokens are suppressed; "
    "compute in float32, and look at suppress_ids."
)
STEPS_PER_STOP_TEST = 4  # the host asks only so often which sentences are done: asking makes it wait for the device


class ActiveBatch(NamedTuple):
    """What a batch of sentences has, besides its state.

    Attributes:
        rows: Which of the sources are still in it.
        memory: What the decoder reads of them.
        inputs: What is asked for.
    """

    rows: np.ndarray
    memory: Memory
    inputs: DecodingInputs


def generate_ids(
    model: Transformer,
    source: mx.array,
    search: SearchConfig | None = None,
    max_tokens: list[int] | None = None,
    start_ids: list[int] | None = None,
    forced_bos_ids: list[int] | None = None,
    prefix_ids: list[list[int]] | None = None,
    lines: list[int] | None = None,
) -> list[list[Hypothesis]]:
    """Search for the most probable targets of a batch of sources, or draw some.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        search: How to search; `model.search_defaults` if None.
        max_tokens: A limit for each source, instead of the search's. Never more than the decoder has positions.
        start_ids: The decoder's first input for each source, instead of the model's.
        forced_bos_ids: The first token for each source, instead of the search's.
        prefix_ids: Tokens that each target begins with, after the start token. They count in no score and no length. A
            forced first token comes before a prefix, and does not count either then.
        lines: A number for each source on which, besides the seed, depends what is drawn; 0, 1, 2... if None.

    Returns:
        For each source `num_hypotheses` hypotheses, best first; fewer only where no more exist.

    Raises:
        ValueError: If a source is longer than the encoder has positions, if a number is out of range, or if the logits
            are not numbers.
    """
    if not source.shape[0]:
        return []
    search = search or model.search_defaults
    prefixes = _forced_prefixes(search, forced_bos_ids, prefix_ids or [[]] * source.shape[0])
    inputs, most = make_decoding_inputs(model, source, search, max_tokens, forced_bos_ids, prefixes, lines)
    batch, state = prefill(model, search, source, inputs, start_ids, prefixes)
    step = _compiled_step(model, search, forced=forced_bos_ids is not None)
    found: dict[int, list[Hypothesis]] = {}
    begun = min(map(len, prefixes))
    for position in range(begun, most):
        done = state.done  # not the whole state: while an old cache is alive the next one is a copy
        state = step(grow_cache(state, position), batch.memory, batch.inputs)
        mx.async_eval(state)  # this step is under way before the last one is asked about
        if position > begun and position % STEPS_PER_STOP_TEST == 0:
            (over,) = to_host(done)
            if over.all():
                break
            if 2 * np.count_nonzero(~over) <= len(over):
                found |= _finished_hypotheses(model, search, batch, state, prefixes)
                batch, state = compact_batch(batch, state, surviving_rows(over), search.beam_size)
    found |= _finished_hypotheses(model, search, batch, state, prefixes)
    if not all(found.values()):
        raise ValueError(NO_HYPOTHESIS)
    return [found[row] for row in range(source.shape[0])]


def stream_ids(
    model: Transformer,
    source: mx.array,
    search: SearchConfig,
    max_tokens: list[int] | None = None,
    start_ids: list[int] | None = None,
    forced_bos_ids: list[int] | None = None,
    prefix_ids: list[list[int]] | None = None,
    lines: list[int] | None = None,
) -> Iterator[int]:
    """The tokens of the one hypothesis of one source, each as soon as the next is under way; see `generate_ids`.

    Raises:
        ValueError: As `generate_ids`, and if there is more than one source or beam.
    """
    if source.shape[0] != 1 or search.beam_size != 1:
        raise ValueError(
            f"One hypothesis of one source can be streamed: beam_size {search.beam_size} and {source.shape[0]} sources "
            "are too many; with several beams the first words may still change."
        )
    prefixes = _forced_prefixes(search, forced_bos_ids, prefix_ids or [[]])
    inputs, most = make_decoding_inputs(model, source, search, max_tokens, forced_bos_ids, prefixes, lines)
    batch, state = prefill(model, search, source, inputs, start_ids, prefixes)
    step = _compiled_step(model, search, forced=forced_bos_ids is not None)
    yield from prefixes[0]
    newest = None
    for position in range(len(prefixes[0]), most + 1):
        if position < most:
            state = step(grow_cache(state, position), batch.memory, batch.inputs)
            mx.async_eval(state)
        if newest is not None:
            token, living, finished = (array.item() for array in to_host(*newest))
            if not max(living, finished) > NEG_INF:  # also where the first is not a number
                raise ValueError(NO_HYPOTHESIS)
            if token == model.config.eos_id:
                return
            yield int(token)
        newest = state.tokens, state.scores, state.finished_scores


def to_host(*arrays: mx.array) -> list[np.ndarray]:
    """Arrays on the host: the one place where the search waits for the device."""
    mx.eval(arrays)
    return [np.array(array) for array in arrays]


def _forced_prefixes(
    search: SearchConfig, forced_bos_ids: list[int] | None, prefixes: list[list[int]]
) -> list[list[int]]:
    """What targets begin with: before a prefix comes a forced first token."""
    forced: Sequence[int | None] = forced_bos_ids or [search.forced_bos_id] * len(prefixes)
    if len(forced) != len(prefixes):
        return prefixes  # `make_request` refuses those of them that are not one for each source
    return [
        [first, *prefix] if prefix and first is not None and prefix[0] != first else list(prefix)
        for first, prefix in zip(forced, prefixes, strict=True)
    ]


def _compiled_step(model: Transformer, search: SearchConfig, forced: bool) -> DecodeStep:
    """The compiled step, traced anew for each search but for what it does not read."""
    key = replace(search, max_tokens=None, min_tokens=0, max_length_ratio=None, min_length_ratio=0.0)
    first = 0 if forced or search.forced_bos_id is not None else None  # which token it is stands in the request
    return model.compiled(decode_step, replace(key, num_hypotheses=1, seed=0, forced_bos_id=first))


def prefill(
    model: Transformer,
    search: SearchConfig,
    source: mx.array,
    inputs: DecodingInputs,
    start_ids: list[int] | None,
    prefixes: list[list[int]],
) -> tuple[ActiveBatch, BeamState]:
    """Before the first step: sources are read, and as much of the prefixes as all of them have."""
    batch, beams = source.shape[0], search.beam_size
    memory = model.compiled(_encode_sources, beams)(source)
    starts = start_ids or [model.config.start_id] * batch
    check_per_source("start_ids", starts, batch, 0, model.config.target_vocab_size - 1)
    begun = min(map(len, prefixes))
    target = mx.array([[start, *prefix[:begun]] for start, prefix in zip(starts, prefixes, strict=True)], mx.uint32)
    cache = model.new_cache(batch, _cache_capacity(begun + 1))
    if begun:
        model.decode(target[:, :-1], memory._replace(mask=memory.mask[:, :1, :1]), cache)
    history = mx.pad(target, [(0, 0), (0, cache.capacity - begun)] if search.reads_history else [(0, 0), (0, 0)])
    none = mx.full((batch, beams), NEG_INF)
    state = BeamState(
        cache=[mx.repeat(layer, beams, axis=0) for layer in cache.layers],
        length=cache.length,
        tokens=mx.repeat(target[:, -1:], beams, axis=1),
        # The beams of a sentence are alike at first: where they compete, only one of them may be continued.
        scores=mx.where(mx.arange(beams) == 0, 0.0, none) if search.is_beam_search else mx.zeros((batch, beams)),
        history=mx.repeat(history if search.reads_history else history[:, :0], beams, axis=0),
        backpointers=mx.zeros((cache.capacity, batch, beams), mx.uint32),
        finished_backpointers=mx.zeros((batch, beams), mx.uint32),
        finished_lengths=mx.zeros((batch, beams), mx.int32),
        finished_scores=none,
        done=mx.zeros(batch, mx.bool_),
    )
    return ActiveBatch(np.arange(batch), memory, inputs), state


def _encode_sources(model: Transformer, beams: int, source: mx.array) -> Memory:
    """The memory of a batch; its mask in full shape, or fused attention would copy it in each layer of each step."""
    memory = model.encode(source)
    batch, _, _, length = memory.mask.shape
    shape = (batch, model.config.decoder.num_heads, beams, length)
    return memory._replace(mask=mx.contiguous(mx.broadcast_to(memory.mask, shape)))


def _cache_capacity(length: int) -> int:
    """The smallest of the few capacities that holds `length` tokens: 32, 64, 128 and so on."""
    return max(32, 1 << (length - 1).bit_length())


def grow_cache(state: BeamState, position: int) -> BeamState:
    """The state with room for a token at `position`."""
    missing = _cache_capacity(position + 1) - state.backpointers.shape[0]
    if not missing:
        return state

    def pad(array: mx.array, axis: int) -> mx.array:
        return mx.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])

    return state._replace(
        cache=[pad(layer, 3) for layer in state.cache],
        history=pad(state.history, 1) if state.history.size else state.history,
        backpointers=pad(state.backpointers, 0),
    )


def surviving_rows(over: np.ndarray) -> np.ndarray:
    """The places of a batch of half its size, or a quarter and so on: those not over, and others to fill it up."""
    size, living = len(over), np.count_nonzero(~over)
    while 2 * living <= size:
        size //= 2
    return np.argsort(over, kind="stable")[:size]


def compact_batch(batch: ActiveBatch, state: BeamState, kept: np.ndarray, beams: int) -> tuple[ActiveBatch, BeamState]:
    """A batch of some of its sentences."""
    sentences = mx.array(kept)
    rows = (sentences[:, None] * beams + mx.arange(beams)).flatten()

    def take(tree: Any, indices: mx.array, axis: int = 0) -> Any:
        return tree_map(lambda array: mx.take(array, indices, axis=axis), tree)

    places = {"cache": (rows, 0), "history": (rows, 0), "backpointers": (sentences, 1)}
    taken = {
        name: take(value, *places.get(name, (sentences, 0)))
        for name, value in state._asdict().items()
        if name != "length"
    }
    return (
        ActiveBatch(batch.rows[kept], take(batch.memory, sentences), take(batch.inputs, rows)),
        state._replace(**taken),
    )


def _finished_hypotheses(
    model: Transformer, search: SearchConfig, batch: ActiveBatch, state: BeamState, prefixes: list[list[int]]
) -> dict[int, list[Hypothesis]]:
    """The finished hypotheses of each sentence of a batch, by its row among the sources."""
    vocab, eos_id = model.config.target_vocab_size, model.config.eos_id
    backpointers, last, lengths, scores = to_host(
        state.backpointers, state.finished_backpointers, state.finished_lengths, state.finished_scores
    )
    order = np.argsort(-scores, axis=1, kind="stable") if search.temperature else np.arange(search.beam_size)[None]
    ids = backtrace(backpointers, last, lengths, vocab)
    found = {}
    for i, row in enumerate(batch.rows.tolist()):
        best = [k for k in np.broadcast_to(order, scores.shape)[i].tolist() if scores[i, k] > NEG_INF]
        found[row] = [
            _make_hypothesis(prefixes[row], ids[i, k, : lengths[i, k]].tolist(), float(scores[i, k]), eos_id)
            for k in best[: search.num_hypotheses]
        ]
    return found


def _make_hypothesis(prefix: list[int], ids: list[int], score: float, eos_id: int) -> Hypothesis:
    ids = [*prefix, *ids[len(prefix) :]]  # of a prefix that was read at once there are no links
    stopped = ids[-1] == eos_id
    return Hypothesis(ids[:-1] if stopped else ids, score, "stop" if stopped else "length")
