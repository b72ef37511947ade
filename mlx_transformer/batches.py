"""Lines to batches and back: languages and prefixes, beginnings of long lines, batches by length, results in order."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import NamedTuple, TypeVar

import mlx.core as mx

from mlx_transformer.tokenizer import Tokenizer

WINDOW = 2048  # lines that are read ahead and sorted by length
LENGTH_MULTIPLE = 16  # sources are padded to a multiple: few shapes to compile, and fused attention on Metal
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CHARACTERS_PER_TOKEN = 64  # a line with more than this for each position of the model is surely too long for it
Languages = str | Iterable[str | None] | None  # a code for all lines, or one for each
Result = TypeVar("Result")


class Line(NamedTuple):
    """A source text and the codes of its language and of the target's, None where the model needs none.

    Attributes:
        text: The text with its prefix.
        source_language: The code of its language.
        target_language: The code of the target's language.
        start: Where in the text the line itself begins, after a prefix that was set before it.
    """

    text: str
    source_language: str | None = None
    target_language: str | None = None
    start: int = 0


def read_lines(
    texts: Iterable[str], source_language: Languages, target_language: Languages, prefix: str
) -> Iterator[Line]:
    """Each text with its languages and the prefix, unless it begins with it; a blank one stays blank."""
    languages = [
        repeat(each) if each is None or isinstance(each, str) else iter(each)
        for each in (source_language, target_language)
    ]
    for number, text in enumerate(texts, start=1):
        try:
            source, target = [next(each) for each in languages]
        except StopIteration:
            raise ValueError(
                f"Languages must be one code for all lines or one for each: line {number} has none."
            ) from None
        blank = not text.strip()
        before = "" if blank or text.startswith(prefix) else prefix
        yield Line("" if blank else before + text, source, target, len(before))


def encode_sources(tokenizer: Tokenizer, lines: list[Line]) -> list[list[int]]:
    """The source ids of each line."""
    return tokenizer.encode_batch(*_columns(lines))


def encode_targets(tokenizer: Tokenizer, lines: list[Line]) -> list[list[int]]:
    """The target ids of each line, whose text is a target."""
    texts, _, languages = _columns(lines)
    return tokenizer.encode_target_batch(texts, languages)


def _columns(lines: list[Line]) -> tuple[list[str], list[str | None], list[str | None]]:
    return (
        [line.text for line in lines],
        [line.source_language for line in lines],
        [line.target_language for line in lines],
    )


def encode_beginnings(
    encode: Callable[[list[Line]], list[list[int]]], lines: list[Line], limit: int
) -> list[list[int]]:
    """The ids of each line; of one that is far longer than `limit` tokens, only a beginning that is still longer."""
    most = CHARACTERS_PER_TOKEN * limit
    ids = encode([line._replace(text=line.text[:most]) for line in lines])
    for i, line in enumerate(lines):
        if len(line.text) > most and len(ids[i]) <= limit + 1:
            (ids[i],) = encode([line])
    return ids


def pack(lengths: list[int], limit: int, positions: int) -> Iterator[tuple[int, int]]:
    """Cut sorted lengths into batches, start and size, of at most `positions` padded positions."""
    start = 0
    while start < len(lengths):
        size = 1
        for candidate in BATCH_SIZES:
            longest = lengths[min(start + candidate, len(lengths)) - 1]
            if candidate * padded(longest, limit) <= positions:
                size = candidate
        yield start, size
        start += size


def padded(length: int, limit: int) -> int:
    """One of the few lengths that are compiled."""
    return min(-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, limit)


def batch_size(count: int) -> int:
    """One of the few sizes that are compiled."""
    return next((size for size in BATCH_SIZES if size >= count), count)


def as_rows(rows: list[list[int]], length: int, pad_id: int) -> mx.array:
    """Ids padded on the right, int32 (rows, length)."""
    return mx.array([ids + [pad_id] * (length - len(ids)) for ids in rows], mx.int32)


def in_order(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results that come with their numbers, 0 and up in any order: each as soon as all before it are there."""
    ready: dict[int, Result] = {}
    given = 0
    for number, result in numbered:
        ready[number] = result
        while given in ready:
            yield ready.pop(given)
            given += 1
