"""How probable given targets are: natural-log probabilities of their tokens, and where they come from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import BATCH_TOKENS
from mlx_transformer.inference.alignment import (
    WordIndices,
    align,
    source_word_indices,
    token_indices,
    word_indices_of_text,
)
from mlx_transformer.inference.attention_weights import check_target_rows, record_attention
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    PerLineText,
    SourceLine,
    batch_by_length,
    encode_sources,
    encode_targets,
    encode_truncated,
    make_source_lines,
    pad_ids,
    padded_batch_size,
    padded_length,
    reorder,
)
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer

MAX_LOGITS = 2**27  # of one batch, half a gigabyte: a large vocabulary makes batches smaller


@dataclass(frozen=True)
class Score:
    """How probable a target is, given its source.

    Attributes:
        score: Natural logarithm of its probability, the sum of `token_scores`.
        tokens: Its token ids with the end token, without the decoder's first input.
        token_scores: Natural logarithm of the probability of each; 0 for a first token that generation forces.
        truncated: Whether source or target was cut to the length that the model can read.
        alignment: Pairs of source and target units, where they were asked for.
    """

    score: float
    tokens: list[int]
    token_scores: list[float]
    truncated: bool = False
    alignment: list[tuple[int, int]] | None = None


class EncodedPair(NamedTuple):
    """A source and its target, as the model reads them.

    Attributes:
        source: Token ids.
        target: Token ids, the first of which is the decoder's first input.
        forced: Whether generation would force the next one, which then scores 0.
        truncated: Whether one of them was cut.
        units: What the ids of the source, and those of the target but its first, belong to, where that is asked for.
    """

    source: list[int]
    target: list[int]
    forced: bool = False
    truncated: bool = False
    units: tuple[WordIndices, WordIndices] = ([], [])

    @property
    def length(self) -> int:
        """Positions of the longer side."""
        return max(len(self.source), len(self.target) - 1)


def score_ids(
    model: Transformer, source: mx.array, target: mx.array, alignment: AlignmentConfig | None = None
) -> tuple[mx.array, mx.array | None]:
    """The log-probability of each token of given targets, from one teacher-forced pass.

    Args:
        model: The model, in evaluation mode.
        source: Token ids, int32 (batch, source_length), padded on the right with `model.config.pad_id`.
        target: Token ids, int32 (rows, target_length), beginning with the decoder's first input, padded likewise; rows
            is a multiple of batch, the rows of one source side by side.
        alignment: Which attention to give as well.

    Returns:
        Natural logarithms, float32 (rows, target_length - 1), 0 at padding; and, where asked for, cross-attention
        averaged over the chosen layers and heads, float32 (rows, target_length - 1, source_length).

    Raises:
        ValueError: If rows is no multiple of batch, a sequence is longer than its stack has positions, or the decoder
            has no such layer or head.
    """
    check_target_rows(source, target)
    layers, heads = ((), ()) if alignment is None else alignment.select(model.config.decoder)
    scores, *attention = model.compiled(_token_scores, layers, heads)(source, target)
    return scores, attention[0] if attention else None


def _token_scores(
    model: Transformer, layers: tuple[int, ...], heads: tuple[int, ...], source: mx.array, target: mx.array
) -> list[mx.array]:
    read, wanted = target[:, :-1], target[:, 1:]
    seen: list[mx.array] = []
    memory = model.encode(source)
    logits = model.decode(read, memory, attend=record_attention(seen, read.shape[1])).astype(mx.float32)
    chosen = mx.take_along_axis(logits, wanted[..., None], axis=-1).squeeze(-1)
    tokens = mx.cumsum(wanted != model.config.pad_id, axis=1, reverse=True) > 0  # text may hold that token too
    scores = mx.where(tokens, chosen - mx.logsumexp(logits, axis=-1), 0.0)
    if not layers:
        return [scores]
    cross = mx.stack([seen[1::2][layer] for layer in layers])
    return [scores, mx.take(cross, mx.array(heads), axis=2).mean(axis=(0, 2))]


def score(
    model: Transformer,
    tokenizer: Tokenizer,
    sources: Iterable[str],
    targets: Iterable[str],
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    alignment: AlignmentConfig | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Score]:
    """How probable each target is, given its source, lazily and in order.

    A blank source is read as an empty one, and an empty target is the end token alone. What the model's own search
    would force as first token (a language code) scores 0; the search's other options change nothing.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sources: Source texts.
        targets: A target text for each.
        source_language: The code of the sources' language, or one for each; None for models that need none.
        target_language: The code of the targets' language, likewise.
        source_prefix: What every source begins with ("summarize: "), set before those that do not begin with it
            already; the model's own if None, nothing if empty.
        alignment: Which attention aligns the targets with their sources; None for no alignments.
        batch_tokens: Most padded positions of a batch, of its longer side.

    Raises:
        ValueError: If sources and targets are not equally many, a language is missing or unknown, `batch_tokens` is not
            positive, the decoder has no such layer or head, or the model's logits are not numbers.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be more than 0, not {batch_tokens}.")
    if isinstance(sources, str) or isinstance(targets, str):
        raise ValueError("sources and targets must be several texts, not one: put it in a list.")
    prefix = tokenizer.config.source_prefix if source_prefix is None else source_prefix
    pairs = _pair_lines(make_source_lines(sources, prefix, source_language, target_language), targets)
    while window := list(islice(pairs, READ_AHEAD)):
        yield from score_pairs(model, _encode_window(model, tokenizer, window, alignment), alignment, batch_tokens)
        mx.clear_cache()  # buffers of shapes that may not come again


