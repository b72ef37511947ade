"""Word alignments from cross-attention."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import numpy as np

from mlx_transformer.inference.batching import SourceLine, encode_sources
from mlx_transformer.tokenization.tokenizer import Tokenizer

WordIndices = list[int | None]  # for each token the number of its word, None for what is no text

WORD = re.compile(r"\S+")  # as str.split() finds them


def align(attention: np.ndarray, source: WordIndices, target: WordIndices) -> list[tuple[int, int]]:
    """Pairs of source and target units, sorted: each target token is aligned with the token that it attends to most.

    Args:
        attention: Weights, (target_length or more, source_length or more).
        source: The unit of each source position; what has none, as language codes and end tokens, is not attended to.
        target: The unit of each target token; what has none is aligned with nothing.
    """
    places = [place for place, unit in enumerate(source) if unit is not None]
    if not places:
        return []
    most = attention[: len(target), places].argmax(axis=1)
    pairs = {(source[places[i]], unit) for i, unit in zip(most, target, strict=True)}
    return sorted((i, j) for i, j in pairs if i is not None and j is not None)


def format_pharaoh(pairs: Sequence[tuple[int, int]]) -> str:
    """Pairs in the notation of the Pharaoh decoder: "0-0 1-2", source before target, both from 0."""
    return " ".join(f"{source}-{target}" for source, target in pairs)


def token_indices(words: WordIndices) -> WordIndices:
    """Each token of a text as a unit of its own: its position."""
    return [None if word is None else place for place, word in enumerate(words)]


def source_word_indices(tokenizer: Tokenizer, line: SourceLine, ids: list[int]) -> WordIndices:
    """The word of each source id of a line, whose end may be cut; prefixes and what stands around sources have none."""
    return word_indices_of_text(partial(encode_sources, tokenizer), line, ids, tokenizer.num_after_source)


def word_indices_of_text(
    encode: Callable[[list[SourceLine]], list[list[int]]], line: SourceLine, ids: list[int], after: int
) -> WordIndices:
    """The word of each id of a text that is at hand.

    They are not decoded, for an unknown character would come back as a word: a word ends where the ids of the text up
    to its end do.

    Args:
        encode: Gives the ids of lines.
        line: The text, and where its words begin: what stands before that has none.
        ids: Its ids, of which some may be cut off at the end.
        after: How many ids stand after every text.
    """
    words: WordIndices = []
    ends = [line.start, *(found.end() for found in WORD.finditer(line.text, line.start))]
    for number, end in enumerate(ends):
        (beginning,) = encode([line._replace(text=line.text[:end])])
        own, tail = beginning[: len(beginning) - after], beginning[len(beginning) - after :]
        words += [number - 1 if number else None] * (common_prefix_length(own, ids) - len(words))
        if len(words) >= len(ids) - (after if ids[len(ids) - after :] == tail else 0):
            break
    return words + [None] * (len(ids) - len(words))


def common_prefix_length(one: list[int], other: list[int]) -> int:
    """How many ids two rows begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def word_indices_of_ids(tokenizer: Tokenizer, ids: list[int]) -> WordIndices:
    """The word, in the decoded text, of each of generated target ids: how many words there are once it is decoded.

    A token that shows nothing yet, such as a lone space, belongs to the word that comes next; special ones to none.
    """
    parts = [tokenizer.decode(ids[:length]).split() for length in range(len(ids) + 1)]
    words: WordIndices = []
    word, fewest = None, len(parts[-1])
    for i in reversed(range(len(ids))):
        fewest = min(fewest, len(parts[i + 1]))  # what follows may join two words: "do n't"
        if "".join(parts[i]) != "".join(parts[i + 1]):
            word = fewest - 1
        words.append(None if ids[i] in tokenizer.config.skip_ids else word)
    return words[::-1]
