"""Reads Marian's binary lexical shortlists, such as Firefox's lex.*.bin.

A file has six numbers of 64 bits (magic number, checksum of all that follows it, number of first tokens, best tokens of
each source token, number of offsets, number of tokens), the offsets of 64 bits and the tokens of 32 bits.
"""

import struct
from pathlib import Path

import numpy as np

from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.storage.files import check_is_file
from mlx_transformer.weights.formats.model_archive import COMPRESSED, open_compressed
from mlx_transformer.weights.formats.tensors import CheckpointError

HEADER = struct.Struct("<6Q")
MAGIC = 0xF11A48D5013417F5
MAX_SIZE = 2**26  # ten times the largest of Firefox's


def read_shortlist(path: str | Path) -> LexicalShortlist:
    """Read a lexical shortlist of Marian in its binary format (lex.s2t.bin, also .gz or .zst), for `generate`.

    Each batch then generates only the tokens that are likely for its sources, which is faster; a text may come out
    differently in another batch.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no such file, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no shortlist {path}: check the path.")
    check_is_file(path)
    try:
        with open_compressed(path) if path.suffix in COMPRESSED else path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        return parse_shortlist(content)
    except CheckpointError as error:
        raise CheckpointError(error.problem, error.remedy, path) from None


def parse_shortlist(content: bytes) -> LexicalShortlist:
    """Parse the bytes of a binary shortlist; see `read_shortlist`."""
    if len(content) > MAX_SIZE:
        raise CheckpointError(f"a shortlist must have at most {MAX_SIZE} bytes", "check whether it is another file")
    if len(content) < HEADER.size or content[:8] != HEADER.pack(MAGIC, 0, 0, 0, 0, 0)[:8]:
        raise CheckpointError(
            "a shortlist must be a binary one of Marian, this file does not begin like one",
            "name it .gz or .zst if it is compressed, convert a text file with marian-conv, or copy it again",
        )
    _, checksum, num_first, _, num_offsets, num_tokens = HEADER.unpack_from(content)
    if (size := HEADER.size + 8 * num_offsets + 4 * num_tokens) != len(content):
        raise CheckpointError(f"a shortlist must have the {size} bytes that its header names, not {len(content)}")
    if hash_words(content[16:]) != checksum:
        raise CheckpointError(f"a shortlist must have the checksum of its header, {checksum:016x}, but it has another")
    offsets = np.frombuffer(content, "<u8", num_offsets, HEADER.size)
    targets = np.frombuffer(content, "<u4", num_tokens, HEADER.size + 8 * num_offsets)
    if not num_offsets or offsets[0] or offsets[-1] != num_tokens or (offsets[:-1] > offsets[1:]).any():
        raise CheckpointError(f"offsets of a shortlist must increase from 0 to its {num_tokens} tokens")
    return LexicalShortlist(min(num_first, 2**32), offsets.astype(np.int64), targets.astype(np.int64))


def hash_words(content: bytes) -> int:
    """Return Marian's checksum of bytes: words of 64 bits, combined as by Boost; bytes after the last do not count."""
    seed = 0
    for word in np.frombuffer(content, "<u8", len(content) // 8).tolist():
        seed ^= (word + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & 0xFFFFFFFFFFFFFFFF
    return seed
