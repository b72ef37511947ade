"""The interface of vocabularies, byte and word vocabularies, and the splitting of text at added tokens."""

import itertools
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from mlx_transformer.config.serialization import check_types, from_dict, to_dict
from mlx_transformer.messages import short_names

logger = logging.getLogger(__name__)
SPACE_SYMBOL = "\u2581"  # SentencePiece writes a space as this character
CONTINUATION_PATTERN = re.compile("@@ |@@$")  # subword-nmt: the word continues
JOINER_PATTERN = re.compile(" ?\uffed ?")  # OpenNMT: there was no space here
WORD_PATTERN = re.compile(r"\w+|[^\w\s]")  # words and marks of punctuation
BYTE_ID_OFFSET = 3  # the id of byte 0, after padding, end and unknown

StripRule = dict[str, Literal["left", "right", "both"]]  # added token -> the side on which it removes whitespace


class Vocabulary(ABC):
    """Maps text to ids and ids to text, without special tokens around the text."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """One more than the highest id of a token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; ids without a token do not raise."""

    @abstractmethod
    def id_to_token(self, i: int) -> str:
        """Return the token of an id; "" if there is none."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token; None if there is no such token."""

    def write(self, folder: Path, prefix: str) -> dict[str, Any]:
        """Write the vocabulary's files, whose names begin with `prefix`, and return the rest as plain data."""
        return to_dict(self)

    @classmethod
    def read(cls, folder: Path, prefix: str, data: dict[str, Any]) -> "Vocabulary":
        """Read the files and the plain data of `write`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file or the data is damaged.
        """
        return from_dict(cls, data, f"{folder / 'vocabulary.json'}: {prefix}{cls.kind}")


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """The bytes of UTF-8, after padding, end and unknown (ByT5).

    Attributes:
        added: Added tokens, matched in the text before it is encoded -> id.
        strip: Added token -> the side on which it removes whitespace.
    """

    kind = "bytes"
    added: dict[str, int]
    strip: StripRule = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_vocabulary_ids({}, self.added)

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max(255 + BYTE_ID_OFFSET, *self.added.values()) + 1

    @cached_property
    def _splitter(self) -> "AddedTokenSplitter":
        return AddedTokenSplitter(self.added, self.strip)

    @cached_property
    def _id_to_bytes(self) -> dict[int, bytes]:
        table = {byte + BYTE_ID_OFFSET: bytes([byte]) for byte in range(256)}
        return table | {i: token.encode() for token, i in self.added.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            ids += [part] if isinstance(part, int) else [byte + BYTE_ID_OFFSET for byte in part.encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`; bytes that are not UTF-8 are left out."""
        return b"".join(self._id_to_bytes.get(i, b"") for i in ids).decode(errors="ignore")

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`; a byte is written "<0x41>"."""
        content = self._id_to_bytes.get(i, b"")
        return f"<0x{content[0]:02X}>" if len(content) == 1 else content.decode()

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.added.get(token)


@dataclass(frozen=True)
class WordVocabulary(Vocabulary):
    """Words, characters, or pieces of text that is already split into pieces by spaces.

    Attributes:
        ids: Word -> id.
        unknown_id: The id of unknown words; None to leave them out, with a warning.
        join: How words are joined to text: "words" with spaces; "subwords" continue after "@@" (fairseq); a "joiner"
            marks where there was no space (OpenNMT); "sentencepiece" writes spaces as U+2581; "characters" are not
            separated.
        split_punctuation: Split unknown words at their punctuation.
    """

    kind = "words"
    ids: dict[str, int]
    unknown_id: int | None
    join: Literal["words", "subwords", "joiner", "sentencepiece", "characters"] = "words"
    split_punctuation: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_vocabulary_ids(self.ids, {}, self.unknown_id or 0)

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max([self.unknown_id or 0, *self.ids.values()]) + 1

    @cached_property
    def _id_to_word(self) -> dict[int, str]:
        return {i: word for word, i in self.ids.items()}

    @cached_property
    def _reported(self) -> set[str]:
        """Words that a warning has named."""
        return set()

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        words = list(text) if self.join == "characters" else text.split()
        if self.split_punctuation:
            split = ([word] if word in self.ids else WORD_PATTERN.findall(word) for word in words)
            words = list(itertools.chain.from_iterable(split))
        if self.unknown_id is not None:
            return [self.ids.get(word, self.unknown_id) for word in words]
        if new := {word: None for word in words if word not in self.ids and word not in self._reported}:
            self._reported.update(new)
            logger.warning("Left out, because the vocabulary has no unknown token: %s.", short_names(map(repr, new)))
        return [self.ids[word] for word in words if word in self.ids]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        separator = "" if self.join == "characters" else " "
        text = separator.join(self._id_to_word[i] for i in ids if i in self._id_to_word)
        if self.join == "subwords":
            return CONTINUATION_PATTERN.sub("", text)
        if self.join == "joiner":
            return JOINER_PATTERN.sub("", text)
        return text.replace(" ", "").replace(SPACE_SYMBOL, " ").strip() if self.join == "sentencepiece" else text

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self._id_to_word.get(i, "")

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.ids.get(token)


class AddedTokenSplitter:
    """Splits texts at added tokens; where several match, the longest wins."""

    def __init__(self, added: dict[str, int], strip: StripRule):
        """Compile the pattern that matches the tokens of `added` (token -> id)."""
        self.added, self.strip = added, strip
        longest_first = sorted(added, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the ids of added tokens and the non-empty text between them, in order."""
        parts = self.pattern.split(text) if self.pattern else [text]
        for index, part in enumerate(parts):
            if index % 2:
                yield self.added[part]
                continue
            if index > 0 and self.strip.get(parts[index - 1]) in ("right", "both"):
                part = part.lstrip()
            if index + 1 < len(parts) and self.strip.get(parts[index + 1]) in ("left", "both"):
                part = part.rstrip()
            if part:
                yield part


def check_vocabulary_ids(ids: dict[str, int], added: dict[str, int], unknown_id: int = 0) -> None:
    """Raise ValueError for a negative id, or an empty added token, which would match everywhere."""
    if (lowest := min(unknown_id, *ids.values(), *added.values(), 0)) < 0:
        raise ValueError(f"Ids of a vocabulary must not be below 0: got {lowest}.")
    if "" in added:
        raise ValueError('Added tokens must not be empty: got "".')
