"""Lines to batches and back: languages and prefixes, beginnings of long lines, batches by length, results in order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, TypeVar

import mlx.core as mx

from mlx_transformer.tokenization.tokenizer import Tokenizer

READ_AHEAD = 2048  # lines that are read ahead and sorted by length
LENGTH_MULTIPLE = 16  # of padded lengths, for fused attention on Metal; longer ones are 2 or 3 x a power of 2 of it
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CHARACTERS_PER_TOKEN = 64  # a line with more than this for each position of the model is surely too long for it
PerLineText = str | Iterable[str | None] | None  # a text for all lines, or one for each
Result = TypeVar("Result")


class SourceLine(NamedTuple):
    """A source text and what is known of its target.

    Attributes:
        text: The text with its prefix.
        source_language: The code of its language, None where the model needs none.
        target_language: The code of the target's language, likewise.
        target_prefix: What the target begins with, None or blank for nothing.
        start: Where in the text the line itself begins, after a prefix that was set before it.
    """

    text: str
    source_language: str | None = None
    target_language: str | None = None
    target_prefix: str | None = None
    start: int = 0


def make_source_lines(
    texts: Iterable[str],
    prefix: str,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    target_prefix: PerLineText = None,
) -> Iterator[SourceLine]:
    """Each text with what belongs to it and the source prefix, unless it begins with it; a blank one stays blank."""
    columns = [
        repeat(each) if each is None or isinstance(each, str) else iter(each)
        for each in (source_language, target_language, target_prefix)
    ]
    for number, text in enumerate(texts, start=1):
        try:
            source, target, begun = [next(column) for column in columns]
        except StopIteration:
            raise ValueError(
                f"Languages and target prefixes must be one for all lines or one for each: line {number} lacks one."
            ) from None
        blank = not text.strip()
        before = "" if blank or text.startswith(prefix) else prefix
        yield SourceLine("" if blank else before + text, source, target, begun, len(before))


def encode_sources(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """The source ids of each line."""
    return tokenizer.encode_batch(*_columns(lines))


def encode_targets(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """The target ids of each line, whose text is a target."""
    texts, _, languages = _columns(lines)
    return tokenizer.encode_target_batch(texts, languages)


def encode_prefixes(tokenizer: Tokenizer, lines: list[SourceLine]) -> list[list[int]]:
    """The target ids that the target of each line begins with, often none."""
    texts = [(line.target_prefix or "").strip() for line in lines]
    after = len(tokenizer.config.after_target)
    rows = tokenizer.encode_target_batch(texts, [line.target_language for line in lines])
    return [row[: len(row) - after] if text else [] for row, text in zip(rows, texts, strict=True)]


def _columns(lines: list[SourceLine]) -> tuple[list[str], list[str | None], list[str | None]]:
    return (
        [line.text for line in lines],
        [line.source_language for line in lines],
        [line.target_language for line in lines],
    )


def encode_truncated(
    encode: Callable[[list[SourceLine]], list[list[int]]], lines: list[SourceLine], limit: int
) -> list[list[int]]:
    """The ids of each line; of one that is far longer than `limit` tokens, only a beginning that is still longer."""
    most = CHARACTERS_PER_TOKEN * limit
    ids = encode([line._replace(text=line.text[:most]) for line in lines])
    for i, line in enumerate(lines):
        if len(line.text) > most and len(ids[i]) <= limit + 1:
            (ids[i],) = encode([line])
    return ids


def batch_by_length(lengths: Sequence[int], limit: int, positions: int) -> list[list[int]]:
    """Deal numbers to batches of like length, of at most `positions` padded positions.

    Args:
        lengths: The length of each number, 0 and up.
        limit: Length above which none is padded.
        positions: Most padded positions of a batch, unless a single one has more.

    Returns:
        The numbers of each batch; the batch that holds the first one first, for then its result can be given soon.
    """
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    batches = []
    while order:
        size = 1
        for candidate in BATCH_SIZES:
            longest = lengths[order[min(candidate, len(order)) - 1]]
            if candidate * padded_length(longest, limit) <= positions:
                size = candidate
        batches.append(order[:size])
        order = order[size:]
    return sorted(batches, key=min)


def padded_length(length: int, limit: int) -> int:
    """One of the few lengths that are compiled: 16, 32, 48, 64, 96, 128, 192 and so on."""
    multiple = LENGTH_MULTIPLE
    while 4 * multiple < length:
        multiple *= 2
    return min(-(-length // multiple) * multiple, limit)


def padded_batch_size(count: int) -> int:
    """One of the few sizes that are compiled."""
    return next((size for size in BATCH_SIZES if size >= count), count)


def pad_ids(rows: list[list[int]], length: int, pad_id: int) -> mx.array:
    """Ids padded on the right, int32 (rows, length)."""
    return mx.array([ids + [pad_id] * (length - len(ids)) for ids in rows], mx.int32)


def reorder(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results that come with their numbers, 0 and up in any order: each as soon as all before it are there."""
    ready: dict[int, Result] = {}
    given = 0
    for number, result in numbered:
        ready[number] = result
        while given in ready:
            yield ready.pop(given)
            given += 1
