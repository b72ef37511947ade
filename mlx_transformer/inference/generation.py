"""Texts in, texts out: lines are tokenised, packed by length into batches, searched, and given back in order."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, overload

import mlx.core as mx

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import BATCH_TOKENS, SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids, stream_ids
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.decoding.inputs import max_target_tokens
from mlx_transformer.inference.alignment import source_word_indices, token_indices, word_indices_of_ids
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    PerLineText,
    SourceLine,
    batch_by_length,
    encode_prefixes,
    encode_sources,
    encode_truncated,
    make_source_lines,
    pad_ids,
    padded_batch_size,
    padded_length,
    reorder,
)
from mlx_transformer.inference.scoring import EncodedPair, score_pairs
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.detokenizer import Detokenizer
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer

Rescore = Callable[[list["EncodedSource"], list[list[Hypothesis]]], list[list[Hypothesis]]]
logger = logging.getLogger(__name__)
EMPTY_HYPOTHESIS = Hypothesis(ids=[], score=0.0, finish_reason="stop", text="")


class EncodedSource(NamedTuple):
    """A source as the model reads it.

    Attributes:
        ids: Its token ids, cut to the model's positions.
        start: What its target begins with.
        prefix_ids: The tokens that follow that.
        number: The line's number, on which what is drawn at random depends.
        line: The line that it was.
        truncated: Whether it was cut.
    """

    ids: list[int]
    start: DecoderStart
    prefix_ids: list[int]
    number: int
    line: SourceLine
    truncated: bool = False


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = ...,
    target_language: PerLineText = ...,
    source_prefix: str | None = ...,
    target_prefix: PerLineText = ...,
    batch_tokens: int = ...,
) -> str: ...


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: list[str],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = ...,
    target_language: PerLineText = ...,
    source_prefix: str | None = ...,
    target_prefix: PerLineText = ...,
    batch_tokens: int = ...,
) -> list[str]: ...


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str | list[str],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    target_prefix: PerLineText = None,
    batch_tokens: int = BATCH_TOKENS,
) -> str | list[str]:
    """The best target of a text, or of each of several.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: One source text, or a list of them.
        search: How to search; `model.search_defaults` if None.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        target_prefix: See `generate_hypotheses`.
        batch_tokens: Most padded source positions x beams of a batch.
    """
    hypotheses = generate_hypotheses(
        model,
        tokenizer,
        [text] if isinstance(text, str) else text,
        search,
        source_language=source_language,
        target_language=target_language,
        source_prefix=source_prefix,
        target_prefix=target_prefix,
        batch_tokens=batch_tokens,
    )
    texts = [best.text or "" for best, *_ in hypotheses]
    return texts[0] if isinstance(text, str) else texts


def generate_hypotheses(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    target_prefix: PerLineText = None,
    batch_tokens: int = BATCH_TOKENS,
    alignment: AlignmentConfig | None = None,
    token_scores: bool = False,
    first_line: int = 0,
) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each line, best first, lazily and in order.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lines: Source texts; a blank one, or one without tokens, gives one empty hypothesis.
        search: How to search; `model.search_defaults` if None.
        source_language: The code of the lines' language, or one for each line; None for models that need none.
        target_language: The code of the language to generate, likewise.
        source_prefix: What every source begins with ("summarize: "), set before lines that do not begin with it
            already; the model's own if None, nothing if empty.
        target_prefix: What the target begins with, one text for all lines or one for each; None or blank for nothing.
        batch_tokens: Most padded source positions x beams of a batch.
        alignment: Which attention aligns the hypotheses with their sources, in one more pass; None for no alignments.
        token_scores: Give the log-probability of each token, from the same pass.
        first_line: The number of the first line, on which what is drawn at random depends.

    Returns:
        A list for each line. A source that is longer than the model's positions is cut, and its hypotheses say so
        (`truncated`).

    Raises:
        ValueError: If `batch_tokens` is not positive, or if a language is missing or unknown.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be more than 0, not {batch_tokens}.")
    search = search or model.search_defaults
    prefix = tokenizer.config.source_prefix if source_prefix is None else source_prefix
    rows = make_source_lines(lines, prefix, source_language, target_language, target_prefix)
    reviewed = partial(_rescore, model, tokenizer, alignment, batch_tokens) if alignment or token_scores else None
    empty = replace(EMPTY_HYPOTHESIS, token_scores=[] if reviewed else None, alignment=[] if alignment else None)
    while window := list(islice(rows, READ_AHEAD)):
        sources = _encode_lines(model, tokenizer, window, first_line)
        yield from _generate_window(model, tokenizer, sources, search, batch_tokens, reviewed, empty)
        first_line += len(window)


def stream_generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    search: SearchConfig | None = None,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    source_prefix: str | None = None,
    target_prefix: str | None = None,
    line: int = 0,
) -> Iterator[str]:
    """The target of one text in pieces, as they come: joined they are what `generate` gives.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: The source text. One that is longer than the model's positions is cut, with a warning in the log.
        search: How to search, with a beam of one; the model's own search, but greedy, if None.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        target_prefix: See `generate_hypotheses`.
        line: A number on which what is drawn at random depends.

    Raises:
        ValueError: If the search has several beams, or a language is missing or unknown.
    """
    search = search or replace(model.search_defaults, beam_size=1, num_hypotheses=1)
    prefix = tokenizer.config.source_prefix if source_prefix is None else source_prefix
    lines = list(make_source_lines([text], prefix, source_language, target_language, target_prefix))
    (source,) = _encode_lines(model, tokenizer, lines, line)
    if source.truncated:
        logger.warning("Line %d is longer than the model can read and was cut.", line + 1)
    if source.ids:
        detokenizer = Detokenizer(tokenizer)
        asked = _search_arguments(model, [source], search)
        yield from filter(None, map(detokenizer.add, stream_ids(model, search=search, **asked)))
        yield from filter(None, [detokenizer.finish()])


def _generate_window(
    model: Transformer,
    tokenizer: Tokenizer,
    sources: list[EncodedSource],
    search: SearchConfig,
    batch_tokens: int,
    reviewed: Rescore | None,
    empty: Hypothesis,
) -> Iterator[list[Hypothesis]]:
    """Search sources in batches of like length; results in order."""
    written = [i for i, source in enumerate(sources) if source.ids]
    limit, positions = model.config.encoder.max_length, batch_tokens // search.beam_size

    def found() -> Iterator[tuple[int, list[Hypothesis]]]:
        yield from ((i, [empty]) for i, source in enumerate(sources) if not source.ids)
        for places in batch_by_length([len(sources[i].ids) for i in written], limit, positions):
            batch = [sources[written[place]] for place in places]
            results = _search_batch(model, batch, search)
            results = reviewed(batch, results) if reviewed else results
            for place, source, hypotheses in zip(places, batch, results, strict=True):
                texts = tokenizer.decode_batch(h.ids for h in hypotheses)
                yield (
                    written[place],
                    [replace(h, text=t, truncated=source.truncated) for h, t in zip(hypotheses, texts, strict=True)],
                )
            mx.clear_cache()  # buffers of shapes that may not come again

    return reorder(found())


def _encode_lines(
    model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine], number: int
) -> list[EncodedSource]:
    """What the model reads of each line, the first of which has this number; nothing of a blank one."""
    limit = model.config.encoder.max_length
    written = [line for line in lines if line.text]
    encoded = zip(
        encode_truncated(partial(encode_sources, tokenizer), written, limit),
        tokenizer.decoder_starts(len(written), [line.target_language for line in written]),
        encode_prefixes(tokenizer, written),
        strict=True,
    )
    sources: list[EncodedSource] = []
    for line in lines:
        ids, start, prefix = next(encoded) if line.text else ([], DecoderStart(0, None), [])
        sources.append(
            EncodedSource(
                tokenizer.truncate_source(ids, limit), start, prefix, number + len(sources), line, len(ids) > limit
            )
        )
    return sources


def _search_batch(model: Transformer, sources: list[EncodedSource], search: SearchConfig) -> list[list[Hypothesis]]:
    """Search sources as one batch of a size that is compiled once; rows to fill it up end after one token."""
    missing = padded_batch_size(len(sources)) - len(sources)
    filled = sources + [sources[0]._replace(ids=[model.config.eos_id])] * missing
    asked = _search_arguments(model, filled, search)
    asked["max_tokens"][len(sources) :] = [1] * missing
    return generate_ids(model, search=search, **asked)[: len(sources)]


def _search_arguments(model: Transformer, sources: list[EncodedSource], search: SearchConfig) -> dict[str, Any]:
    """The arguments of a search that differ from source to source."""
    config = model.config
    length = padded_length(max(len(source.ids) for source in sources), config.encoder.max_length)
    forced = [source.start.first_id for source in sources if source.start.first_id is not None]
    return {
        "source": pad_ids([source.ids for source in sources], length, config.pad_id),
        "max_tokens": [max_target_tokens(model, len(source.ids), search) for source in sources],
        "start_ids": [source.start.start_id for source in sources],
        "forced_bos_ids": forced or None,
        "prefix_ids": [source.prefix_ids for source in sources],
        "lines": [source.number for source in sources],
    }


def _rescore(
    model: Transformer,
    tokenizer: Tokenizer,
    alignment: AlignmentConfig | None,
    positions: int,
    sources: list[EncodedSource],
    found: list[list[Hypothesis]],
) -> list[list[Hypothesis]]:
    """Hypotheses with what a teacher-forced pass over them tells."""
    pairs = [_make_pair(model, tokenizer, s, h, alignment) for s, row in zip(sources, found, strict=True) for h in row]
    scores = score_pairs(model, pairs, alignment, positions)
    return [
        [replace(h, token_scores=s.token_scores, alignment=s.alignment) for h, s in zip(row, scores, strict=False)]
        for row in found
    ]


def _make_pair(
    model: Transformer,
    tokenizer: Tokenizer,
    source: EncodedSource,
    hypothesis: Hypothesis,
    alignment: AlignmentConfig | None,
) -> EncodedPair:
    """A source and a hypothesis as the model reads them."""
    end = [model.config.eos_id] if hypothesis.finish_reason == "stop" else []
    pair = EncodedPair(source.ids, [source.start.start_id, *hypothesis.ids, *end])
    if alignment is None:
        return pair
    words = (
        source_word_indices(tokenizer, source.line, source.ids),
        word_indices_of_ids(tokenizer, hypothesis.ids) + [None] * len(end),
    )
    return pair._replace(
        units=words if alignment.unit == "words" else (token_indices(words[0]), token_indices(words[1]))
    )
