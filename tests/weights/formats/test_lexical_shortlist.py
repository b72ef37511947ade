"""Marian's binary shortlists: what is read, and the one error line for files that are broken in any way."""

import gzip
import struct

import numpy as np
import pytest
from support.shortlist_files import shortlist_bytes

from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.weights.formats import lexical_shortlist
from mlx_transformer.weights.formats.lexical_shortlist import hash_words, parse_shortlist, read_shortlist
from mlx_transformer.weights.formats.tensors import CheckpointError

LISTS = [[10, 20], [], [12, 13, 40]]
VALID = shortlist_bytes(LISTS)
HUGE = 2**63
BEGIN, SIZE = "does not begin like one", "bytes that its header names, not"
SUM, ORDER = "must have the checksum of its header", "must increase from 0 to its 5 tokens"
BROKEN = {
    "empty": (b"", BEGIN),
    "one byte": (VALID[:1], BEGIN),
    "half a magic number": (VALID[:4], BEGIN),
    "magic number alone": (VALID[:8], BEGIN),
    "header cut": (VALID[:47], BEGIN),
    "other magic number": (shortlist_bytes(LISTS, magic=1), BEGIN),
    "big-endian": (VALID[:8][::-1] + VALID[8:], BEGIN),
    "text": (b"der the 0.5\nhaus house 0.9\n" * 9, BEGIN),
    "gzip": (gzip.compress(VALID), BEGIN),
    "zip": (b"PK\x03\x04" + VALID, BEGIN),
    "header alone": (VALID[:48], SIZE),
    "offsets cut": (VALID[:60], SIZE),
    "a byte short": (VALID[:-1], SIZE),
    "a byte more": (VALID + b"\0", SIZE),
    "twice": (VALID * 2, SIZE),
    "no offsets named": (shortlist_bytes(LISTS, sizes=(0, 5)), SIZE),
    "huge number of offsets": (shortlist_bytes(LISTS, sizes=(HUGE, 5)), SIZE),
    "huge number of tokens": (shortlist_bytes(LISTS, sizes=(4, HUGE)), SIZE),
    "offsets that overflow 64 bits": (shortlist_bytes(LISTS, sizes=(4 + 2**61, 5)), SIZE),
    "tokens that overflow 64 bits": (shortlist_bytes(LISTS, sizes=(4, 5 + 2**62)), SIZE),
    "checksum": (shortlist_bytes(LISTS, wrong_sum=1), SUM),
    "a changed token": (VALID[:-6] + b"\1" + VALID[-5:], SUM),
    "a changed number of first tokens": (VALID[:16] + b"\4" + VALID[17:], SUM),
    "no offsets": (shortlist_bytes([], offsets=[], sizes=(0, 0)), "must increase from 0 to its 0 tokens"),
    "first offset": (shortlist_bytes(LISTS, offsets=[1, 2, 2, 5]), ORDER),
    "last offset too small": (shortlist_bytes(LISTS, offsets=[0, 2, 2, 4]), ORDER),
    "last offset too large": (shortlist_bytes(LISTS, offsets=[0, 2, 2, 6]), ORDER),
    "decreasing offsets": (shortlist_bytes(LISTS, offsets=[0, 3, 2, 5]), ORDER),
    "offset beyond the tokens": (shortlist_bytes(LISTS, offsets=[0, 2, 2**62, 5]), ORDER),
}


def test_lists_are_read(tmp_path):
    path = tmp_path / "lex.deen.s2t.bin"
    path.write_bytes(VALID)
    shortlist = read_shortlist(path)
    assert (shortlist.num_first, shortlist.offsets.tolist()) == (3, [0, 2, 2, 5])
    assert shortlist.targets.tolist() == [10, 20, 12, 13, 40]
    assert shortlist.ids([[2]], 50, shared=False).tolist() == [0, 1, 2, 3, 4, 12, 13, 40]
    assert isinstance(read_shortlist(str(path)), LexicalShortlist)


def test_checksum_is_that_of_the_formula():
    """Computed by hand: seed ^= word + 0x9e3779b9 + (seed << 6) + (seed >> 2), in 64 bits."""
    assert hash_words(b"") == 0
    assert hash_words(struct.pack("<Q", 5)) == 0x9E3779BE
    second = (7 + 0x9E3779B9 + (0x9E3779BE << 6) + (0x9E3779BE >> 2)) ^ 0x9E3779BE
    assert hash_words(struct.pack("<2Q", 5, 7) + b"\1\2\3\4") == second
    assert hash_words(b"\xff" * 80) < 2**64


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_line(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / "lex.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_shortlist(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_other_paths_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="There is no shortlist .*: check the path"):
        read_shortlist(tmp_path / "lex.bin")
    with pytest.raises(ValueError, match="must be a file, not a folder, device or pipe"):
        read_shortlist(tmp_path)
    (tmp_path / "lex.bin").write_bytes(VALID)
    monkeypatch.setattr(lexical_shortlist, "MAX_SIZE", len(VALID) - 1)
    (tmp_path / "lex.bin.gz").write_bytes(gzip.compress(VALID))
    for name in ("lex.bin", "lex.bin.gz"):
        with pytest.raises(CheckpointError, match=f"{name}: a shortlist must have at most {len(VALID) - 1} bytes"):
            read_shortlist(tmp_path / name)


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "lex.bin.gz"
    path.write_bytes(gzip.compress(VALID))
    assert read_shortlist(path).targets.tolist() == [10, 20, 12, 13, 40]
    for content in (VALID, gzip.compress(VALID)[:-9], gzip.compress(VALID)[:30] + bytes(20)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="lex.bin.gz: packed files must be complete"):
            read_shortlist(path)


def test_random_damage_gives_a_list_or_an_error():
    """Also with a checksum that fits, no damage leads out of the arrays."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        body = bytearray(VALID[16:])
        for _ in range(rng.integers(1, 4)):
            body[rng.integers(len(body))] = rng.integers(256)
        content = VALID[:8] + struct.pack("<Q", hash_words(bytes(body))) + bytes(body)
        try:
            shortlist = parse_shortlist(content[: len(content) - rng.integers(2) * rng.integers(9)])
            ids = shortlist.ids([[0, 1, 2, 30]], 50, shared=True)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert ids.min() >= 0 and ids.max() < 50
    assert 500 < refused < 2000