def _pair_lines(lines: Iterable[SourceLine], targets: Iterable[str]) -> Iterator[tuple[SourceLine, SourceLine]]:
    """Each source with its target, whose language it knows."""
    for number, (line, target) in enumerate(zip_longest(lines, targets), start=1):
        if line is None or target is None:
            side = "source" if line is None else "target"
            raise ValueError(f"Every source needs a target and every target a source: number {number} has no {side}.")
        yield line, line._replace(text=target if target.strip() else "", start=0)


def _encode_window(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[tuple[SourceLine, SourceLine]],
    alignment: AlignmentConfig | None,
) -> list[EncodedPair]:
    """What the model reads of each source and its target: cut to its positions, and never empty."""
    limit, most, end = model.config.encoder.max_length, model.config.decoder.max_length, [model.config.eos_id]
    sources, targets = (list(side) for side in zip(*lines, strict=True))
    source_ids = encode_truncated(partial(encode_sources, tokenizer), sources, limit)
    target_ids = encode_truncated(partial(_encode_targets, model, tokenizer), targets, most)
    pairs = []
    for source, target, start in zip(source_ids, target_ids, _decoder_starts(model, tokenizer, targets), strict=True):
        read, written = tokenizer.truncate_source(source, limit) or end, [start.start_id, *(target[:most] or end)]
        truncated = len(source) > limit or len(target) > most
        pairs.append(EncodedPair(read, written, start.first_id is not None, truncated))
    if alignment is None:
        return pairs
    units = [_word_indices(model, tokenizer, *each, alignment) for each in zip(pairs, lines, strict=True)]
    return [pair._replace(units=each) for pair, each in zip(pairs, units, strict=True)]


def _decoder_starts(model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine]) -> list[DecoderStart]:
    """What generation would begin each target with."""
    starts = tokenizer.decoder_starts(len(lines), [line.target_language for line in lines])
    forced = model.search_defaults.forced_bos_id
    return [start._replace(first_id=forced) if start.first_id is None else start for start in starts]


def _encode_targets(model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """The target ids of each line, with the first token that generation would force."""
    rows = zip(encode_targets(tokenizer, lines), _decoder_starts(model, tokenizer, lines), strict=True)
    return [ids if first is None or ids[:1] == [first] else [first, *ids] for ids, (_, first) in rows]


def _word_indices(
    model: Transformer,
    tokenizer: Tokenizer,
    pair: EncodedPair,
    lines: tuple[SourceLine, SourceLine],
    alignment: AlignmentConfig,
) -> tuple[WordIndices, WordIndices]:
    """The words, or tokens, that the ids of a pair belong to."""
    source, target = lines
    after = len(tokenizer.config.after_target)
    words = (
        source_word_indices(tokenizer, source, pair.source),
        word_indices_of_text(partial(_encode_targets, model, tokenizer), target, pair.target[1:], after),
    )
    return words if alignment.unit == "words" else (token_indices(words[0]), token_indices(words[1]))


def score_pairs(
    model: Transformer, pairs: list[EncodedPair], alignment: AlignmentConfig | None, positions: int
) -> Iterator[Score]:
    """Score pairs, in batches of like length and at most so many positions; in order.

    Raises:
        ValueError: As `score_ids`, or if the logits are not numbers.
    """
    config = model.config
    limit = max(config.encoder.max_length, config.decoder.max_length)
    positions = min(positions, MAX_LOGITS // config.target_vocab_size)

    def found() -> Iterator[tuple[int, Score]]:
        for batch in batch_by_length([pair.length for pair in pairs], limit, positions):
            yield from zip(batch, _score_batch(model, [pairs[i] for i in batch], alignment), strict=True)
            mx.clear_cache()  # buffers of shapes that may not come again

    return reorder(found())


def _score_batch(model: Transformer, pairs: list[EncodedPair], alignment: AlignmentConfig | None) -> list[Score]:
    """Score pairs as one batch of a shape that is compiled once; rows to fill it up are an end token each."""
    config = model.config
    filler = EncodedPair([config.eos_id], [config.start_id, config.eos_id])
    rows = pairs + [filler] * (padded_batch_size(len(pairs)) - len(pairs))
    source_length = padded_length(max(len(pair.source) for pair in pairs), config.encoder.max_length)
    target_length = padded_length(max(len(pair.target) - 1 for pair in pairs), config.decoder.max_length)
    scores, attention = score_ids(
        model,
        pad_ids([pair.source for pair in rows], source_length, config.pad_id),
        pad_ids([pair.target for pair in rows], target_length + 1, config.pad_id),
        alignment,
    )
    found = np.array(scores)
    if not np.isfinite(found).all():
        raise ValueError("Scores must be numbers: the model's logits are none; compute in float32.")
    weights = [None] * len(rows) if attention is None else np.array(attention)
    return [_make_score(*each) for each in zip(pairs, found, weights, strict=False)]


def _make_score(pair: EncodedPair, scores: np.ndarray, weights: np.ndarray | None) -> Score:
    own = scores[: len(pair.target) - 1].tolist()
    if pair.forced:
        own[0] = 0.0
    aligned = None if weights is None else align(weights, *pair.units)
    return Score(sum(own), pair.target[1:], own, pair.truncated, aligned)
