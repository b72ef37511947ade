"""Greedy search, beam search and sampling: one loop of compiled decode steps for a batch of sources.

Scores and stopping follow the beam search of transformers 5 (Sutskever et al. 2014; Wu et al. 2016 for the length
penalty). Greedy search is a beam of one. A finished sentence is frozen, so its result does not depend on the rest of
the batch; when half of the sentences have finished, they leave the batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.batch_sizes import vector_batch_size
from mlx_transformer.decoding.decode_step import BeamState, decode_step
from mlx_transformer.decoding.hypothesis import Hypothesis, NoHypothesisError, backtrace
from mlx_transformer.decoding.inputs import DecodingInputs, RequiredPhrases, check_per_source, make_decoding_inputs
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.messages import short_repr
from mlx_transformer.model.shortlist import Shortlist
from mlx_transformer.model.token_ids import check_token_ids
from mlx_transformer.model.transformer import Memory, Transformer

DecodeStep = Callable[[BeamState, Memory, DecodingInputs], BeamState]
STEPS_PER_STOP_TEST = 4  # a stop test makes the host wait for the device


class ActiveBatch(NamedTuple):
    """The sentences that are still being decoded.

    Attributes:
        source_rows: Their rows among the sources.
        memory: Their encoded sources.
        inputs: Their per-sentence settings.
    """

    source_rows: np.ndarray
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
    scores: bool = True,
    required_phrases: RequiredPhrases | None = None,
    continues_word: np.ndarray | None = None,
    shortlist: Sequence[int] | np.ndarray | None = None,
) -> list[list[Hypothesis]]:
    """Search for the most probable targets of a batch of sources, or sample targets.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        search: The search configuration; `model.search_defaults` if None.
        max_tokens: Maximum number of generated tokens for each source; overrides the search configuration.
        start_ids: The decoder's start token for each source; overrides the model configuration.
        forced_bos_ids: The first generated token for each source; overrides the search configuration.
        prefix_ids: Target prefix for each source, after the start token. It does not count in score or length; nor does
            a forced first token, which precedes the prefix.
        lines: Line number of each source, which selects its random numbers together with the seed; 0, 1, 2... if None.
        scores: Whether hypotheses have scores. Without them a single beam needs no normalisation over the vocabulary,
            which is faster; the scores are NaN then.
        required_phrases: Token ids of the phrases that the target of each source must contain, in order; see
            `grid_search`. With n tokens in all phrases of a source, n + 1 times as many beams are searched.
        continues_word: Which tokens continue the word before them, bool (vocab,); they do not follow a phrase.
        shortlist: The token ids that may be generated in this batch; None for all. Only these logits are computed,
            and probabilities are normalised over them. End tokens and the tokens of required phrases are added.

    Returns:
        `num_hypotheses` hypotheses for each source, best first; fewer only if the search space holds no more.

    Raises:
        NoHypothesisError: If logits are NaN, or all tokens are suppressed; it has the hypotheses of the other sources.
        ValueError: If a source is longer than the encoder's positions, or an argument is out of range.
    """
    check_token_ids("source", source, model.config.source_vocab_size)
    if not source.shape[0]:
        return []
    search = search or model.search_defaults
    prefixes = _forced_prefixes(search, forced_bos_ids, prefix_ids or [[]] * source.shape[0])
    settings = max_tokens, forced_bos_ids, prefixes, lines, required_phrases
    inputs, max_length = make_decoding_inputs(model, source, search, *settings)
    batch, state = prefill(model, search, source, inputs, start_ids, prefixes)
    rows = _select_output_rows(model, shortlist, required_phrases or [])
    step = _compiled_step(model, search, scores, forced_bos_ids is not None, continues_word, rows)
    hypotheses = _decode(model, search, step, batch, state, prefixes, max_length)
    results = [hypotheses[row] for row in range(source.shape[0])]
    if not all(results):
        raise NoHypothesisError(results)
    return results if scores else [[replace(hypothesis, score=math.nan) for hypothesis in row] for row in results]


def _decode(
    model: Transformer,
    search: SearchConfig,
    step: DecodeStep,
    batch: ActiveBatch,
    state: BeamState,
    prefixes: list[list[int]],
    max_length: int,
) -> dict[int, list[Hypothesis]]:
    """Run decode steps until all sentences are final; return the hypotheses of each by its row among the sources."""
    beams = state.tokens.shape[1]
    vector_size = vector_batch_size(model, beams)
    hypotheses: dict[int, list[Hypothesis]] = {}
    first = min(map(len, prefixes))
    for position in range(first, max_length):
        done = state.done  # not the whole state: a reference to the old cache would force a copy
        state = step(grow_cache(model, state, position), batch.memory, batch.inputs)
        start_step(state)  # before waiting for the last one
        if position > first and position % STEPS_PER_STOP_TEST == 0:
            (finished,) = to_host(done)
            if finished.all():
                break
            if len(surviving := surviving_rows(finished, vector_size)) < len(finished):
                hypotheses |= _finished_hypotheses(model, search, batch, state, prefixes)
                batch, state = compact_batch(batch, state, surviving, beams)
    return hypotheses | _finished_hypotheses(model, search, batch, state, prefixes)


def stream_ids(
    model: Transformer,
    source: mx.array,
    search: SearchConfig,
    max_tokens: list[int] | None = None,
    start_ids: list[int] | None = None,
    forced_bos_ids: list[int] | None = None,
    prefix_ids: list[list[int]] | None = None,
    lines: list[int] | None = None,
    shortlist: Sequence[int] | np.ndarray | None = None,
) -> Iterator[int]:
    """Yield the tokens of one source's hypothesis one by one, while the next is being computed; see `generate_ids`.

    Raises:
        ValueError: As in `generate_ids`, and if there is more than one source or beam.
    """
    check_token_ids("source", source, model.config.source_vocab_size)
    if source.shape[0] != 1 or search.beam_size != 1:
        raise ValueError(
            f"Streaming needs one source and beam_size 1, not {source.shape[0]} and {search.beam_size}: with several "
            "beams the first words may still change."
        )
    prefixes = _forced_prefixes(search, forced_bos_ids, prefix_ids or [[]])
    inputs, max_length = make_decoding_inputs(model, source, search, max_tokens, forced_bos_ids, prefixes, lines)
    batch, state = prefill(model, search, source, inputs, start_ids, prefixes)
    rows = _select_output_rows(model, shortlist, [])
    step = _compiled_step(model, search, scores=False, forced=forced_bos_ids is not None, shortlist=rows)
    yield from prefixes[0]
    previous = None
    for position in range(len(prefixes[0]), max_length + 1):
        if position < max_length:
            state = step(grow_cache(model, state, position), batch.memory, batch.inputs)
            start_step(state)
        if previous is not None:
            token, score, finished_score = (array.item() for array in to_host(*previous))
            if not max(score, finished_score) > NEG_INF:  # true for NaN as well
                raise NoHypothesisError([[]])
            if token in model.config.eos_ids:
                return
            yield int(token)
        previous = state.tokens, state.scores, state.finished_scores


def start_step(state: BeamState) -> None:
    """Start computing a step; on a CPU finish it, because the next step would copy a cache that is still in use."""
    mx.async_eval(state)
    if mx.default_device() == mx.cpu:
        mx.eval(state)


def to_host(*arrays: mx.array) -> list[np.ndarray]:
    """Copy arrays to the host; the search waits for the device here only."""
    mx.eval(arrays)
    return [np.array(array) for array in arrays]


def _forced_prefixes(
    search: SearchConfig, forced_bos_ids: list[int] | None, prefixes: list[list[int]]
) -> list[list[int]]:
    """Return the target prefixes, each preceded by the forced first token, if there is one."""
    forced: Sequence[int | None] = forced_bos_ids or [search.forced_bos_id] * len(prefixes)
    if len(forced) != len(prefixes):
        return prefixes  # `make_decoding_inputs` raises the error
    return [
        [first, *prefix] if prefix and first is not None and prefix[0] != first else list(prefix)
        for first, prefix in zip(forced, prefixes, strict=True)
    ]


def _compiled_step(
    model: Transformer,
    search: SearchConfig,
    scores: bool,
    forced: bool,
    continues_word: np.ndarray | None = None,
    shortlist: Shortlist | None = None,
) -> DecodeStep:
    """Return the compiled decode step; settings that it does not read share one trace."""
    key = replace(search, max_tokens=None, min_tokens=0, max_length_ratio=None, min_length_ratio=0.0)
    first = -1 if forced or search.forced_bos_id is not None else None  # its id is in the inputs
    step = model.compiled(decode_step, replace(key, num_hypotheses=1, seed=0, forced_bos_id=first), scores)
    word_mask = mx.array([] if continues_word is None else continues_word, mx.bool_)
    if word_mask.size not in (0, model.config.target_vocab_size):
        raise ValueError(
            f"continues_word must have one value for each of {model.config.target_vocab_size} tokens, not "
            f"{word_mask.size}: use that of the model's tokenizer."
        )
    return lambda state, memory, inputs: step(state, memory, inputs, word_mask, shortlist)


def _select_output_rows(
    model: Transformer, shortlist: Sequence[int] | np.ndarray | None, required_phrases: RequiredPhrases
) -> Shortlist | None:
    """Return the rows of the output layer for the tokens of a shortlist, with those that every target may need."""
    if shortlist is None:
        return None
    ids, vocab_size = np.asarray(shortlist), model.config.target_vocab_size
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(f"shortlist must be a list of token ids, not {short_repr(shortlist)}.")
    required = [token for phrases in required_phrases for phrase in phrases for token in phrase]
    ids = np.concatenate([ids, [*model.config.eos_ids, *required]]).astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"shortlist must be token ids from 0 to {vocab_size - 1}, not {wrong}: use the model's own.")
    return model.shortlist(ids)


def prefill(
    model: Transformer,
    search: SearchConfig,
    source: mx.array,
    inputs: DecodingInputs,
    start_ids: list[int] | None,
    prefixes: list[list[int]],
) -> tuple[ActiveBatch, BeamState]:
    """Encode the sources and run the decoder over the prefixes, up to the length of the shortest one."""
    batch = source.shape[0]
    beams = inputs.keys.shape[0] // batch
    memory = model.compiled(_encode_sources, beams)(source)
    starts = start_ids or [model.config.start_id] * batch
    check_per_source("start_ids", starts, batch, 0, model.config.target_vocab_size - 1)
    length = min(map(len, prefixes))
    target = mx.array([[start, *prefix[:length]] for start, prefix in zip(starts, prefixes, strict=True)], mx.uint32)
    capacity = _cache_capacity(length + 1)
    cache = model.new_cache(batch, capacity)
    if length:
        model.decode(target[:, :-1], memory._replace(mask=memory.mask[:, :1, :1]), cache)
    history = mx.pad(target, [(0, 0), (0, capacity - length)] if search.reads_history else [(0, 0), (0, 0)])
    # All beams of a sentence start out equal: in beam search only one may be continued, the first of its first bank.
    num_required = (inputs.required_ids >= 0).sum(axis=1).reshape(batch, beams).sum(axis=1, keepdims=True)
    is_first = mx.arange(beams) == beams - search.beam_size - num_required
    finished = (batch, search.beam_size)
    state = BeamState(
        cache=[mx.repeat(layer, beams, axis=0) for layer in cache.layers],
        length=cache.length,
        tokens=mx.repeat(target[:, -1:], beams, axis=1),
        scores=mx.where(is_first | (not search.is_beam_search), 0.0, NEG_INF),
        history=mx.repeat(history if search.reads_history else history[:, :0], beams, axis=0),
        # Each beam is its own parent.
        backpointers=mx.zeros((capacity, batch, 1), mx.uint32)
        + model.config.target_vocab_size * mx.arange(beams, dtype=mx.uint32),
        finished_backpointers=mx.zeros(finished, mx.uint32),
        finished_lengths=mx.zeros(finished, mx.int32),
        finished_scores=mx.full(finished, NEG_INF),
        done=mx.zeros(batch, mx.bool_),
    )
    return ActiveBatch(np.arange(batch), memory, inputs), state


def _encode_sources(model: Transformer, beams: int, source: mx.array) -> Memory:
    """Encode sources; the mask gets its full shape here, because fused attention would expand it in every layer."""
    memory = model.encode(source)
    batch, _, _, length = memory.mask.shape
    shape = (batch, model.config.require_decoder().num_heads, beams, length)
    return memory._replace(mask=mx.contiguous(mx.broadcast_to(memory.mask, shape)))


def _cache_capacity(length: int) -> int:
    """Return the smallest of the capacities 16, 32, 64, ... that holds `length` tokens."""
    return max(16, 1 << (length - 1).bit_length())


def grow_cache(model: Transformer, state: BeamState, position: int) -> BeamState:
    """Enlarge the state's arrays, if needed, to hold a token at `position`."""
    missing = _cache_capacity(position + 1) - state.backpointers.shape[0]
    if not missing:
        return state

    cache = model.make_cache(list(state.cache), state.length)
    cache.grow(missing)

    def pad(array: mx.array, axis: int) -> mx.array:
        return mx.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])

    return state._replace(
        cache=cache.layers,
        history=pad(state.history, 1) if state.history.size else state.history,
        backpointers=pad(state.backpointers, 0),
    )


