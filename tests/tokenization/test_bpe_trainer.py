"""BPE training: pieces, vocabulary sizes, reproducibility and refused input."""

import pytest
from support.texts import ENGLISH, FRENCH, random_unicode

from mlx_transformer.tokenization.bpe_trainer import FIXED_TOKENS, check_vocab_size
from mlx_transformer.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(ENGLISH, FRENCH, 500)


def test_frequent_words_are_one_piece_and_elisions_are_split(tokenizer):
    assert tokenizer.tokens(tokenizer.encode("l'oiseau chiens")) == [" l'", "oiseau", " chiens", "</s>"]


def test_digits_are_single_pieces(tokenizer):
    assert tokenizer.tokens(tokenizer.encode("12 34")) == [" 1", "2", " 3", "4", "</s>"]


def test_rare_characters_are_encoded_as_bytes():
    tokenizer = Tokenizer.train(["abc " * 50_000 + "\u6f22"], [], 400)
    assert tokenizer.tokens(tokenizer.encode("\u6f22")[-4:]) == ["<0xE6>", "<0xBC>", "<0xA2>", "</s>"]


def test_vocab_size_is_the_maximum():
    assert Tokenizer.train(ENGLISH, FRENCH, 300).source_vocab_size == 300
    small = Tokenizer.train(["ab"], ["ab"], 5000)
    assert len(FIXED_TOKENS) < small.source_vocab_size < 270
    assert Tokenizer.train(random_unicode(300), [], 261).source_vocab_size <= 261


def test_training_is_deterministic(tmp_path):
    for name in "ab":
        Tokenizer.train(iter(ENGLISH + random_unicode(300)), iter(FRENCH), 600).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_round_trip_after_training_on_text_that_looks_like_special_tokens():
    texts = [" ".join(FIXED_TOKENS), "".join(FIXED_TOKENS), "▁<pad></s>"] * 50
    tokenizer = Tokenizer.train(texts, texts, 2000)
    assert tokenizer.decode_batch(tokenizer.encode_batch(texts)) == texts
    assert all(3 <= i for ids in tokenizer.encode_batch(texts) for i in ids[:-1])


@pytest.mark.parametrize("size", [-5, 0, 260])
def test_too_small_vocabulary_is_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size must be at least 261: got {size};"):
        Tokenizer.train(ENGLISH, FRENCH, size)
    with pytest.raises(ValueError, match=f"vocab_size must be at least 261: got {size};"):
        check_vocab_size(size)


def test_vocab_size_must_leave_room_for_languages():
    check_vocab_size(263, 2)
    for train in (
        lambda: check_vocab_size(262, 2),
        lambda: Tokenizer.train(ENGLISH, FRENCH, 262, source_languages=["en"], target_languages=["fr"]),
    ):
        with pytest.raises(ValueError, match="vocab_size must be at least 263: got 262;"):
            train()
    small = Tokenizer.train(ENGLISH, FRENCH, 263, source_languages=["en"], target_languages=["fr"])
    assert small.source_vocab_size <= 263


def test_training_without_text_is_refused():
    with pytest.raises(ValueError, match="trained on text: got no characters"):
        Tokenizer.train([], [""], 500)
