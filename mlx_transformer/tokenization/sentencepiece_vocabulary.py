"""Vocabularies that split text with a SentencePiece model and assign their own ids to its pieces."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mlx_transformer.config.serialization import check_types, to_dict
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.charsmap import check_charsmap
from mlx_transformer.tokenization.library_errors import library_errors
from mlx_transformer.tokenization.protobuf import iterate_fields
from mlx_transformer.tokenization.texts import TextError
from mlx_transformer.tokenization.vocabulary import (
    SPACE_SYMBOL,
    AddedTokenSplitter,
    StripRule,
    Vocabulary,
    check_vocabulary_ids,
)

LANGUAGE_TAG_PATTERN = re.compile(">>.*?<<", re.DOTALL)

NORMALIZER_FIELD = 3  # field of a serialized model
CHARSMAP_FIELD = 2  # field of a normalizer
MODEL_FILES = {"model": "sentencepiece.model", "decoder": "sentencepiece_decoder.model"}  # in a model folder


@dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model whose pieces have other ids than in the model.

    Attributes:
        ids: Piece -> id; pieces that are missing are unknown.
        unknown_id: The id of unknown pieces; ids without a piece are decoded as this one.
        added: Added tokens, matched in the text before it is split into pieces -> id.
        strip: Added token -> the side on which it removes whitespace.
        tags: Encode ">>xx<<" at the beginning of a text as one piece (Marian).
        join: How pieces are joined to text: by SentencePiece, or by plain concatenation (PLBart).
        model: The serialized SentencePiece model.
        decoder: Another model that joins pieces to text; None to use `model`.
    """

    kind = "sentencepiece"
    ids: dict[str, int]
    unknown_id: int
    added: dict[str, int] = field(default_factory=dict)
    strip: StripRule = field(default_factory=dict)
    tags: bool = False
    join: Literal["sentencepiece", "plain"] = "sentencepiece"
    model: bytes = b""
    decoder: bytes | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_vocabulary_ids(self.ids, self.added, self.unknown_id)

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max([self.unknown_id, *self.ids.values(), *self.added.values()]) + 1

    @cached_property
    def _splitter(self) -> AddedTokenSplitter:
        return AddedTokenSplitter(self.added, self.strip)

    @cached_property
    def _encoder_processor(self) -> sentencepiece.SentencePieceProcessor:
        return load_sentencepiece(self.model)

    @cached_property
    def _decoder_processor(self) -> sentencepiece.SentencePieceProcessor:
        return self._encoder_processor if self.decoder is None else load_sentencepiece(self.decoder)

    @cached_property
    def _id_to_piece(self) -> dict[int, str]:
        return {i: piece for table in (self.ids, self.added) for piece, i in table.items()}

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        ids = []
        for part in self._splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            pieces = []
            if self.tags and (tag := LANGUAGE_TAG_PATTERN.match(part)):
                pieces.append(tag[0])
                part = part[tag.end() :]
            with library_errors("A text cannot be split into pieces", "change it, or use another tokenizer", TextError):
                pieces += self._encoder_processor.encode(part, out_type=str)
            ids += [self.ids.get(piece, self.unknown_id) for piece in pieces]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        text = ""
        pieces: list[str] = []
        for i in ids:
            if i in self._id_to_piece:
                pieces.append(self._id_to_piece[i])
            else:
                text += self._join_pieces(pieces) + self.id_to_token(self.unknown_id)
                pieces = []
        return (text + self._join_pieces(pieces)).replace(SPACE_SYMBOL, " ").strip()

    def _join_pieces(self, pieces: list[str]) -> str:
        if self.join == "plain":
            return "".join(pieces)
        with library_errors("Pieces cannot be joined to text", "use another tokenizer", TextError):
            return self._decoder_processor.decode_pieces(pieces)

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self._id_to_piece.get(i, "")

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.added.get(token, self.ids.get(token))

    def write(self, folder: Path, prefix: str) -> dict[str, Any]:
        """See `Vocabulary`."""
        data = to_dict(self)
        for name, file in MODEL_FILES.items():
            if (content := data.pop(name)) is not None:
                (folder / f"{prefix}{file}").write_bytes(content)
        return data | {"has_decoder": self.decoder is not None}

    @classmethod
    def read(cls, folder: Path, prefix: str, data: dict[str, Any]) -> "Vocabulary":
        """See `Vocabulary`."""
        names = ("model", "decoder") if data.get("has_decoder") else ("model",)
        paths = {name: folder / f"{prefix}{MODEL_FILES[name]}" for name in names}
        models = {name: read_bytes(path) for name, path in paths.items()}
        for name, path in paths.items():
            load_sentencepiece(models[name], str(path))
        return super().read(folder, prefix, {key: data[key] for key in data if key != "has_decoder"} | models)


def load_sentencepiece(content: bytes, name: str = "A sentencepiece model") -> sentencepiece.SentencePieceProcessor:
    """Load a serialized SentencePiece model; errors call it `name`.

    Raises:
        ValueError: If the model is damaged, or its normalisation rules could exhaust memory.
    """
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        # Read all pieces now: one that is not UTF-8 would otherwise fail only when a text uses it.
        if not content or not model.id_to_piece(list(range(model.get_piece_size()))):
            raise RuntimeError("there are no pieces")
    except (RuntimeError, UnicodeDecodeError):
        raise ValueError(
            f"{name} must be a sentencepiece model: its {len(content)} bytes are not one; copy it again."
        ) from None
    with library_errors(f"{name} must be a usable sentencepiece model"):
        for field, value in iterate_fields(content):
            if field == NORMALIZER_FIELD and (charsmap := dict(iterate_fields(value)).get(CHARSMAP_FIELD)):
                check_charsmap(charsmap)
    return model
