"""Writes binary lexical shortlists as Marian does."""

import struct

import numpy as np

MAGIC = 0xF11A48D5013417F5


def checksum(content):
    """Marian's hash of words of 64 bits, written from the formula of boost::hash_combine."""
    seed = 0
    for (word,) in struct.iter_unpack("<Q", content[: len(content) // 8 * 8]):
        seed = seed ^ ((word + 0x9E3779B9 + (seed * 64) % 2**64 + seed // 4) % 2**64)
    return seed


def shortlist_bytes(lists, num_first=3, magic=MAGIC, offsets=None, sizes=None, wrong_sum=0):
    """Return the bytes of a shortlist with one list of target tokens for each source token."""
    tokens = [token for targets in lists for token in targets]
    offsets = np.cumsum([0, *map(len, lists)]) if offsets is None else np.array(offsets)
    sizes = sizes or (len(offsets), len(tokens))
    body = struct.pack("<4Q", num_first, 100, *sizes)
    body += offsets.astype("<u8").tobytes() + np.array(tokens, "<u4").tobytes()
    return struct.pack("<2Q", magic, (checksum(body) + wrong_sum) % 2**64) + body
