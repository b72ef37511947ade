"""Scoring of given targets: log-probabilities of their tokens, and word alignments with their sources."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import BATCH_TOKENS
from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.decoding.batch_sizes import padded_batch_size
from mlx_transformer.inference.alignment import (
    WordIndices,
    align,
    source_word_indices,
    token_indices,
    word_indices_of_text,
)
from mlx_transformer.inference.attention_weights import record_attention, split_decoder_weights
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    encode_sources,
    encode_targets,
    encode_truncated,
    pad_ids,
    padded_length,
    reorder,
    run_batches,
)
from mlx_transformer.inference.line_errors import bisect_on_error, raise_first_error
from mlx_transformer.inference.source_lines import (
    PerLineText,
    SourceLine,
    as_list,
    capitalize,
    check_lines,
    has_lowercase,
    make_source_lines,
    prepare_lines,
)
from mlx_transformer.model.exponential import logsumexp
from mlx_transformer.model.token_ids import check_target_rows, check_token_ids
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.normalization import is_blank
from mlx_transformer.tokenization.texts import string_error
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer

MISSING: Any = object()  # the counterpart of a source without a target, or of a target without a source
MAX_LOGITS = 2**27  # per batch, half a gigabyte: large vocabularies get smaller batches


@dataclass(frozen=True)
class Score:
    """Log-probability of a target, given its source.

    Attributes:
        score: Natural logarithm of the target's probability, the sum of `token_scores`.
        tokens: Target token ids with the end token, without the start token.
        token_scores: Log-probability of each token; 0 for a first token that generation would force.
        truncated: Whether source or target was truncated to the model's maximum length.
        alignment: Pairs of aligned source and target words (or tokens); on request.
        error: Why a pair has no score, if errors are returned instead of raised.
    """

    score: float
    tokens: list[int]
    token_scores: list[float]
    truncated: bool = False
    alignment: list[tuple[int, int]] | None = None
    error: str | None = None


class EncodedPair(NamedTuple):
    """A tokenized source and its target.

    Attributes:
        source: Source token ids.
        target: Target token ids, beginning with the start token.
        forced: Whether generation would force the first token after the start token, which then scores 0.
        truncated: Whether source or target was truncated.
        units: Word (or token) index of each source id, and of each target id after the start token; for alignments.
        error: Why the pair could not be tokenized.
        recased: Whether the source was in capitals, which the model reads in lower case.
    """

    source: list[int]
    target: list[int]
    forced: bool = False
    truncated: bool = False
    units: tuple[WordIndices, WordIndices] = ([], [])
    error: str | None = None
    recased: bool = False

    @property
    def length(self) -> int:
        """Number of positions of the longer side."""
        return max(len(self.source), len(self.target) - 1)


def score_ids(
    model: Transformer, source: mx.array, target: mx.array, alignment: AlignmentConfig | None = None
) -> tuple[mx.array, mx.array | None]:
    """Compute the log-probability of each token of given targets in one teacher-forced pass.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        target: Token ids, int32 (rows, target_length), beginning with the start token, padded on the right. The number
            of rows is a multiple of batch, with the rows of one source adjacent.
        alignment: Layers and heads whose cross-attention to return; None for no attention.

    Returns:
        Log-probabilities, float32 (rows, target_length - 1), 0 at padding; and cross-attention averaged over the
        selected layers and heads, float32 (rows, target_length - 1, source_length), or None.

    Raises:
        ValueError: If the number of rows is not a multiple of batch, a sequence is too long, an id is not in the
            vocabulary, or a layer or head does not exist.
    """
    check_token_ids("source", source, model.config.source_vocab_size)
    check_token_ids("target", target, model.config.target_vocab_size)
    check_target_rows(source.shape[0], target.shape[0])
    layers, heads = ((), ()) if alignment is None else alignment.select(model.config.require_decoder())
    scores, *attention = model.compiled(_token_scores, layers, heads)(source, target)
    return scores, attention[0] if attention else None


def _token_scores(
    model: Transformer, layers: tuple[int, ...], heads: tuple[int, ...], source: mx.array, target: mx.array
) -> list[mx.array]:
    inputs, labels = target[:, :-1], target[:, 1:]
    attention: list[mx.array] = []
    memory = model.encode(source)
    logits = model.decode(inputs, memory, attend=record_attention(attention, inputs.shape[1])).astype(mx.float32)
    label_logits = mx.take_along_axis(logits, labels[..., None], axis=-1).squeeze(-1)
    mask = mx.cumsum(labels != model.config.pad_id, axis=1, reverse=True) > 0  # keeps pad_id inside a text
    scores = mx.where(mask, label_logits - logsumexp(logits).squeeze(-1), 0.0)
    if not layers:
        return [scores]
    _, cross_attention = split_decoder_weights(model, attention)
    cross = mx.stack([cross_attention[layer] for layer in layers])
    return [scores, mx.take(cross, mx.array(heads), axis=2).mean(axis=(0, 2))]


def score(
    model: Transformer,
    tokenizer: Tokenizer,
    sources: Iterable[str | SourceLine],
    targets: Iterable[str],
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    alignment: AlignmentConfig | None = None,
    batch_tokens: int = BATCH_TOKENS,
    return_errors: bool = False,
) -> Iterator[Score]:
    """Compute the log-probability of each target, given its source, lazily and in order.

    Blank sources are scored as empty ones; an empty target is the end token alone. A first token that the model's own
    search would force (a language code) scores 0. Other search options have no effect.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sources: Source texts, or a single one. A SourceLine brings its own languages.
        targets: One target text per source.
        source_language: Language code of the sources, or one per source; None for models that need none.
        target_language: Language code of the targets, or one per target; None for models that need none.
        source_prefix: Text such as "summarize: " that is put before sources that do not begin with it; the model's own
            prefix if None, no prefix if empty.
        alignment: How to align the targets with their sources; None for no alignments.
        batch_tokens: Maximum number of padded positions in a batch, counted on its longer side.
        return_errors: Whether a pair that has no score (a text is not a string, its language is unknown, logits are not
            finite, it does not fit in memory) gives a Score with an `error`; otherwise the first such pair raises an
            error, after the scores of the pairs before it.

    Raises:
        ValueError: If the numbers of sources and targets differ, `batch_tokens` is not positive, a layer or head does
            not exist, or a pair has no score.
    """
    check_arguments(model.config, tokenizer, batch_tokens, alignment, source_language, target_language)
    sources, targets = as_list(sources, "sources"), as_list(targets, "targets")
    lines = make_source_lines(sources, source_language, target_language, name="sources")
    pairs = _pair_lines(prepare_lines(tokenizer.config, lines, source_prefix), targets)
    encode = partial(_encode_window, model, tokenizer, alignment)

    def results() -> Iterator[Score]:
        while window := list(islice(pairs, READ_AHEAD)):
            encoded = bisect_on_error(encode, window, lambda _, error: EncodedPair([], [], error=error))
            yield from score_pairs(model, encoded, alignment, batch_tokens)

    return results() if return_errors else raise_first_error(results(), lambda score: score.error, "Pair")


def check_arguments(
    config: ModelConfig,
    tokenizer: Tokenizer,
    batch_tokens: int,
    alignment: AlignmentConfig | None,
    source_language: PerLineText,
    target_language: PerLineText,
) -> None:
    """Raise ValueError for arguments that do not fit the model, which needs a decoder, or batches of no tokens."""
    decoder = config.require_decoder()
    if alignment is not None:
        alignment.select(decoder)
    check_source_arguments(config, tokenizer, batch_tokens, source_language, target_language)


def check_source_arguments(
    config: ModelConfig,
    tokenizer: Tokenizer,
    batch_tokens: int,
    source_language: PerLineText,
    target_language: PerLineText,
) -> None:
    """Raise ValueError for arguments about sources that do not fit the model, or batches of no tokens."""
    tokenizer.check_model(config)
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be more than 0, not {batch_tokens}.")
    tokenizer.check_language_codes(None if source_language == AUTO else source_language, target_language)


def _pair_lines(lines: Iterable[SourceLine], targets: Iterable[str]) -> Iterator[tuple[SourceLine, SourceLine]]:
    """Yield each source with its target, as lines with the same languages."""
    for number, (line, target) in enumerate(zip_longest(lines, targets, fillvalue=MISSING), start=1):
        if line is MISSING or target is MISSING:
            side = "source" if line is MISSING else "target"
            raise ValueError(f"Sources and targets must be equally many: number {number} has no {side}.")
        if error := line.error or string_error(target, "The target"):
            yield line._replace(error=error), line
            continue
        target = capitalize(target) if line.recase and not has_lowercase(target) else target
        yield line, line._replace(text="" if is_blank(target) else target, start=0)


def _encode_window(
    model: Transformer,
    tokenizer: Tokenizer,
    alignment: AlignmentConfig | None,
    lines: list[tuple[SourceLine, SourceLine]],
) -> list[EncodedPair]:
    """Tokenize sources and targets, truncated to the model's maximum lengths and never empty."""
    max_source, max_target, end = (
        model.config.encoder.max_length,
        model.config.require_decoder().max_length,
        [model.config.eos_id],
    )
    sources, targets = (list(side) for side in zip(*lines, strict=True))
    check_lines(sources)
    source_ids = encode_truncated(partial(encode_sources, tokenizer), sources, max_source)
    target_ids = encode_truncated(partial(_encode_targets, model, tokenizer), targets, max_target)
    pairs = []
    for source, target, start in zip(source_ids, target_ids, _decoder_starts(model, tokenizer, targets), strict=True):
        truncated = len(source) > max_source or len(target) > max_target
        source = tokenizer.truncate_source(source, max_source) or end
        target = [start.start_id, *(target[:max_target] or end)]
        pairs.append(EncodedPair(source, target, start.first_id is not None, truncated))
    if alignment is None:
        return pairs
    return [
        pair._replace(units=_word_indices(model, tokenizer, pair, pair_lines, alignment))
        for pair, pair_lines in zip(pairs, lines, strict=True)
    ]


