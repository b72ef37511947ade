"""BPE vocabularies in subword-nmt notation: every piece of a word except its last ends with "@@"."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from pathlib import Path

from mlx_transformer.config.serialization import check_types
from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_text
from mlx_transformer.tokenization.vocabulary import AddedTokenSplitter, Vocabulary, check_vocabulary_ids

END_OF_WORD = "</w>"  # appended to the last character of a word in merges
CONTINUATION = "@@"
NEWLINE_TOKEN = "__newln__"
# Unicode whitespace; unlike `str.split`, it leaves out the separators U+001C to U+001F.
WHITESPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CHAT_WORD_PATTERN = re.compile(f"[^{WHITESPACE}]+\n?")
CHAT_PUNCTUATION_PATTERN = re.compile("([.,!?()])")
CHAT_WHITESPACE_PATTERN = re.compile(f"[{WHITESPACE}]{{2,}}")
MAX_CACHED_WORDS = 100_000


@dataclass(frozen=True)
class BPEVocabulary(Vocabulary):
    """A BPE vocabulary in subword-nmt notation: text is split into words at whitespace, words into pieces by merges.

    Attributes:
        ids: Piece -> id; a piece inside a word ends with "@@".
        unknown_id: The id of unknown pieces.
        merges: Pairs "left right" in order of priority; the last character of a word ends with "</w>".
        added: Added tokens, matched in the text before it is split into words -> id.
        chat: Lower-case the text, split off punctuation and encode line breaks as words (Blenderbot-small).

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """

    kind = "merges"
    ids: dict[str, int]
    unknown_id: int
    merges: tuple[str, ...]
    added: dict[str, int] = field(default_factory=dict)
    chat: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_vocabulary_ids(self.ids, self.added, self.unknown_id)
        for merge in self.merges:
            if len(merge.split(" ")) != 2:
                raise ValueError(f"A merge must be two pieces separated by a space: got {short_repr(merge)}.")

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max([self.unknown_id, *self.ids.values(), *self.added.values()]) + 1

    @cached_property
    def _ranks(self) -> dict[tuple[str, ...], int]:
        return {tuple(merge.split(" ")): rank for rank, merge in enumerate(self.merges)}

    @cached_property
    def _splitter(self) -> AddedTokenSplitter:
        return AddedTokenSplitter(self.added, {})

    @cached_property
    def _word_cache(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _id_to_piece(self) -> dict[int, str]:
        return {i: piece for table in (self.ids, self.added) for piece, i in table.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in split_chat_words(part) if self.chat else part.split():
                ids += self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids = self._word_cache.get(word)
        if ids is None:
            ids = [self.ids.get(piece, self.unknown_id) for piece in apply_merges(word, self._ranks)]
            if len(self._word_cache) >= MAX_CACHED_WORDS:
                self._word_cache.clear()  # another thread may do so at any time
            self._word_cache[word] = ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        text = " ".join(self._id_to_piece.get(i, self.id_to_token(self.unknown_id)) for i in ids)
        # For a text that ends inside a word, Blenderbot-small keeps the final "@@" and fairseq removes it.
        return (text if self.chat else f"{text} ").replace(f"{CONTINUATION} ", "").strip()

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self._id_to_piece.get(i, "")

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.added.get(token, self.ids.get(token))


def split_chat_words(text: str) -> Iterator[str]:
    """Yield the words of a text in lower case, with punctuation and line breaks as separate words."""
    for match in CHAT_WORD_PATTERN.findall(text):
        word = CHAT_PUNCTUATION_PATTERN.sub(r" \1", match).replace("'", " ' ")
        word = CHAT_WHITESPACE_PATTERN.sub(" ", word).replace("\n", f" {NEWLINE_TOKEN}")
        yield from (part.lower() for part in word.split(" ") if part)


def apply_merges(word: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """Split a word into pieces: merge the adjacent pair of lowest rank until no pair has a rank.

    Takes time proportional to the length of the word, times its logarithm.
    """
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    # A merged piece keeps the index of its left part; the other part becomes empty.
    following, previous = list(range(1, len(pieces) + 1)), list(range(-1, len(pieces) - 1))

    def rank_of(left: int) -> int | None:
        return ranks.get((pieces[left], pieces[following[left]])) if following[left] < len(pieces) else None

    heap = [(rank, left) for left in range(len(pieces)) if (rank := rank_of(left)) is not None]
    heapify(heap)
    while heap:
        rank, merged = heap[0][0], []
        while heap and heap[0][0] == rank:  # all occurrences of the pair, from left to right
            left = heappop(heap)[1]
            if not pieces[left] or rank_of(left) != rank:
                continue  # a part of it was merged meanwhile
            right = following[left]
            pieces[left] += pieces[right]
            pieces[right] = ""
            following[left] = following[right]
            if following[left] < len(pieces):
                previous[following[left]] = left
            merged.append(left)
        for left in {index for start in merged for index in (previous[start], start) if index >= 0}:
            if pieces[left] and (new_rank := rank_of(left)) is not None:
                heappush(heap, (new_rank, left))
    *inner, last = filter(None, pieces)
    return [*(piece + CONTINUATION for piece in inner), last.removesuffix(END_OF_WORD)]


def read_merges(path: Path, first: int = 0, last: int | None = None) -> tuple[str, ...]:
    """Read merges from the lines `first` to `last` of a file, which may have a version header and counts.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not UTF-8 text.
    """
    lines = read_text(path).split("\n")[first:last]
    fields = (line.split() for line in lines if not line.startswith("#version"))
    return tuple(" ".join(pair[:2]) for pair in fields if len(pair) in (2, 3))
