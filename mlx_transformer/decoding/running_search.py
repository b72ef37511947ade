"""A search that sentences join while it runs, and leave when they are final (Yu et al. 2022, "continuous batching").

All sentences share the positions of one cache. The target of a sentence that joins begins at the next position, and
attends to the positions from there on, so that a result does not depend on the other sentences. A batch shrinks when
those that are left fit a smaller size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.active_batch import (
    ActiveBatch,
    cache_capacity,
    first_tokens,
    prefill,
    resize_sources,
    resize_state,
    select_sentences,
)
from mlx_transformer.decoding.batch_sizes import padded_batch_size, vector_batch_size
from mlx_transformer.decoding.decode_step import BeamState
from mlx_transformer.decoding.hypothesis import Hypothesis, backtrace
from mlx_transformer.decoding.inputs import DecodingInputs, RequiredPhrases, make_decoding_inputs
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.environment import keep_freed_memory
from mlx_transformer.model.transformer import Memory, Transformer

DecodeStep = Callable[[BeamState, Memory, DecodingInputs], BeamState]
STEPS_PER_STOP_TEST = 4  # a stop test makes the host wait for the device
FREE = -1  # the key of a slot that no sentence has


class Slots(NamedTuple):
    """What the host knows of the slots in a batch, each array (batch,).

    Attributes:
        keys: The key of the sentence that has a slot; FREE if none has it. It is computed all the same.
        starts: The position in the cache at which its target begins.
        ends: The position at which it is final at the latest.
        source_lengths: Its padded source length.
    """

    keys: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    source_lengths: np.ndarray

    @classmethod
    def of(cls, keys: Sequence[int], start: int, limits: Sequence[int], source_length: int, size: int) -> "Slots":
        """Return the slots of sentences whose targets have at most `limits` tokens, and free ones up to `size`."""
        free = [FREE] * (size - len(keys))
        ends = [start + limit for limit in limits] + free
        return cls(*map(np.array, ([*keys, *free], [start] * size, ends, [source_length] * size)))


class RunningSearch:
    """A search over sentences that may join it while it runs.

    Attributes:
        sizes: The sizes that batches are padded to, increasing; none for batches of any size.
    """

    def __init__(self, model: Transformer, search: SearchConfig, step: DecodeStep, sizes: Sequence[int] = ()) -> None:
        """Make a search without sentences.

        Args:
            model: The model, in evaluation mode.
            search: The search configuration.
            step: Its compiled decode step.
            sizes: See the class.
        """
        self.sizes = sizes
        self._model, self._search, self._step = model, search, step
        self._slots = Slots(*[np.zeros(0, np.int64)] * 4)
        self._batch: ActiveBatch
        self._prefixes: dict[int, list[int]] = {}  # by key
        self._position = self._num_added = self._num_steps = 0

    @property
    def source_length(self) -> int:
        """The longest padded source of those that are not final, 0 if all are."""
        return int(self._slots.source_lengths[self._slots.keys != FREE].max(initial=0))

    @property
    def num_unfinished(self) -> int:
        """Number of sentences that are not final."""
        return int(np.count_nonzero(self._slots.keys != FREE))

    def add(
        self,
        source: mx.array,
        max_tokens: list[int] | None = None,
        start_ids: list[int] | None = None,
        forced_bos_ids: list[int] | None = None,
        prefix_ids: list[list[int]] | None = None,
        lines: list[int] | None = None,
        required_phrases: RequiredPhrases | None = None,
    ) -> list[int]:
        """Let sources join; return the key of each. See `generate_ids` for arguments and errors."""
        count = source.shape[0]
        prefixes = forced_prefixes(self._search, forced_bos_ids, prefix_ids or [[]] * count)
        settings = max_tokens, forced_bos_ids, prefixes, lines, required_phrases
        inputs, limits = make_decoding_inputs(self._model, source, self._search, *settings)
        is_running = self.num_unfinished > 0
        # The prefix of a sentence that joins is forced instead, token by token.
        prefilled = 0 if is_running else min(map(len, prefixes))
        target = first_tokens(self._model.config, start_ids, prefixes, prefilled)
        if is_running:
            self._fit_cache()
        else:
            self._position, self._num_steps = prefilled, 0
        size, capacity = padded_batch_size(count, self.sizes), cache_capacity(self._position + 1)
        batch = prefill(self._model, self._search, source, inputs, target, capacity, size)
        keys, start = range(self._num_added, self._num_added + count), self._position - prefilled
        slots = Slots.of(keys, start, limits, source.shape[1], size)
        self._num_added += count
        self._prefixes |= zip(keys, prefixes, strict=True)
        if is_running:
            self._join(batch, slots)
        else:
            self._batch, self._slots = batch, slots
        return list(keys)

    def run(self) -> dict[int, list[Hypothesis]]:
        """Run steps up to the next stop test; return the hypotheses of the sentences that are final, by key."""
        if not self.num_unfinished:
            return {}
        self._shrink()
        while self._position < max(self._slots.ends[self._slots.keys != FREE], default=0):
            if self._position == len(self._batch.state.backpointers):
                self._fit_cache()
            before = self._batch.state._replace(cache=[])  # a reference to the cache would force a copy
            memory, inputs, state = self._batch
            self._batch = self._batch._replace(state=self._step(state, memory, inputs))
            del state
            start_step(self._batch.state)  # before waiting for the last one
            self._position += 1
            self._num_steps += 1
            if self._num_steps % STEPS_PER_STOP_TEST == 1 < self._num_steps:
                (finished,) = to_host(before.done)
                return self._leave(finished, before)
        return self._leave(np.ones(len(self._slots.keys), np.bool_), self._batch.state)

    def _leave(self, finished: np.ndarray, state: BeamState) -> dict[int, list[Hypothesis]]:
        """Free the slots of finished sentences; return their hypotheses by key."""
        keys, starts, vocab = self._slots.keys, self._slots.starts, self._model.config.target_vocab_size
        rows = np.flatnonzero(finished & (keys != FREE))
        if not rows.size:
            return {}
        backpointers, last, lengths, scores = to_host(
            state.backpointers, state.finished_backpointers, state.finished_lengths, state.finished_scores
        )
        ids = backtrace(backpointers[:, rows], last[rows], lengths[rows], vocab, starts[rows])
        orders = np.argsort(-scores, axis=1, kind="stable") if self._search.temperature else None
        hypotheses = {}
        for row, row_ids in zip(rows.tolist(), ids, strict=True):
            order = range(len(row_ids)) if orders is None else orders[row].tolist()
            best = [k for k in order if scores[row, k] > NEG_INF][: self._search.num_hypotheses]
            prefix = self._prefixes.pop(int(keys[row]))
            hypotheses[int(keys[row])] = [
                make_hypothesis(
                    prefix, row_ids[k, : lengths[row, k]].tolist(), float(scores[row, k]), self._model.config
                )
                for k in best
            ]
        keys[rows] = FREE
        return hypotheses

    def _shrink(self) -> None:
        """Drop slots that are free, if the others fit a smaller batch."""
        is_free = self._slots.keys == FREE
        vector_size = vector_batch_size(self._model, self._batch.state.tokens.shape[1])
        surviving = surviving_rows(is_free, self.sizes or halves(len(is_free), vector_size))
        if len(surviving) < len(is_free):
            self._fit_cache()
            self._select([self._batch], self._slots, surviving)

    def _join(self, newcomers: ActiveBatch, slots: Slots) -> None:
        """Join the sentences of another batch with those that are unfinished."""
        joined = Slots(*map(np.concatenate, zip(self._slots, slots, strict=True)))
        unfinished = np.flatnonzero(joined.keys != FREE)
        size = padded_batch_size(len(unfinished), self.sizes)
        chosen = unfinished[np.arange(size) % len(unfinished)]
        self._select([self._batch, newcomers], joined, chosen)
        self._slots.keys[len(unfinished) :] = FREE

    def _fit_cache(self) -> None:
        """Drop the positions before the first unfinished target, and make room for the next one."""
        keys, starts, ends, source_lengths = self._slots
        first = int(starts[keys != FREE].min())
        self._position -= first
        self._slots = Slots(keys, starts - first, ends - first, source_lengths)
        state = resize_state(self._model, self._batch.state, first, cache_capacity(self._position + 1))
        self._batch = self._batch._replace(state=state)

    def _select(self, batches: Sequence[ActiveBatch], slots: Slots, chosen: np.ndarray) -> None:
        """Go on with some slots of several batches."""
        self._slots = Slots(*(array[chosen] for array in slots))
        keys, starts, _, source_lengths = self._slots
        is_free = keys == FREE
        lengths = int(source_lengths[~is_free].max()), max(batch.inputs.prefix_ids.shape[1] for batch in batches)
        resized = [resize_sources(batch, *lengths, self._model.config.pad_id) for batch in batches]
        memory, inputs, state = select_sentences(resized, chosen)
        rows = np.repeat(np.where(is_free, self._position, starts), state.tokens.shape[1])
        rows = rows if starts[~is_free].any() else np.zeros(1)  # see `BeamState`
        self._batch = ActiveBatch(memory, inputs, state._replace(starts=mx.array(rows, mx.int32)[:, None]))


def start_step(state: BeamState) -> None:
    """Start computing a step; on a CPU finish it, because the next step would copy a cache that is still in use."""
    mx.async_eval(state)
    if mx.default_device() == mx.cpu:
        keep_freed_memory()  # for the next step
        mx.eval(state)


def to_host(*arrays: mx.array) -> list[np.ndarray]:
    """Copy arrays to the host; the search waits for the device here only."""
    mx.eval(arrays)
    return [np.array(array) for array in arrays]


def halves(size: int, vector_size: int) -> list[int]:
    """Return a batch size, its half, quarter, ..., and the `vector_batch_size`, increasing."""
    return sorted({vector_size, *(size >> shift for shift in range(size.bit_length()))} - {0})


def surviving_rows(finished: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Return the unfinished rows of a batch, and finished ones to fill up one of some sizes, which increase."""
    size = padded_batch_size(int(np.count_nonzero(~finished)), sizes)
    return np.argsort(finished, kind="stable")[:size]


def forced_prefixes(
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


def make_hypothesis(prefix: list[int], ids: list[int], score: float, config: ModelConfig) -> Hypothesis:
    """Return the hypothesis of a finished beam, given its target prefix, tokens and score."""
    ids = [*prefix, *ids[len(prefix) :]]  # prefilled tokens have no backpointers
    if ids[-1] in config.eos_ids:
        return Hypothesis(ids[:-1], score, "stop", end_id=ids[-1])
    return Hypothesis(ids, score, "length")
