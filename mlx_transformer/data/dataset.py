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

from mlx_transformer.config.tokenizer import MIN_SOURCE_TOKENS
from mlx_transformer.data.parallel_corpus import SentencePair
from mlx_transformer.tokenization.tokenizer import Tokenizer

CHUNK_SIZE = 8192  # pairs tokenised at once
CHECKSUM_CHUNK = 2**20  # ids read into memory at once for the fingerprint
RARE_SHARE = 0.001  # of pairs, which is beyond the usual lengths
SHUFFLE_WINDOW = 2**18  # pairs assigned to batches at once


@dataclass(frozen=True)
class TokenSequences:
    """Token ids of many sentences, concatenated: sentence i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return the lengths of some sentences, (indices,)."""
        return self.offsets[indices + 1] - self.offsets[indices]

    @cached_property
    def max_length(self) -> int:
        """Length of the longest sentence."""
        return max(int(self.lengths(window).max()) for window in shuffle_windows(len(self)))

    def padded_rows(self, indices: np.ndarray, length: int, pad_id: int) -> np.ndarray:
        """Return sentences as rows padded on the right, int32 (indices, length)."""
        start, end = self.offsets[indices, None], self.offsets[indices + 1, None]
        positions = start + np.arange(length)
        is_token = positions < end
        return np.where(is_token, self.ids[np.where(is_token, positions, 0)], np.int32(pad_id))


@dataclass(frozen=True)
class TokenizedCorpus:
    """Sentence pairs as token ids.

    Attributes:
        source: Sources, with the special tokens that the tokenizer adds.
        target: Start token and target, with the special tokens that the tokenizer adds.
        num_dropped: Number of pairs that were too long.
        pad_id: Padding token; it may also be the start token.
        eos_id: End token.
    """

    source: TokenSequences
    target: TokenSequences
    num_dropped: int
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
        """Tokenise pairs and drop those that are too long; ids are stored in temporary files, not in memory.

        Args:
            pairs: Sources and targets, with language codes if the tokenizer needs them.
            tokenizer: The tokenizer.
            max_tokens: Maximum number of tokens of source and target, with the end token, without the start token.
            source_prefix: Text to put before every source that does not begin with it.
            folder: Folder of the temporary files, by default the system's. The files are unnamed and are freed when
                the process ends.

        Raises:
            ValueError: If all pairs are too long, or a language is missing or unknown.
        """
        pairs = iter(pairs)
        total = 0
        with ExitStack() as files:
            source = _SequenceWriter(files, folder, tokenizer.source_vocab_size)
            target = _SequenceWriter(files, folder, tokenizer.target_vocab_size)
            while chunk := [SentencePair(*pair) for pair in islice(pairs, CHUNK_SIZE)]:
                total += len(chunk)
                encoded = _encode_pairs(chunk, tokenizer, source_prefix)
                short = [pair for pair in encoded if len(pair[0]) <= max_tokens and len(pair[1]) - 1 <= max_tokens]
                source.write([source_ids for source_ids, _ in short])
                target.write([target_ids for _, target_ids in short])
            if not source.num_sequences:
                raise ValueError(
                    f"At least one pair must fit {max_tokens} tokens, but all {total} are longer: raise the limit."
                )
            num_dropped = total - source.num_sequences
            return cls(source.sequences(), target.sequences(), num_dropped, tokenizer.pad_id, tokenizer.eos_id)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)

    @cached_property
    def fingerprint(self) -> list[int]:
        """Number of pairs and a checksum of all ids, to detect other data."""
        checksum = 0
        for ids in (self.source.ids, self.target.ids):
            for start in range(0, len(ids), CHECKSUM_CHUNK):
                checksum = zlib.crc32(ids[start : start + CHECKSUM_CHUNK].tobytes(), checksum)
        return [len(self), checksum]

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens predicted in an epoch, with end tokens."""
        return len(self.target.ids) - len(self)

    def usual_lengths(self) -> tuple[int, float]:
        """Return the usual lengths of a pair: a share of RARE_SHARE is beyond each.

        Returns:
            The largest number of source tokens; and the smallest number of target tokens per source token, for sources
            of MIN_SOURCE_TOKENS or more, 0 if there are none.
        """
        sources, targets = (np.diff(side.offsets) for side in (self.source, self.target))
        is_long = sources >= MIN_SOURCE_TOKENS
        ratios = (targets[is_long] - 2) / sources[is_long]  # without start and end token
        smallest = float(np.quantile(ratios, RARE_SHARE)) if len(ratios) else 0.0
        return int(np.quantile(sources, 1 - RARE_SHARE)), max(smallest, 0.0)


def _encode_pairs(
    chunk: list[SentencePair], tokenizer: Tokenizer, prefix: str
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the source and target ids of each pair."""
    sources, targets, source_languages, target_languages = map(list, zip(*chunk, strict=True))
    sources = [text if text.startswith(prefix) else prefix + text for text in sources]
    source_ids = tokenizer.encode_batch(sources, source_languages, target_languages)
    target_ids = tokenizer.encode_target_batch(targets, target_languages)
    starts = tokenizer.decoder_starts(len(chunk), target_languages)
    for source, start, target in zip(source_ids, starts, target_ids, strict=True):
        yield source, [start.start_id, *target]


class _SequenceWriter:
    """Appends token sequences to unnamed temporary files, which are memory-mapped afterwards."""

    def __init__(self, files: ExitStack, folder: str | Path | None, vocab_size: int) -> None:
        self.ids_file, self.offsets_file = (files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self.num_sequences = 0
        self.num_ids = 0
        self.offsets_file.write(np.zeros(1, np.int64).tobytes())

    def write(self, sequences: list[list[int]]) -> None:
        offsets = self.num_ids + np.cumsum([0, *map(len, sequences)])
        self.num_sequences, self.num_ids = self.num_sequences + len(sequences), int(offsets[-1])
        self.offsets_file.write(offsets[1:].tobytes())
        self.ids_file.write(np.fromiter(chain.from_iterable(sequences), self.dtype).tobytes())

    def sequences(self) -> TokenSequences:
        for file in (self.ids_file, self.offsets_file):
            file.flush()
        # Plain arrays, because results of computing with a memmap would be memmaps too.
        ids, offsets = (
            np.asarray(np.memmap(file, dtype, "r"))
            for file, dtype in ((self.ids_file, self.dtype), (self.offsets_file, np.int64))
        )
        return TokenSequences(ids, offsets)


def shuffle_windows(size: int) -> Iterator[np.ndarray]:
    """Split the indices 0 to `size` - 1 into equal windows of at most SHUFFLE_WINDOW."""
    num_windows = -(-size // SHUFFLE_WINDOW)
    for window in range(num_windows):
        yield np.arange(size * window // num_windows, size * (window + 1) // num_windows)
