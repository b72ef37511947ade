"""Word alignments from cross-attention."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import numpy as np

from mlx_transformer.inference.batching import encode_sources
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.tokenization.tokenizer import Tokenizer

WordIndices = list[int | None]  # the word of each token; None for special tokens and prefixes
WORD = re.compile(r"\S+", re.ASCII)  # no-break and other Unicode spaces are part of words, as for other tools


def align(
    attention: np.ndarray, source: WordIndices, target: WordIndices, cover_source: bool = False
) -> list[tuple[int, int]]:
    """Align each target token with the source token that it attends to most.

    Args:
        attention: Attention weights, (target_length or more, source_length or more).
        source: Word (or token) index of each source position; positions with None are ignored.
        target: Word (or token) index of each target token; tokens with None are not aligned.
        cover_source: See `AlignmentConfig`.

    Returns:
        Sorted pairs of source and target indices.
    """
    columns = [(position, unit) for position, unit in enumerate(source) if unit is not None]
    rows = [(position, unit) for position, unit in enumerate(target) if unit is not None]
    if not columns or not rows:
        return []
    weights = attention[np.ix_([row for row, _ in rows], [column for column, _ in columns])]
    pairs = {(columns[best][1], unit) for best, (_, unit) in zip(weights.argmax(axis=1).tolist(), rows, strict=True)}
    if cover_source:
        aligned = {unit for unit, _ in pairs}
        uncovered = [(i, unit) for i, (_, unit) in enumerate(columns) if unit not in aligned]
        pairs |= {(unit, rows[int(weights[:, i].argmax())][1]) for i, unit in uncovered}
    return sorted(pairs)


def format_pharaoh(pairs: Sequence[tuple[int, int]]) -> str:
    """Format pairs in Pharaoh notation: "0-0 1-2", source before target, both from 0.

    Words are separated by spaces, tabs and line ends; no-break spaces are part of words.
    """
    return " ".join(f"{source}-{target}" for source, target in pairs)


def token_indices(words: WordIndices) -> WordIndices:
    """Return the position of each token that belongs to a word."""
    return [None if word is None else position for position, word in enumerate(words)]


def source_word_indices(tokenizer: Tokenizer, line: SourceLine, ids: list[int]) -> WordIndices:
    """Return the word of each source token id; None for prefixes and special tokens."""
    return word_indices_of_text(partial(encode_sources, tokenizer), line, ids, tokenizer.num_after_source)


def word_indices_of_text(
    encode: Callable[[list[SourceLine]], list[list[int]]], line: SourceLine, ids: list[int], num_after: int
) -> WordIndices:
    """Return the word of each token id of a known text.

    Ids are not decoded, because unknown characters would not survive: a word ends where the ids of the text up to its
    end do.

    Args:
        encode: Returns the token ids of lines.
        line: The text; the part before `line.start` has no words.
        ids: Its token ids, possibly truncated.
        num_after: Number of special tokens after every text.
    """
    words: WordIndices = []
    ends = [line.start, *(match.end() for match in WORD.finditer(line.text, line.start))]
    for number, end in enumerate(ends):
        (partial_ids,) = encode([line._replace(text=line.text[:end])])
        text_ids, tail = partial_ids[: len(partial_ids) - num_after], partial_ids[len(partial_ids) - num_after :]
        words += [number - 1 if number else None] * (common_prefix_length(text_ids, ids) - len(words))
        if len(words) >= len(ids) - (num_after if ids[len(ids) - num_after :] == tail else 0):
            break
    return words + [None] * (len(ids) - len(words))


def common_prefix_length(first: list[int], second: list[int]) -> int:
    """Return the length of the longest common prefix of two lists."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def word_indices_of_ids(tokenizer: Tokenizer, ids: list[int]) -> WordIndices:
    """Return the word of each generated target id, in the decoded text.

    A token that does not show yet, such as a space, belongs to the next word. Special tokens have no word.
    """
    parts = [WORD.findall(tokenizer.decode(ids[:length])) for length in range(len(ids) + 1)]
    words: WordIndices = []
    word, fewest = None, len(parts[-1])
    for i in reversed(range(len(ids))):
        fewest = min(fewest, len(parts[i + 1]))  # later tokens may join two words: "do n't"
        if "".join(parts[i]) != "".join(parts[i + 1]):
            word = fewest - 1
        words.append(None if ids[i] in tokenizer.config.skip_ids else word)
    return words[::-1]
