"""The arrays of the sentences that are being decoded: how they begin, grow, are joined and selected."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.decode_step import BeamState
from mlx_transformer.decoding.inputs import DecodingInputs, check_per_source
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.model.kv_cache import fit
from mlx_transformer.model.transformer import Memory, Transformer


class ActiveBatch(NamedTuple):
    """The sentences that are being decoded.

    Attributes:
        memory: Their encoded sources.
        inputs: Their settings.
        state: Everything that changes from step to step.
    """

    memory: Memory
    inputs: DecodingInputs
    state: BeamState


def first_tokens(config: ModelConfig, start_ids: list[int] | None, prefixes: list[list[int]], length: int) -> mx.array:
    """Return the start token and the first `length` prefix tokens of each target, uint32 (batch, 1 + length).

    Raises:
        ValueError: If there is not one start token for each source, or one is out of range.
    """
    starts = start_ids or [config.start_id] * len(prefixes)
    check_per_source("start_ids", starts, len(prefixes), 0, config.target_vocab_size - 1)
    return mx.array([[start, *prefix[:length]] for start, prefix in zip(starts, prefixes, strict=True)], mx.uint32)


def prefill(
    model: Transformer,
    search: SearchConfig,
    source: mx.array,
    inputs: DecodingInputs,
    target: mx.array,
    capacity: int,
    size: int,
) -> ActiveBatch:
    """Encode sources and run the decoder over the first tokens of their targets, but the last one.

    Args:
        model: The model.
        search: The search configuration.
        source: See `generate_ids`.
        inputs: The settings of each sentence.
        target: See `first_tokens`.
        capacity: Number of positions that the cache has room for.
        size: Number of sentences in the batch, which is filled up with the first ones again.
    """
    beams, batch, length = inputs.keys.shape[0] // source.shape[0], size, target.shape[1] - 1
    if size > source.shape[0]:
        sentences = mx.arange(size) % source.shape[0]
        source, target = source[sentences], target[sentences]
        inputs = take_sentences([inputs], sentences, beams)
    memory = model.compiled(_encode_sources, beams)(source)
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
        starts=cache.starts,
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
    return ActiveBatch(memory, inputs, state)


def _encode_sources(model: Transformer, beams: int, source: mx.array) -> Memory:
    """Encode sources; the mask gets its full shape here, because fused attention would expand it in every layer."""
    memory = model.encode(source)
    batch, _, _, length = memory.mask.shape
    shape = (batch, model.config.require_decoder().num_heads, beams, length)
    return memory._replace(mask=mx.contiguous(mx.broadcast_to(memory.mask, shape)))


def cache_capacity(length: int) -> int:
    """Return the smallest of the capacities 16, 32, 64, ... that holds `length` tokens."""
    return max(16, 1 << (length - 1).bit_length())


def resize_state(model: Transformer, state: BeamState, first: int, capacity: int) -> BeamState:
    """Keep the positions of the cache from `first` on, with room for `capacity` positions."""
    if (first, capacity) == (0, len(state.backpointers)):
        return state
    cache = model.make_cache(list(state.cache), state.length, state.starts)
    cache.resize(first, capacity)
    return state._replace(
        cache=cache.layers,
        length=state.length - first,
        starts=mx.maximum(state.starts - first, 0),
        history=fit(state.history, 1, capacity + 1) if state.history.size else state.history,
        backpointers=fit(state.backpointers, 0, capacity, first),
    )


def resize_sources(batch: ActiveBatch, source_length: int, prefix_length: int, pad_id: int) -> ActiveBatch:
    """Pad or cut sources and prefixes to a length."""
    memory, inputs = batch.memory, batch.inputs
    key_values = [fit(layer, 3, source_length) for layer in memory.key_values]
    return batch._replace(
        memory=Memory(key_values, fit(memory.mask, 3, source_length)),
        inputs=inputs._replace(
            source=fit(inputs.source, 1, source_length, value=pad_id),
            prefix_ids=fit(inputs.prefix_ids, 1, prefix_length),
        ),
    )


def select_sentences(batches: Sequence[ActiveBatch], sentences: np.ndarray) -> ActiveBatch:
    """Return some sentences of several batches, whose cache, sources and prefixes have the same lengths.

    Args:
        batches: The batches; the positions of the result are those of the first.
        sentences: Indices of sentences, counted through all batches.
    """
    memories, inputs, states = zip(*batches, strict=True)
    indices, beams = mx.array(sentences), states[0].tokens.shape[1]
    by_row, axes = ("cache", "history"), {"backpointers": 1}
    fields = {
        name: take_sentences(values, indices, beams if name in by_row else 1, axes.get(name, 0))
        for name, *values in zip(BeamState._fields, *states, strict=True)
        if name not in ("length", "starts")
    }
    return ActiveBatch(
        take_sentences(memories, indices), take_sentences(inputs, indices, beams), states[0]._replace(**fields)
    )


def take_sentences(trees: Sequence[Any], sentences: mx.array, rows: int = 1, axis: int = 0) -> Any:
    """Return a tree with some sentences of the arrays of several trees, each of which has `rows` rows of the axis."""
    indices = sentences if rows == 1 else (sentences[:, None] * rows + mx.arange(rows)).flatten()

    def take(*arrays: mx.array) -> mx.array:
        return mx.take(arrays[0] if len(arrays) == 1 else mx.concatenate(list(arrays), axis), indices, axis)

    return tree_map(take, *trees)
