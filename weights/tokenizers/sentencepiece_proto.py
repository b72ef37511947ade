"""Sentencepiece models read as data: their pieces, and how they normalise text, from the fields of their file."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_transformer.tokenization.sentencepiece_vocabulary import load_sentencepiece

# Kinds of pieces that no text is cut into.
CONTROL, USER_DEFINED = 3, 4
PIECES_FIELD, NORMALIZER_FIELD = 1, 3  # fields of a model
PIECE_FIELD, SCORE_FIELD, TYPE_FIELD = 1, 2, 3  # fields of a piece
CHARSMAP_FIELD = 2  # field of a normalizer
WIRE_VARINT, WIRE_I64, WIRE_LEN, WIRE_I32 = 0, 1, 2, 5  # ways to write a value
MAX_VARINT_BYTES = 10  # bytes


@dataclass(frozen=True)
class SentencePieceModel:
    """What a sentencepiece model holds.

    Attributes:
        pieces: Each piece and its score, in the order of ids.
        added: Pieces that are not learned but told (control, and defined by the user) -> whether they are special.
        charsmap: The rules of normalisation, compiled; None for none.
    """

    pieces: list[tuple[str, float]]
    added: dict[str, bool]
    charsmap: bytes | None


def parse_sentencepiece_model(content: bytes, name: str) -> SentencePieceModel:
    """A sentencepiece model from the content of its file.

    Raises:
        ValueError: If it is damaged; `name` is what the error calls it.

    Source: sentencepiece_model.proto of google/sentencepiece.
    """
    try:
        load_sentencepiece(content, name)  # its own checks are stricter than ours
        return _parse_model(content)
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{name} must be a sentencepiece model: {error}; copy it again.") from None


def _parse_model(content: bytes) -> SentencePieceModel:
    pieces = []
    added = {}
    charsmap = None
    for field, value in iterate_fields(content):
        if field == PIECES_FIELD:
            stated = dict(iterate_fields(value))
            piece = stated[PIECE_FIELD].decode()
            pieces.append((piece, struct.unpack("<f", stated.get(SCORE_FIELD, bytes(4)))[0]))
            if (kind := stated.get(TYPE_FIELD)) in (CONTROL, USER_DEFINED):
                added[piece] = kind == CONTROL
        elif field == NORMALIZER_FIELD:
            charsmap = dict(iterate_fields(value)).get(CHARSMAP_FIELD) or None
    if not all(math.isfinite(score) for _, score in pieces):
        raise TypeError("a score is no finite number")
    return SentencePieceModel(pieces, added, charsmap)


def iterate_fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: their numbers, and their values as integers or bytes.

    Raises:
        IndexError: If the message ends too early.
        TypeError: If a value is written in an unknown way.

    Source: protobuf.dev/programming-guides/encoding.
    """
    place = 0
    while place < len(content):
        key, place = _read_varint(content, place)
        field, way = key >> 3, key & 7
        if way == WIRE_VARINT:
            value, place = _read_varint(content, place)
            yield field, value
            continue
        if way == WIRE_LEN:
            length, place = _read_varint(content, place)
        elif way in (WIRE_I64, WIRE_I32):
            length = 8 if way == WIRE_I64 else 4
        else:
            raise TypeError(f"field {field} is written in the unknown way {way}")
        if length > len(content) - place:
            raise IndexError(f"field {field} has {length} bytes, but only {len(content) - place} follow")
        yield field, content[place : place + length]
        place += length


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place after it."""
    if (value := content[place]) < 128:  # almost all of the numbers in a model
        return value, place + 1
    value = 0
    for count in range(MAX_VARINT_BYTES):
        byte = content[place + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, place + count + 1
    raise IndexError(f"a number has more than {MAX_VARINT_BYTES} bytes")
