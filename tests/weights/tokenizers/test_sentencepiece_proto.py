"""The parser of SentencePiece models gives the pieces, scores and rules that the sentencepiece library reads."""

import struct

import pytest
import sentencepiece
from support.texts import SCRIPTS
from support.tiny_hf_tokenizers import MODELS, train_models
from tokenizers import normalizers

from mlx_transformer.weights.tokenizers.sentencepiece_proto import iterate_fields, parse_sentencepiece_model


@pytest.mark.parametrize("name", MODELS)
def test_model_equals_that_of_the_sentencepiece_library(name):
    content = train_models()[name]
    model = parse_sentencepiece_model(content, "model")
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    count = processor.get_piece_size()
    assert model.pieces == [(processor.id_to_piece(i), processor.get_score(i)) for i in range(count)]
    control = {processor.id_to_piece(i): True for i in range(count) if processor.is_control(i)}
    assert model.added_tokens == control | ({"<2de>": False, "<2fr>": False} if name == "symbols" else {})
    if name == "plain":
        assert model.charsmap is None
        return
    rules = normalizers.Precompiled(model.charsmap)
    for text in SCRIPTS:
        assert rules.normalize_str(text).replace(" ", "\u2581") == processor.normalize(text).removeprefix("\u2581")


def test_fields_of_a_protobuf_message():
    varint = b"\x08\x96\x01"
    text = b"\x12\x02hi"
    single = b"\x1d" + struct.pack("<f", 1.5)
    double = b"\x21" + bytes(8)
    assert list(iterate_fields(varint + text + single + double)) == [
        (1, 150),
        (2, b"hi"),
        (3, struct.pack("<f", 1.5)),
        (4, bytes(8)),
    ]
    for damaged, message in (
        (text[:-1], "2 bytes, but only 1"),
        (b"\x0b", "unknown wire type 3"),
        (b"\xff" * 11, "more than 10"),
    ):
        with pytest.raises((IndexError, TypeError), match=message):
            list(iterate_fields(damaged))
    with pytest.raises(IndexError):
        list(iterate_fields(b"\x08\x96"))
