"""A kind of vocabulary: words split at spaces and cut by merges, each piece of a word but the last followed by "@@"."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mlx_transformer.config.serialization import check_types
from mlx_transformer.tokenization.vocabulary import AddedTokenSplitter, Vocabulary

END_OF_WORD = "</w>"  # marks the last character of a word in merges
CONTINUATION = "@@"
NEWLINE_TOKEN = "__newln__"
# White space by Unicode, which the separators U+001C to U+001F are not.
WHITESPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CHAT_WORD_PATTERN = re.compile(f"[^{WHITESPACE}]+\n?")
CHAT_PUNCTUATION_PATTERN = re.compile("([.,!?()])")
CHAT_WHITESPACE_PATTERN = re.compile(f"[{WHITESPACE}]{{2,}}")
MAX_CACHED_WORDS = 100_000  # words


@dataclass(frozen=True)
class BPEVocabulary(Vocabulary):
    """Subwords in the notation of subword-nmt.

    Attributes:
        ids: Piece -> id, "@@" at the end of a piece where the word goes on.
        unknown_id: The id of pieces that are not in it.
        merges: Pairs "left right", the first to merge first; the last character of a word ends with "</w>".
        added: Tokens that are found in a text before it is cut into words -> id.
        chat: Words are lower-cased, punctuation is split off and a line break is a word (Blenderbot-small).

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
        for merge in self.merges:
            if len(merge.split(" ")) != 2:
                raise ValueError(f"A merge must be two pieces with a space between: {merge!r} is not.")

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
    def _cut(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for table in (self.ids, self.added) for piece, i in table.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in split_chat_words(part) if self.chat else part.split():
                ids += self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        if word not in self._cut:
            if len(self._cut) >= MAX_CACHED_WORDS:
                self._cut.clear()
            self._cut[word] = [self.ids.get(piece, self.unknown_id) for piece in apply_merges(word, self._ranks)]
        return self._cut[word]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        text = " ".join(self._pieces.get(i, self.id_to_token(self.unknown_id)) for i in ids)
        # A target that ends in the middle of a word ends with the sign in the one original, not in the other.
        return (text if self.chat else f"{text} ").replace(f"{CONTINUATION} ", "").strip()

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self._pieces.get(i, "")

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.added.get(token, self.ids.get(token))


def split_chat_words(text: str) -> Iterator[str]:
    """Words of a text in lower case, punctuation apart."""
    for found in CHAT_WORD_PATTERN.findall(text):
        word = CHAT_PUNCTUATION_PATTERN.sub(r" \1", found).replace("'", " ' ")
        word = CHAT_WHITESPACE_PATTERN.sub(" ", word).replace("\n", f" {NEWLINE_TOKEN}")
        yield from (part.lower() for part in word.split(" ") if part)


def apply_merges(word: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """The pieces of a word: of all neighbours those of the lowest rank are merged, until none is left to merge."""
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    while len(pieces) > 1:
        pairs = zip(pieces, pieces[1:], strict=False)
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        pieces = merge_pair(pieces, *best)
    pieces[-1] = pieces[-1].removesuffix(END_OF_WORD)
    return [*(piece + CONTINUATION for piece in pieces[:-1]), pieces[-1]]


def merge_pair(pieces: list[str], left: str, right: str) -> list[str]:
    """Pieces with each `left` and the `right` after it made one, from the left."""
    result = []
    place = 0
    while place < len(pieces):
        pair = pieces[place : place + 2] == [left, right]
        result.append(left + right if pair else pieces[place])
        place += 2 if pair else 1
    return result
