"""Batches of lines: tokenization of long lines, batches of similar length in few shapes, and results in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from mlx_transformer.decoding.batch_sizes import POWERS
from mlx_transformer.inference.line_errors import bisect_on_error
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.tokenization.tokenizer import Tokenizer

READ_AHEAD = 2048  # lines that are read ahead and sorted by length
LENGTH_MULTIPLE = 16  # of padded lengths, for fused attention on Metal
CHARACTERS_PER_TOKEN = 64  # lines with more characters per position are certainly too long
MAX_PHRASE_TOKENS = 32  # of the required phrases of a line; each costs as many beams as a search without them
Item = TypeVar("Item")
Result = TypeVar("Result")


def encode_sources(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """Return the source token ids of each line."""
    return tokenizer.encode_batch(*_columns(lines))


def encode_targets(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """Return the target token ids of lines whose text is a target."""
    texts, _, languages = _columns(lines)
    return tokenizer.encode_target_batch(texts, languages)


def encode_prefixes(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """Return the token ids of each line's target prefix."""
    texts = [(line.target_prefix or "").strip() for line in lines]
    num_after = len(tokenizer.config.after_target)
    rows = tokenizer.encode_target_batch(texts, [line.target_language for line in lines])
    return [row[: len(row) - num_after] if text else [] for row, text in zip(rows, texts, strict=True)]


def encode_phrases(tokenizer: Tokenizer, line: SourceLine) -> list[list[int]]:
    """Return the token ids of each of a line's required phrases, as they are in the middle of a target.

    Phrases that the vocabulary cannot write are left out, as are those beyond MAX_PHRASE_TOKENS.
    """
    if not line.required_phrases:
        return []
    # A phrase alone may have other tokens: byte-level BPE has none for the space before it.
    texts = ["1", *(f"1 {phrase}" for phrase in line.required_phrases)]
    first, *rows = encode_prefixes(tokenizer, [line._replace(target_prefix=text) for text in texts])
    phrases = [row[len(first) :] for row in rows if row[: len(first)] == first]
    written = zip(phrases, map(str.strip, tokenizer.decode_batch(phrases)), strict=True)
    room, chosen = MAX_PHRASE_TOKENS, []
    for ids, text in written:
        if text in line.required_phrases and len(ids) <= room:
            chosen.append(ids)
            room -= len(ids)
    return chosen


def _columns(lines: list[SourceLine]) -> tuple[list[str], list[str | None], list[str | None]]:
    return (
        [line.text for line in lines],
        [line.source_language for line in lines],
        [line.target_language for line in lines],
    )


def encode_truncated(
    encode: Callable[[list[SourceLine]], list[list[int]]], lines: list[SourceLine], max_length: int
) -> list[list[int]]:
    """Return the token ids of each line; of lines far beyond `max_length` tokens, only a beginning that exceeds it."""
    max_characters = CHARACTERS_PER_TOKEN * max_length
    ids = encode([line._replace(text=line.text[:max_characters]) for line in lines])
    for i, line in enumerate(lines):
        if len(line.text) > max_characters and len(ids[i]) <= max_length + 1:
            (ids[i],) = encode([line])
    return ids


def batch_by_length(
    lengths: Sequence[int], max_length: int, max_positions: int, sizes: Sequence[int] = POWERS
) -> list[list[int]]:
    """Divide items into batches of similar length.

    Args:
        lengths: The length of each item.
        max_length: Upper limit of padded lengths.
        max_positions: Maximum number of padded positions in a batch; a batch of one item may have more.
        sizes: The sizes that batches are padded to, increasing.

    Returns:
        The indices of the items in each batch. The batch of the first item comes first, so that its result is available
        early.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batches = []
    while order:
        size = 1
        for candidate in sizes:
            longest = lengths[order[min(candidate, len(order)) - 1]]
            if candidate * padded_length(longest, max_length) <= max_positions:
                size = candidate
        batches.append(order[:size])
        order = order[size:]
    return sorted(batches, key=min)


def run_batches(
    items: Mapping[int, Item],
    length: Callable[[Item], int],
    run: Callable[[list[Item]], Iterable[Result]],
    failed: Callable[[Item, str], Result],
    *limits: Any,
    keep_buffers: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Run items in batches of similar length; yield the result of each with its index, as soon as it is available.

    Args:
        items: Items by their indices.
        length: Returns the length of an item.
        run: Returns the result of each item of a batch.
        failed: See `bisect_on_error`.
        *limits: See `batch_by_length`.
        keep_buffers: Whether another thread may need the buffers that a batch leaves in MLX's cache.
    """
    indices = list(items)
    for batch in batch_by_length([length(items[i]) for i in indices], *limits):
        chosen = [indices[i] for i in batch]
        yield from zip(chosen, bisect_on_error(run, [items[i] for i in chosen], failed), strict=True)
        if not keep_buffers:
            mx.clear_cache()  # buffers of shapes that may not occur again


def padded_length(length: int, max_length: int) -> int:
    """Round a length up to one of few, so that few shapes are compiled: 16, 32, 48, 64, 96, 128, 192, ..."""
    multiple = LENGTH_MULTIPLE
    while 4 * multiple < length:
        multiple *= 2
    return min(-(-length // multiple) * multiple, max_length)


def pad_ids(rows: list[list[int]], length: int, pad_id: int) -> mx.array:
    """Pad token ids on the right, int32 (rows, length)."""
    return mx.array([ids + [pad_id] * (length - len(ids)) for ids in rows], mx.int32)


def reorder(indexed: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Yield results in the order of their indices, each as soon as all earlier ones are available."""
    ready: dict[int, Result] = {}
    next_index = 0
    for index, result in indexed:
        ready[index] = result
        while next_index in ready:
            yield ready.pop(next_index)
            next_index += 1
