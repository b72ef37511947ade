"""Vocabularies: the interface that a tokenizer uses, and vocabularies of bytes and words."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from mlx_transformer.config.serialization import check_types, from_dict, to_dict

SPACE_SYMBOL = "\u2581"  # sentencepiece's sign for a space

CONTINUATION_PATTERN = re.compile("@@ |@@$")  # subword-nmt's sign that the word goes on

JOINER_PATTERN = re.compile(" ?\uffed ?")  # OpenNMT's sign that no space was here

BYTE_ID_OFFSET = 3

StripRule = dict[str, Literal["left", "right", "both"]]


class Vocabulary(ABC):
    """Texts as ids, and ids as text."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """One more than the highest id that has a meaning."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added before or after."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; an id without a meaning does no harm."""

    @abstractmethod
    def id_to_token(self, i: int) -> str:
        """The piece of an id; "" for an id without a meaning."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """The id of a piece; None if there is no such piece."""

    def write(self, folder: Path, prefix: str) -> dict[str, Any]:
        """Write files whose names begin with `prefix`; give the plain data that `read` needs beside them."""
        return to_dict(self)

    @classmethod
    def read(cls, folder: Path, prefix: str, data: dict[str, Any]) -> "Vocabulary":
        """What `write` wrote.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file or the data is damaged.
        """
        return from_dict(cls, data, f"{folder / 'vocabulary.json'}: {prefix}{cls.kind}")


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """The bytes of UTF-8, after padding, end and an unknown that never comes (byT5).

    Attributes:
        added: Tokens that are found in a text first -> id.
        strip: Those beside which white space is dropped -> on which side.
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
    def _pieces(self) -> dict[int, bytes]:
        pieces = {byte + BYTE_ID_OFFSET: bytes([byte]) for byte in range(256)}
        return pieces | {i: token.encode() for token, i in self.added.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            ids += [part] if isinstance(part, int) else [byte + BYTE_ID_OFFSET for byte in part.encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`; bytes that are no UTF-8 are left out."""
        return b"".join(self._pieces.get(i, b"") for i in ids).decode(errors="ignore")

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`; a byte as "<0x41>", the token that has its place."""
        piece = self._pieces.get(i, b"")
        return f"<0x{piece[0]:02X}>" if len(piece) == 1 else piece.decode()

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.added.get(token)


@dataclass(frozen=True)
class WordVocabulary(Vocabulary):
    """Words or pieces that are split at spaces already.

    Attributes:
        ids: Word -> id.
        unknown_id: The id of words that are not in it.
        join: What to undo after words are joined with spaces: "subwords" go on after "@@" (fairseq), a "joiner" stands
            where there was no space (OpenNMT), "sentencepiece" writes a space as U+2581.
    """

    kind = "words"
    ids: dict[str, int]
    unknown_id: int
    join: Literal["words", "subwords", "joiner", "sentencepiece"] = "words"

    def __post_init__(self) -> None:
        check_types(self)
        check_vocabulary_ids(self.ids, {}, self.unknown_id)

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max([self.unknown_id, *self.ids.values()]) + 1

    @cached_property
    def _words(self) -> dict[int, str]:
        return {i: word for word, i in self.ids.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        return [self.ids.get(word, self.unknown_id) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        text = " ".join(self._words[i] for i in ids if i in self._words)
        if self.join == "subwords":
            return CONTINUATION_PATTERN.sub("", text)
        if self.join == "joiner":
            return JOINER_PATTERN.sub("", text)
        return text.replace(" ", "").replace(SPACE_SYMBOL, " ").strip() if self.join == "sentencepiece" else text

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self._words.get(i, "")

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.ids.get(token)


class AddedTokenSplitter:
    """Cuts texts at added tokens, of those that begin at one place at the longest."""

    def __init__(self, added: dict[str, int], strip: StripRule):
        """Tokens -> ids, and those beside which white space is dropped -> on which side."""
        self.added, self.strip = added, strip
        longest_first = sorted(added, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of a text in order: ids of added tokens, and what stands between them, never empty."""
        parts = self.pattern.split(text) if self.pattern else [text]
        for place, part in enumerate(parts):
            if place % 2:
                yield self.added[part]
                continue
            if place > 0 and self.strip.get(parts[place - 1]) in ("right", "both"):
                part = part.lstrip()
            if place + 1 < len(parts) and self.strip.get(parts[place + 1]) in ("left", "both"):
                part = part.rstrip()
            if part:
                yield part


def check_vocabulary_ids(ids: dict[str, int], added: dict[str, int], unknown_id: int = 0) -> None:
    """Refuse ids below 0, and an added token that would be found everywhere."""
    if min(unknown_id, *ids.values(), *added.values(), 0) < 0:
        raise ValueError("Ids of a vocabulary must not be below 0: one of them is.")
    if "" in added:
        raise ValueError("Added tokens must not be empty: one of them is.")
