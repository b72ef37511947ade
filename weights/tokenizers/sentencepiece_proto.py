"""A parser for serialized SentencePiece models: their pieces, scores and normalisation rules."""

import math
import struct
from dataclasses import dataclass

from mlx_transformer.tokenization.protobuf import iterate_fields
from mlx_transformer.tokenization.sentencepiece_vocabulary import CHARSMAP_FIELD, NORMALIZER_FIELD, load_sentencepiece

CONTROL, USER_DEFINED = 3, 4  # types of pieces that are not learned from text
PIECES_FIELD = 1  # field of a model
PIECE_FIELD, SCORE_FIELD, TYPE_FIELD = 1, 2, 3  # fields of a piece


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
