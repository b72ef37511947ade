"""A parser for serialized SentencePiece models: their pieces, scores and normalisation rules."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_transformer.tokenization.sentencepiece_vocabulary import load_sentencepiece

CONTROL, USER_DEFINED = 3, 4  # types of pieces that are not learned from text
PIECES_FIELD, NORMALIZER_FIELD = 1, 3  # fields of a model
PIECE_FIELD, SCORE_FIELD, TYPE_FIELD = 1, 2, 3  # fields of a piece
CHARSMAP_FIELD = 2  # field of a normalizer
WIRE_VARINT, WIRE_I64, WIRE_LEN, WIRE_I32 = 0, 1, 2, 5  # protobuf wire types
MAX_VARINT_BYTES = 10


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a SentencePiece model.

    Attributes:
        pieces: Pieces and their scores in the order of ids.
        added_tokens: Control and user-defined pieces -> whether they are special (control).
        charsmap: Compiled normalisation rules; None if there are none.
    """

    pieces: list[tuple[str, float]]
    added_tokens: dict[str, bool]
    charsmap: bytes | None


def parse_sentencepiece_model(content: bytes, name: str) -> SentencePieceModel:
    """Parse a serialized SentencePiece model; errors call it `name`.

    Raises:
        ValueError: If the model is damaged.

    Source: sentencepiece_model.proto of google/sentencepiece.
    """
    try:
        load_sentencepiece(content, name)  # checks more than the parser below
        return _parse_model(content)
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{name} must be a sentencepiece model: {error}; copy it again.") from None


def _parse_model(content: bytes) -> SentencePieceModel:
    pieces = []
    added_tokens = {}
    charsmap = None
    for field, value in iterate_fields(content):
        if field == PIECES_FIELD:
            attributes = dict(iterate_fields(value))
            piece = attributes[PIECE_FIELD].decode()
            pieces.append((piece, struct.unpack("<f", attributes.get(SCORE_FIELD, bytes(4)))[0]))
            if (piece_type := attributes.get(TYPE_FIELD)) in (CONTROL, USER_DEFINED):
                added_tokens[piece] = piece_type == CONTROL
        elif field == NORMALIZER_FIELD:
            charsmap = dict(iterate_fields(value)).get(CHARSMAP_FIELD) or None
    if not all(math.isfinite(score) for _, score in pieces):
        raise TypeError("a score is not a finite number")
    return SentencePieceModel(pieces, added_tokens, charsmap)


def iterate_fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the field numbers of a protobuf message and their values, as integers or bytes.

    Raises:
        IndexError: If the message is truncated.
        TypeError: If a field has an unknown wire type.

    Source: protobuf.dev/programming-guides/encoding.
    """
    offset = 0
    while offset < len(content):
        key, offset = _read_varint(content, offset)
        field, wire_type = key >> 3, key & 7
        if wire_type == WIRE_VARINT:
            value, offset = _read_varint(content, offset)
            yield field, value
            continue
        if wire_type == WIRE_LEN:
            length, offset = _read_varint(content, offset)
        elif wire_type in (WIRE_I64, WIRE_I32):
            length = 8 if wire_type == WIRE_I64 else 4
        else:
            raise TypeError(f"field {field} has the unknown wire type {wire_type}")
        if length > len(content) - offset:
            raise IndexError(f"field {field} has {length} bytes, but only {len(content) - offset} follow")
        yield field, content[offset : offset + length]
        offset += length


def _read_varint(content: bytes, offset: int) -> tuple[int, int]:
    """Return an integer of seven bits per byte, lowest first, and the offset after it."""
    if (value := content[offset]) < 128:  # the common case
        return value, offset + 1
    value = 0
    for count in range(MAX_VARINT_BYTES):
        byte = content[offset + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, offset + count + 1
    raise IndexError(f"a number has more than {MAX_VARINT_BYTES} bytes")