def surviving_rows(finished: np.ndarray, vector_size: int) -> np.ndarray:
    """Return the unfinished rows of a batch, and finished ones to fill up a half, a quarter, ... of its size.

    A batch may also shrink to `vector_size`, see `vector_batch_size`, before half of it has finished.
    """
    size, unfinished = len(finished), np.count_nonzero(~finished)
    if unfinished <= vector_size < size:
        size = vector_size
    while 2 * unfinished <= size:
        size //= 2
    return np.argsort(finished, kind="stable")[:size]


def compact_batch(
    batch: ActiveBatch, state: BeamState, surviving: np.ndarray, beams: int
) -> tuple[ActiveBatch, BeamState]:
    """Keep only the surviving sentences of a batch and its state."""
    sentences = mx.array(surviving)
    rows = (sentences[:, None] * beams + mx.arange(beams)).flatten()

    def take(tree: Any, rows: mx.array, axis: int = 0) -> Any:
        return tree_map(lambda array: mx.take(array, rows, axis=axis), tree)

    indices = {"cache": (rows, 0), "history": (rows, 0), "backpointers": (sentences, 1)}
    fields = {
        name: take(value, *indices.get(name, (sentences, 0)))
        for name, value in state._asdict().items()
        if name != "length"
    }
    return (
        ActiveBatch(batch.source_rows[surviving], take(batch.memory, sentences), take(batch.inputs, rows)),
        state._replace(**fields),
    )


