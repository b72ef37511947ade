"""Texts in, texts out: lines are tokenised, packed by length into batches, searched, and given back in order."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from typing import NamedTuple, overload

import mlx.core as mx

from mlx_transformer.config import BATCH_TOKENS, SearchConfig
from mlx_transformer.hypotheses import Hypothesis
from mlx_transformer.model import Transformer
from mlx_transformer.request import token_limit
from mlx_transformer.search import generate_ids
from mlx_transformer.tokenizer import Start, Tokenizer

WINDOW = 2048  # lines that are read ahead and sorted by length
LENGTH_MULTIPLE = 16  # sources are padded to a multiple: few shapes to compile, and fused attention on Metal
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CHARACTERS_PER_TOKEN = 64  # a line with more than this for each position of the model is surely too long for it
EMPTY = Hypothesis(ids=[], score=0.0, finish_reason="stop", text="")
Languages = str | Iterable[str | None] | None  # a code for all lines, or one for each


class Line(NamedTuple):
    """A source text and the codes of its language and of the language to generate, None where the model needs none."""

    text: str
    source_language: str | None
    target_language: str | None


class Source(NamedTuple):
    """A source as the model reads it: its token ids, and what its target begins with."""

    ids: list[int]
    start: Start


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    search: SearchConfig | None = None,
    *,
    source_language: Languages = ...,
    target_language: Languages = ...,
    source_prefix: str | None = ...,
    batch_tokens: int = ...,
) -> str: ...


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: list[str],
    search: SearchConfig | None = None,
    *,
    source_language: Languages = ...,
    target_language: Languages = ...,
    source_prefix: str | None = ...,
    batch_tokens: int = ...,
) -> list[str]: ...


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str | list[str],
    search: SearchConfig | None = None,
    *,
    source_language: Languages = None,
    target_language: Languages = None,
    source_prefix: str | None = None,
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
    source_language: Languages = None,
    target_language: Languages = None,
    source_prefix: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
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
        batch_tokens: Most padded source positions x beams of a batch.

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
    remaining = _lines(lines, source_language, target_language, prefix)
    while window := list(islice(remaining, WINDOW)):
        yield from _window(model, tokenizer, window, search, batch_tokens)
        mx.clear_cache()  # buffers of shapes that may not come again


def _lines(lines: Iterable[str], source_language: Languages, target_language: Languages, prefix: str) -> Iterator[Line]:
    """Each line with its languages; a blank one stays blank."""
    languages = [
        repeat(each) if each is None or isinstance(each, str) else iter(each)
        for each in (source_language, target_language)
    ]
    for number, text in enumerate(lines, start=1):
        try:
            codes = [next(each) for each in languages]
        except StopIteration:
            raise ValueError(
                f"Languages must be one code for all lines or one for each: line {number} has none."
            ) from None
        blank = not text.strip()
        yield Line("" if blank else text if text.startswith(prefix) else prefix + text, *codes)


def _window(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[Line],
    search: SearchConfig,
    batch_tokens: int,
) -> Iterator[list[Hypothesis]]:
    """Search lines in batches of like length; give each result once those before it are there."""
    limit = model.config.encoder.max_length
    written = [i for i, line in enumerate(lines) if line.text]
    found = _sources(tokenizer, [lines[i] for i in written], limit)
    sources = {i: source for i, source in zip(written, found, strict=True) if source.ids}
    ready: dict[int, list[Hypothesis]] = {i: [EMPTY] for i in range(len(lines)) if i not in sources}
    given = 0
    order = sorted(sources, key=lambda i: len(sources[i].ids))
    lengths = [min(len(sources[i].ids), limit) for i in order]
    for start, size in _pack(lengths, limit, batch_tokens // search.beam_size):
        batch = order[start : start + size]
        rows = [sources[i]._replace(ids=tokenizer.cut(sources[i].ids, limit)) for i in batch]
        for i, hypotheses in zip(batch, _search(model, rows, search), strict=True):
            truncated = len(sources[i].ids) > limit
            ready[i] = [replace(h, text=tokenizer.decode(h.ids), truncated=truncated) for h in hypotheses]
        while given in ready:
            yield ready.pop(given)
            given += 1
    while given in ready:
        yield ready.pop(given)
        given += 1


def _sources(tokenizer: Tokenizer, lines: list[Line], limit: int) -> list[Source]:
    """What the model reads; of a line far longer than `limit` tokens only a beginning that is still longer."""
    ids = _encode(tokenizer, [line._replace(text=line.text[: CHARACTERS_PER_TOKEN * limit]) for line in lines])
    for i, line in enumerate(lines):
        if len(line.text) > CHARACTERS_PER_TOKEN * limit and len(ids[i]) <= limit + 1:
            (ids[i],) = _encode(tokenizer, [line])
    starts = tokenizer.starts(len(lines), [line.target_language for line in lines])
    return [Source(*pair) for pair in zip(ids, starts, strict=True)]


def _encode(tokenizer: Tokenizer, lines: list[Line]) -> list[list[int]]:
    texts, source_languages, target_languages = zip(*lines, strict=True) if lines else ((), (), ())
    return tokenizer.encode_batch(texts, source_languages, target_languages)


def _pack(lengths: list[int], limit: int, positions: int) -> Iterator[tuple[int, int]]:
    """Cut sorted lengths into batches, start and size, of at most `positions` padded source positions."""
    start = 0
    while start < len(lengths):
        size = 1
        for candidate in BATCH_SIZES:
            longest = lengths[min(start + candidate, len(lengths)) - 1]
            if candidate * _padded(longest, limit) <= positions:
                size = candidate
        yield start, size
        start += size


def _padded(length: int, limit: int) -> int:
    return min(-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, limit)


def _search(model: Transformer, sources: list[Source], search: SearchConfig) -> list[list[Hypothesis]]:
    """Search sources as one batch of a size that is compiled once; rows to fill it up end after one token."""
    config = model.config
    limits = [token_limit(model, len(source.ids), search) for source in sources]
    size = next((size for size in BATCH_SIZES if size >= len(sources)), len(sources))
    length = _padded(max(len(source.ids) for source in sources), config.encoder.max_length)
    filled = sources + [Source([config.eos_id], sources[0].start)] * (size - len(sources))
    rows = mx.array([ids + [config.pad_id] * (length - len(ids)) for ids, _ in filled], mx.int32)
    forced = [first for _, (_, first) in filled if first is not None]
    found = generate_ids(
        model,
        rows,
        search,
        limits + [1] * (size - len(sources)),
        start_ids=[source.start.start_id for source in filled],
        forced_bos_ids=forced or None,
    )
    return found[: len(sources)]
