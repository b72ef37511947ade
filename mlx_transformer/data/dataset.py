"""Tokenised training corpora, stored in memory-mapped files."""

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from mlx_transformer.data.parallel_corpus import SentencePair
from mlx_transformer.tokenization.tokenizer import Tokenizer

CHUNK_SIZE = 8192  # pairs that are tokenised at once

CHECKSUMMED_BYTES = 2**20  # ids whose checksum is computed at once
SHUFFLE_WINDOW = 2**18  # pairs that are dealt to batches at once


@dataclass(frozen=True)
class TokenSequences:
    """Token ids of many sentences end to end: sentence i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, members: np.ndarray) -> np.ndarray:
        """Number of ids of some sentences, (members,)."""
        return self.offsets[members + 1] - self.offsets[members]

    @cached_property
    def longest(self) -> int:
        """Number of ids of the longest sentence."""
        return max(int(self.lengths(window).max()) for window in shuffle_windows(len(self)))

    def rows(self, members: np.ndarray, length: int, pad_id: int) -> np.ndarray:
        """Give sentences as rows padded on the right, int32 (members, length)."""
        start, end = self.offsets[members, None], self.offsets[members + 1, None]
        places = start + np.arange(length)
        inside = places < end
        return np.where(inside, self.ids[np.where(inside, places, 0)], np.int32(pad_id))


@dataclass(frozen=True)
class TokenizedCorpus:
    """Pairs as token ids.

    Attributes:
        source: Sources with all that stands around them.
        target: What the decoder reads and predicts: the start token, then the target with all that stands around it.
        dropped: How many pairs were too long.
        pad_id: What batches are padded with; it may also start targets.
        eos_id: The only id of rows that fill up a batch.
    """

    source: TokenSequences
    target: TokenSequences
    dropped: int
    pad_id: int
    eos_id: int

    @classmethod
    def build(
        cls,
        pairs: Iterable[SentencePair | tuple[str, str]],
        tokenizer: Tokenizer,
        max_tokens: int = 256,
        *,
        source_prefix: str = "",
        folder: str | Path | None = None,
    ) -> "TokenizedCorpus":
        """Tokenise pairs, without those that are too long; ids are held in temporary files, not in memory.

        Args:
            pairs: Sources and targets, with the codes of their languages where the tokenizer asks for them.
            tokenizer: The tokenizer.
            max_tokens: Most tokens on a side, the end token counted, the start token not.
            source_prefix: What every source begins with; it is set before those that do not.
            folder: Where the files are made, which have no name and are freed whenever the process ends; None for the
                system's folder for such.

        Raises:
            ValueError: If no pair is left, or a language is missing or unknown.
        """
        pairs = iter(pairs)
        total = 0
        with ExitStack() as files:
            source = _SequenceWriter(files, folder, tokenizer.source_vocab_size)
            target = _SequenceWriter(files, folder, tokenizer.target_vocab_size)
            while chunk := [SentencePair(*pair) for pair in islice(pairs, CHUNK_SIZE)]:
                total += len(chunk)
                rows = _encode_pairs(chunk, tokenizer, source_prefix)
                kept = [row for row in rows if len(row[0]) <= max_tokens and len(row[1]) - 1 <= max_tokens]
                source.write([ids for ids, _ in kept])
                target.write([ids for _, ids in kept])
            if not source.count:
                raise ValueError(f"No pair is left of {total}: all exceed {max_tokens} tokens; allow more.")
            dropped = total - source.count
            return cls(source.sentences(), target.sentences(), dropped, tokenizer.pad_id, tokenizer.eos_id)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)

    @cached_property
    def fingerprint(self) -> list[int]:
        """What tells it from another: number of pairs and a checksum of ids."""
        total = 0
        for ids in (self.source.ids, self.target.ids):
            for first in range(0, len(ids), CHECKSUMMED_BYTES):
                total = zlib.crc32(ids[first : first + CHECKSUMMED_BYTES].tobytes(), total)
        return [len(self), total]

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens that are predicted in an epoch, end tokens counted."""
        return len(self.target.ids) - len(self)


def _encode_pairs(
    chunk: list[SentencePair], tokenizer: Tokenizer, prefix: str
) -> Iterator[tuple[list[int], list[int]]]:
    """Give the ids of each pair's source and target."""
    sources, targets, source_languages, target_languages = map(list, zip(*chunk, strict=True))
    sources = [text if text.startswith(prefix) else prefix + text for text in sources]
    source_ids = tokenizer.encode_batch(sources, source_languages, target_languages)
    target_ids = tokenizer.encode_target_batch(targets, target_languages)
    starts = tokenizer.decoder_starts(len(chunk), target_languages)
    for source, start, target in zip(source_ids, starts, target_ids, strict=True):
        yield source, [start.start_id, *target]


class _SequenceWriter:
    """Appends sentences to files without a name, whose contents the memory then maps."""

    def __init__(self, files: ExitStack, folder: str | Path | None, vocab_size: int) -> None:
        self.ids, self.ends = (files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self.count = 0
        self.end = 0
        self.ends.write(np.zeros(1, np.int64).tobytes())

    def write(self, rows: list[list[int]]) -> None:
        ends = self.end + np.cumsum([0, *map(len, rows)])
        self.count, self.end = self.count + len(rows), int(ends[-1])
        self.ends.write(ends[1:].tobytes())
        self.ids.write(np.fromiter(chain.from_iterable(rows), self.dtype).tobytes())

    def sentences(self) -> TokenSequences:
        for file in (self.ids, self.ends):
            file.flush()
        # Plain arrays: a memmap hands its class on to all that is computed from it.
        ids, offsets = (
            np.asarray(np.memmap(file, kind, "r")) for file, kind in ((self.ids, self.dtype), (self.ends, np.int64))
        )
        return TokenSequences(ids, offsets)


def shuffle_windows(size: int) -> Iterator[np.ndarray]:
    """The numbers from 0 to `size` - 1, cut into equal parts of at most WINDOW."""
    parts = -(-size // SHUFFLE_WINDOW)
    for part in range(parts):
        yield np.arange(size * part // parts, size * (part + 1) // parts)
