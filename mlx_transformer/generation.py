"""Texts in, texts out: lines are tokenised, packed by length into batches, searched, and given back in order."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import overload

import mlx.core as mx

from mlx_transformer.config import BATCH_TOKENS, SearchConfig
from mlx_transformer.model import Transformer
from mlx_transformer.search import Hypothesis, generate_ids, token_limit
from mlx_transformer.tokenizer import Tokenizer

WINDOW = 2048  # lines that are read ahead and sorted by length
LENGTH_MULTIPLE = 16  # sources are padded to a multiple: few shapes to compile, and fused attention on Metal
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CHARACTERS_PER_TOKEN = 64  # a line with more than this for each position of the model is surely too long for it
EMPTY = Hypothesis(ids=[], score=0.0, finish_reason="stop", text="")


@overload
def generate(
    model: Transformer, tokenizer: Tokenizer, text: str, search: SearchConfig | None = None, batch_tokens: int = ...
) -> str: ...


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: list[str],
    search: SearchConfig | None = None,
    batch_tokens: int = ...,
) -> list[str]: ...


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str | list[str],
    search: SearchConfig | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> str | list[str]:
    """The best target of a text, or of each of several.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: One source text, or a list of them.
        search: How to search; `model.search_defaults` if None.
        batch_tokens: Most padded source positions x beams of a batch.
    """
    lines = [text] if isinstance(text, str) else text
    hypotheses = generate_hypotheses(model, tokenizer, lines, search, batch_tokens=batch_tokens)
    texts = [best.text or "" for best, *_ in hypotheses]
    return texts[0] if isinstance(text, str) else texts


def generate_hypotheses(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: Iterable[str],
    search: SearchConfig | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each line, best first, lazily and in order.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lines: Source texts; a blank one gives one empty hypothesis.
        search: How to search; `model.search_defaults` if None.
        batch_tokens: Most padded source positions x beams of a batch.

    Returns:
        A list for each line. A source that is longer than the model's positions is cut, and its hypotheses say so
        (`truncated`).

    Raises:
        ValueError: If `batch_tokens` is not positive.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be more than 0, not {batch_tokens}.")
    search = search or model.search_defaults
    remaining = iter(lines)
    while window := list(islice(remaining, WINDOW)):
        yield from _window(model, tokenizer, window, search, batch_tokens)
        mx.clear_cache()  # buffers of shapes that may not come again


def _window(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    search: SearchConfig,
    batch_tokens: int,
) -> Iterator[list[Hypothesis]]:
    """Search lines in batches of like length; give each result once those before it are there."""
    limit = model.config.encoder.max_length
    sources = _encode(tokenizer, lines, limit)
    ready: dict[int, list[Hypothesis]] = {i: [EMPTY] for i, line in enumerate(lines) if not line.strip()}
    given = 0
    order = sorted((i for i in range(len(lines)) if i not in ready), key=lambda i: len(sources[i]))
    for batch in _pack(order, sources, limit, batch_tokens // search.beam_size):
        # A source that is cut keeps its end token.
        rows = [sources[i][: limit - 1] + sources[i][-1:] if len(sources[i]) > limit else sources[i] for i in batch]
        for i, hypotheses in zip(batch, _search(model, rows, search), strict=True):
            truncated = len(sources[i]) > limit
            ready[i] = [replace(h, text=tokenizer.decode(h.ids), truncated=truncated) for h in hypotheses]
        while given in ready:
            yield ready.pop(given)
            given += 1
    while given in ready:
        yield ready.pop(given)
        given += 1


def _encode(tokenizer: Tokenizer, lines: list[str], limit: int) -> list[list[int]]:
    """Source ids; of a line far longer than `limit` tokens only a beginning that is still longer is read."""
    beginnings = [line[: CHARACTERS_PER_TOKEN * limit] for line in lines]
    sources = tokenizer.encode_batch(beginnings)
    for i, line in enumerate(lines):
        if len(line) > len(beginnings[i]) and len(sources[i]) <= limit + 1:
            sources[i] = tokenizer.encode(line)
    return sources


def _pack(order: list[int], sources: list[list[int]], limit: int, positions: int) -> Iterator[list[int]]:
    """Cut lines sorted by length into batches of at most `positions` padded source positions."""
    start = 0
    while start < len(order):
        size = 1
        for candidate in BATCH_SIZES:
            last = order[min(start + candidate, len(order)) - 1]
            if candidate * _padded(len(sources[last]), limit) <= positions:
                size = candidate
        yield order[start : start + size]
        start += size


def _padded(length: int, limit: int) -> int:
    return min(-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, limit)


def _search(model: Transformer, rows: list[list[int]], search: SearchConfig) -> list[list[Hypothesis]]:
    """Search sources as one batch of a size that is compiled once; rows to fill it up end after one token."""
    config = model.config
    limits = [token_limit(model, len(row), search) for row in rows]
    size = next((size for size in BATCH_SIZES if size >= len(rows)), len(rows))
    length = _padded(max(map(len, rows)), config.encoder.max_length)
    filled = rows + [[config.eos_id]] * (size - len(rows))
    source = mx.array([row + [config.pad_id] * (length - len(row)) for row in filled], mx.int32)
    return generate_ids(model, source, search, limits + [1] * (size - len(rows)))[: len(rows)]