def _decoder_starts(model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine]) -> list[DecoderStart]:
    """Return the start token and the forced first token of each target, as in generation."""
    starts = tokenizer.decoder_starts(len(lines), [line.target_language for line in lines])
    forced = model.search_defaults.forced_bos_id
    return [start._replace(first_id=forced) if start.first_id is None else start for start in starts]


def _encode_targets(model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """Return the target token ids of each line, with the first token that generation would force."""
    rows = zip(encode_targets(tokenizer, lines), _decoder_starts(model, tokenizer, lines), strict=True)
    return [ids if first is None or ids[:1] == [first] else [first, *ids] for ids, (_, first) in rows]


def _word_indices(
    model: Transformer,
    tokenizer: Tokenizer,
    pair: EncodedPair,
    lines: tuple[SourceLine, SourceLine],
    alignment: AlignmentConfig,
) -> tuple[WordIndices, WordIndices]:
    """Return the word (or token) indices of a pair's ids."""
    source, target = lines
    num_after = len(tokenizer.config.after_target)
    words = (
        source_word_indices(tokenizer, source, pair.source),
        word_indices_of_text(partial(_encode_targets, model, tokenizer), target, pair.target[1:], num_after),
    )
    return words if alignment.unit == "words" else (token_indices(words[0]), token_indices(words[1]))


def score_pairs(
    model: Transformer, pairs: list[EncodedPair], alignment: AlignmentConfig | None, batch_tokens: int
) -> Iterator[Score]:
    """Score pairs in batches of similar length and at most `batch_tokens` positions; yield scores in order.

    A pair that cannot be scored gives a Score with an `error`.
    """
    config = model.config
    max_length = max(config.encoder.max_length, config.require_decoder().max_length)
    max_positions = min(batch_tokens, MAX_LOGITS // config.target_vocab_size)

    def scores() -> Iterator[tuple[int, Score]]:
        yield from ((i, _failed_score(pair.error)) for i, pair in enumerate(pairs) if pair.error)
        yield from run_batches(
            {i: pair for i, pair in enumerate(pairs) if not pair.error},
            lambda pair: pair.length,
            partial(_score_batch, model, alignment),
            lambda _, error: _failed_score(error),
            *(max_length, max_positions),
        )

    return reorder(scores())


def _score_batch(model: Transformer, alignment: AlignmentConfig | None, pairs: list[EncodedPair]) -> list[Score]:
    """Score pairs as one batch, padded to a shape that is compiled once."""
    config = model.config
    padding = EncodedPair([config.eos_id], [config.start_id, config.eos_id])
    rows = pairs + [padding] * (padded_batch_size(len(pairs)) - len(pairs))
    source_length = padded_length(max(len(pair.source) for pair in pairs), config.encoder.max_length)
    target_length = padded_length(max(len(pair.target) - 1 for pair in pairs), config.require_decoder().max_length)
    scores, attention = score_ids(
        model,
        pad_ids([pair.source for pair in rows], source_length, config.pad_id),
        pad_ids([pair.target for pair in rows], target_length + 1, config.pad_id),
        alignment,
    )
    logprobs = np.array(scores)
    weights = [None] * len(rows) if attention is None else np.array(attention)
    return [_make_score(*row, alignment) for row in zip(pairs, logprobs, weights, strict=False)]


def _failed_score(error: str) -> Score:
    return Score(score=-math.inf, tokens=[], token_scores=[], error=error)


def _make_score(
    pair: EncodedPair, logprobs: np.ndarray, weights: np.ndarray | None, alignment: AlignmentConfig | None
) -> Score:
    if not np.isfinite(logprobs).all():
        return _failed_score("Scores must be finite, but the model's logits are not: compute in float32.")
    token_scores = logprobs[: len(pair.target) - 1].tolist()
    if pair.forced:
        token_scores[0] = 0.0
    aligned = None if weights is None or alignment is None else align(weights, *pair.units, alignment.cover_source)
    return Score(sum(token_scores), pair.target[1:], token_scores, pair.truncated, aligned)