def _finished_hypotheses(
    model: Transformer, search: SearchConfig, batch: ActiveBatch, state: BeamState, prefixes: list[list[int]]
) -> dict[int, list[Hypothesis]]:
    """Return the finished hypotheses of each sentence by its row among the sources."""
    backpointers, last, lengths, scores = to_host(
        state.backpointers, state.finished_backpointers, state.finished_lengths, state.finished_scores
    )
    order = np.argsort(-scores, axis=1, kind="stable") if search.temperature else np.arange(search.beam_size)[None]
    ids = backtrace(backpointers, last, lengths, model.config.target_vocab_size)
    hypotheses = {}
    for i, row in enumerate(batch.source_rows.tolist()):
        best = [k for k in np.broadcast_to(order, scores.shape)[i].tolist() if scores[i, k] > NEG_INF]
        hypotheses[row] = [
            _make_hypothesis(prefixes[row], ids[i, k, : lengths[i, k]].tolist(), float(scores[i, k]), model.config)
            for k in best[: search.num_hypotheses]
        ]
    return hypotheses


def _make_hypothesis(prefix: list[int], ids: list[int], score: float, config: ModelConfig) -> Hypothesis:
    ids = [*prefix, *ids[len(prefix) :]]  # prefilled tokens have no backpointers
    if ids[-1] in config.eos_ids:
        return Hypothesis(ids[:-1], score, "stop", end_id=ids[-1])
    return Hypothesis(ids, score, "length")
