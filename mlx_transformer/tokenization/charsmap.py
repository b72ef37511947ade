"""Checks compiled normalisation rules of SentencePiece, which both tokenizer libraries apply."""

import struct

import numpy as np

MAX_GROWTH = 200  # of a text
# Bits of a unit of the trie (a double array of darts-clone).
IS_LEAF, OFFSET_SHIFT, WIDE_OFFSET = 1 << 31, 10, 1 << 9


def check_charsmap(charsmap: bytes) -> float:
    """Check compiled normalisation rules of SentencePiece: a trie that maps text to offsets in the replacements.

    Returns:
        The factor by which they can make a text longer.

    Raises:
        ValueError: If the trie or an offset leads outside, where the `tokenizers` library would panic.
    """
    size = struct.unpack_from("<I", charsmap)[0] if len(charsmap) >= 4 else 0
    if size % 4 or not 0 < size <= len(charsmap) - 4:
        raise ValueError("its normalisation rules are damaged")
    units, replacements = np.frombuffer(charsmap, "<u4", size // 4, 4), charsmap[4 + size :]
    leaves = units & IS_LEAF != 0
    offsets = (units >> OFFSET_SHIFT) << ((units & WIDE_OFFSET) >> 6)
    children = (np.arange(len(units)) ^ offsets) | 0xFF  # the last unit that the next byte can lead to
    ends = units[leaves] & (IS_LEAF - 1)
    if (children[~leaves] >= len(units)).any() or (ends >= len(replacements)).any() or not _is_utf8(replacements):
        raise ValueError("its normalisation rules are damaged")
    if (growth := max(map(len, replacements.split(b"\0")))) > MAX_GROWTH:
        raise ValueError(f"its normalisation rules must make no text more than {MAX_GROWTH} times longer")
    return float(growth)


def _is_utf8(text: bytes) -> bool:
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False
