"""One compiled step of the search: pure array code for a batch of sentences and their beams.

Each sentence has `beam_size` beams (unfinished hypotheses) and up to as many finished hypotheses. It is done when no
beam can still replace a finished one. Only in beam search do the beams of a sentence compete. A search with required
phrases has several banks of `beam_size` beams, see `grid_search`; only beams of one bank compete.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.grid_search import end_words, enter_next_bank
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.decoding.logits_processors import (
    NEG_INF,
    is_end_token,
    process_best_logits,
    process_logits,
    reads_all_logits,
)
from mlx_transformer.decoding.sampling import sample
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.reductions import top_k
from mlx_transformer.model.shortlist import Shortlist, columns_to_ids
from mlx_transformer.model.transformer import Memory, Transformer


class BeamState(NamedTuple):
    """Everything that changes from step to step.

    Hypotheses are stored as backpointers: parent beam x vocab + token.

    Attributes:
        cache: Keys and values, or states of a recurrence, of each decoder layer; rows are batch x beams.
        length: Number of positions in the cache, int32 scalar.
        starts: The position at which the target of each row begins, int32 (rows, 1); (1, 1), zero, if all begin at 0.
        tokens: The last token of each beam, uint32 (batch, beams), bank by bank.
        scores: Sum of log-probabilities of each beam, best first in its bank; -inf for an unused beam, (batch, beams).
        history: Start token and generated tokens of each beam, uint32 (rows, capacity + 1), wherever its target begins;
            width 0 if no logits processor reads it.
        backpointers: The backpointer of each beam at each position, uint32 (capacity, batch, beams).
        finished_backpointers: The last backpointer of each finished hypothesis, uint32 (batch, beam_size).
        finished_lengths: Number of tokens, including prefix and end token, (batch, beam_size).
        finished_scores: Normalised scores; -inf for an unused slot, (batch, beam_size).
        done: True for sentences whose result is final, (batch,).
    """

    cache: list[mx.array]
    length: mx.array
    starts: mx.array
    tokens: mx.array
    scores: mx.array
    history: mx.array
    backpointers: mx.array
    finished_backpointers: mx.array
    finished_lengths: mx.array
    finished_scores: mx.array
    done: mx.array


def decode_step(
    model: Transformer,
    search: SearchConfig,
    scores: bool,
    state: BeamState,
    memory: Memory,
    inputs: DecodingInputs,
    continues_word: mx.array,
    shortlist: Shortlist | None,
) -> BeamState:
    """Extend every beam by one token and keep the best; see `generate_ids` for `scores` and `continues_word`."""
    batch, beams = state.tokens.shape
    cache = model.make_cache(list(state.cache), state.length, state.starts)
    logits = model.decode(state.tokens.reshape(-1, 1), memory, cache, shortlist=shortlist)[:, -1]
    vocab, lengths = model.config.target_vocab_size, cache.lengths
    if search.is_beam_search:
        totals, backpointers = expand_beams(
            search, model.config, state, inputs, logits, lengths, continues_word, shortlist
        )
    else:
        totals, backpointers = extend_each_beam(
            search, model.config, state, inputs, logits, lengths, scores or beams > 1, shortlist
        )
    max_new_tokens = inputs.max_new_tokens[::beams]
    generated = lengths[::beams] - inputs.prefix_lengths[::beams]
    ended = (is_end_token(backpointers % vocab, model.config) & (generated > 0)) | (generated >= max_new_tokens)
    state = _add_finished(search, state, totals, backpointers, ended, lengths[::beams], generated)
    totals = mx.where(ended, NEG_INF, totals)
    if search.is_beam_search:
        # The best unfinished candidates of each bank, still in order of their scores.
        candidates = totals.shape[1] * search.beam_size // beams
        ranks = constant_arange(candidates) + candidates * ended.reshape(-1, candidates)
        order = mx.argsort(ranks, axis=1)[:, : search.beam_size]
        totals, backpointers = (
            mx.take_along_axis(array.reshape(-1, candidates), order, axis=1).reshape(batch, beams)
            for array in (totals, backpointers)
        )
    done = state.done | is_done(search, state, totals, generated, max_new_tokens)
    parents = (backpointers // vocab + beams * constant_arange(batch, np.uint32)[:, None]).flatten()
    tokens, history = backpointers % vocab, state.history
    if search.reads_history:
        history = history if not search.is_beam_search else mx.take(history, parents, axis=0)
        history = mx.where(constant_arange(history.shape[1]) == lengths, tokens.reshape(-1, 1), history)
    starts = state.starts
    if starts.shape[0] > 1:  # a target that is final stays within the decoder's positions
        starts = mx.where(mx.repeat(done, beams)[:, None], cache.length, starts)
    return state._replace(
        cache=[mx.take(layer, parents, axis=0) for layer in cache.layers] if search.is_beam_search else cache.layers,
        length=cache.length,
        starts=starts,
        tokens=tokens,
        scores=totals,
        history=history,
        backpointers=mx.slice_update(state.backpointers, backpointers[None], state.length, axes=(0,)),
        done=done,
    )


def expand_beams(
    search: SearchConfig,
    config: ModelConfig,
    state: BeamState,
    inputs: DecodingInputs,
    logits: mx.array,
    lengths: mx.array,
    continues_word: mx.array,
    shortlist: Shortlist | None,
) -> tuple[mx.array, mx.array]:
    """Return the best continuations over all beams of a bank, given the logits of the next token, (rows, columns).

    Each beam may end in as many ways as there are end tokens. There are `beam_size` more candidates than that, so that
    `beam_size` of them are unfinished even if all others end.

    Returns:
        Sums of log-probabilities and backpointers, (batch, banks x candidates), best first in each bank.
    """
    (batch, beams), vocab = state.scores.shape, config.target_vocab_size
    banks, candidates = beams // search.beam_size, (1 + len(config.eos_ids)) * search.beam_size
    if banks == 1 and not reads_all_logits(search, config):
        best, tokens, normalizer = process_best_logits(logits, candidates, search, config, inputs, lengths, shortlist)
    else:
        scores, normalizer = process_logits(logits, search, config, inputs, state.history, lengths, shortlist=shortlist)
        if continues_word.size and banks > 1:
            last = mx.take(state.backpointers, mx.maximum(state.length - 1, 0), axis=0)
            scores = end_words(scores, last, inputs, continues_word, banks, shortlist)
        staying = scores if banks == 1 else mx.where(inputs.in_phrase, NEG_INF, scores)
        best, columns = top_k(staying, candidates)
        tokens = columns_to_ids(columns, shortlist)
    totals = best - normalizer + state.scores.reshape(-1, 1)
    backpointers = tokens.reshape(batch, beams, -1) + vocab * constant_arange(beams, np.uint32)[:, None]
    totals, backpointers = totals.reshape(batch * banks, -1), backpointers.reshape(batch * banks, -1)
    if banks > 1:
        entering = enter_next_bank(state.scores, scores, normalizer, inputs, banks, shortlist)
        totals = mx.concatenate([totals, entering[0]], axis=1)
        backpointers = mx.concatenate([backpointers, entering[1]], axis=1)
    totals, order = top_k(totals, candidates)
    backpointers = mx.take_along_axis(backpointers, order, axis=1)
    return totals.reshape(batch, -1), backpointers.reshape(batch, -1)


def extend_each_beam(
    search: SearchConfig,
    config: ModelConfig,
    state: BeamState,
    inputs: DecodingInputs,
    logits: mx.array,
    lengths: mx.array,
    normalize: bool,
    shortlist: Shortlist | None,
) -> tuple[mx.array, mx.array]:
    """Return one continuation of each beam: sums of log-probabilities and backpointers, (batch, beams).

    See `process_logits` for the arguments.
    """
    (batch, beams), vocab = state.scores.shape, config.target_vocab_size
    scores, normalizer = process_logits(logits, search, config, inputs, state.history, lengths, normalize, shortlist)
    if search.temperature:
        columns = sample(scores, search, inputs.keys, lengths, shortlist)
    elif search.alternatives:
        num_forced = mx.maximum(inputs.prefix_lengths, int(search.forced_bos_id is not None))
        is_first = lengths - num_forced == 1
        rank = mx.where(is_first, (constant_arange(batch * beams) % beams)[:, None], 0)
        columns = mx.take_along_axis(top_k(scores, beams)[1], rank, axis=1)
    else:
        columns = mx.argmax(scores, axis=-1, keepdims=True)
    logprobs = mx.take_along_axis(scores, columns, axis=1) - normalizer
    tokens = columns_to_ids(columns, shortlist)
    backpointers = tokens.reshape(batch, beams) + vocab * constant_arange(beams, np.uint32)
    return state.scores + logprobs.reshape(batch, beams), backpointers


def _add_finished(
    search: SearchConfig,
    state: BeamState,
    totals: mx.array,
    backpointers: mx.array,
    ended: mx.array,
    lengths: mx.array,
    generated: mx.array,
) -> BeamState:
    """Add candidates of the last bank that ended to the finished hypotheses; in beam search, keep the best of both."""
    beams, first = search.beam_size, totals.shape[1] - totals.shape[1] * search.beam_size // state.tokens.shape[1]
    totals, backpointers, ended = (array[:, first:][:, :beams] for array in (totals, backpointers, ended))
    scores = totals / mx.maximum(generated, 1).astype(mx.float32) ** search.length_penalty
    lengths = mx.broadcast_to(lengths, backpointers.shape)
    if not search.is_beam_search:
        newly_finished = ended & (totals > NEG_INF)
        return state._replace(
            finished_backpointers=mx.where(newly_finished, backpointers, state.finished_backpointers),
            finished_lengths=mx.where(newly_finished, lengths, state.finished_lengths),
            finished_scores=mx.where(newly_finished, scores, state.finished_scores),
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
    """Return which sentences are final, given the beams' sums of log-probabilities, best first in a bank, (batch,)."""
    if not search.is_beam_search:
        return (scores == NEG_INF).all(axis=1)
    worst = state.finished_scores.min(axis=1, keepdims=True)
    at_limit = generated >= max_new_tokens
    if search.early_stopping is True:
        return (at_limit | (worst > NEG_INF))[:, 0]
    can_gain_by_length = search.early_stopping == "never" and search.length_penalty > 0
    length = max_new_tokens if can_gain_by_length else mx.maximum(generated, 1)
    best = scores[:, :: search.beam_size].max(axis=1, keepdims=True)  # of all banks
    attainable = best / length.astype(mx.float32) ** search.length_penalty
    return (at_limit | (attainable <= worst))[:, 0]
