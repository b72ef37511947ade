"""Greedy search, beam search and sampling: one loop of compiled decode steps for a batch of sources.

Scores and stopping follow the beam search of transformers 5 (Sutskever et al. 2014; Wu et al. 2016 for the length
penalty). Greedy search is a beam of one. A finished sentence is frozen, so its result does not depend on the rest of
the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.active_batch import cache_capacity, first_tokens, prefill, resize_state
from mlx_transformer.decoding.decode_step import decode_step
from mlx_transformer.decoding.hypothesis import Hypothesis, NoHypothesisError
from mlx_transformer.decoding.inputs import RequiredPhrases, make_decoding_inputs
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.decoding.running_search import DecodeStep, RunningSearch, forced_prefixes, start_step, to_host
from mlx_transformer.messages import short_repr
from mlx_transformer.model.shortlist import Shortlist
from mlx_transformer.model.token_ids import check_token_ids
from mlx_transformer.model.transformer import Transformer


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
    sizes: Sequence[int] = (),
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
        sizes: The sizes that the batch is padded to, increasing, so that few shapes are compiled; none for any size.

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
    rows = select_output_rows(model, shortlist, search, required_phrases, forced_bos_ids, prefix_ids)
    step = compile_step(model, search, scores, forced_bos_ids is not None, continues_word, rows)
    running = RunningSearch(model, search, step, sizes)
    keys = running.add(source, max_tokens, start_ids, forced_bos_ids, prefix_ids, lines, required_phrases)
    hypotheses: dict[int, list[Hypothesis]] = {}
    while running.num_unfinished:
        hypotheses |= running.run()
    return check_hypotheses([hypotheses[key] for key in keys], scores)


def check_hypotheses(results: list[list[Hypothesis]], scores: bool) -> list[list[Hypothesis]]:
    """Return the hypotheses of each source, with scores or NaN; NoHypothesisError if a source has none."""
    if not all(results):
        raise NoHypothesisError(results)
    return results if scores else [[replace(hypothesis, score=math.nan) for hypothesis in row] for row in results]


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
    prefixes = forced_prefixes(search, forced_bos_ids, prefix_ids or [[]])
    inputs, (limit,) = make_decoding_inputs(model, source, search, max_tokens, forced_bos_ids, prefixes, lines)
    length = len(prefixes[0])
    target = first_tokens(model.config, start_ids, prefixes, length)
    memory, inputs, state = prefill(model, search, source, inputs, target, cache_capacity(length + 1), 1)
    rows = select_output_rows(model, shortlist, search, None, forced_bos_ids, prefix_ids)
    step = compile_step(model, search, scores=False, forced=forced_bos_ids is not None, shortlist=rows)
    yield from prefixes[0]
    previous = None
    for position in range(length, limit + 1):
        if position < limit:
            capacity = max(cache_capacity(position + 1), len(state.backpointers))
            state = step(resize_state(model, state, 0, capacity), memory, inputs)
            start_step(state)
        if previous is not None:
            token, score, finished_score = (array.item() for array in to_host(*previous))
            if not max(score, finished_score) > NEG_INF:  # true for NaN as well
                raise NoHypothesisError([[]])
            if token in model.config.eos_ids:
                return
            yield int(token)
        previous = state.tokens, state.scores, state.finished_scores


def compile_step(
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


def select_output_rows(
    model: Transformer,
    shortlist: Sequence[int] | np.ndarray | None,
    search: SearchConfig,
    required_phrases: RequiredPhrases | None = None,
    forced_bos_ids: list[int] | None = None,
    prefix_ids: list[list[int]] | None = None,
) -> Shortlist | None:
    """Return the rows of the output layer for the tokens of a shortlist, with those that every target may need."""
    if shortlist is None:
        return None
    ids, vocab_size = np.asarray(shortlist), model.config.target_vocab_size
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(f"shortlist must be a list of token ids, not {short_repr(shortlist)}.")
    required = [token for phrases in required_phrases or [] for phrase in phrases for token in phrase]
    ids = np.concatenate([ids, [*model.config.eos_ids, *required]]).astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"shortlist must be token ids from 0 to {vocab_size - 1}, not {wrong}: use the model's own.")
    forced = {search.forced_bos_id, search.forced_eos_id, *(forced_bos_ids or [])}
    forced |= {token for prefix in prefix_ids or [] for token in prefix}
    tokens = [token for token in forced if token is not None and token in range(vocab_size)]  # others are errors later
    return model.shortlist(ids, tokens)
