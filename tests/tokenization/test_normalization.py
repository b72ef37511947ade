"""Trained tokenizers give text as people type it the ids of plain text: white space, quotes, accents, case."""

import random
import unicodedata
from pathlib import Path

import pytest
from support.texts import random_texts

from mlx_transformer.tokenization.bpe_trainer import BYTE_TOKENS
from mlx_transformer.tokenization.detokenizer import Detokenizer
from mlx_transformer.tokenization.normalization import is_blank, make_normalizer
from mlx_transformer.tokenization.tokenizer import Tokenizer

VERSION_0_1_0 = Path(__file__).parents[1] / "support" / "runs" / "version_0.1.0" / "best"
EVERYDAY = [
    "Hello, how are you?",
    "I don't know.",
    "What's your name?",
    "I'd like a coffee, please.",
    "We'll be there at 7:30.",
    "Wait... what?",
    'She said "no" and left.',
    "My number is 555-1234.",
    "It costs 12.50 euros.",
    "Let's go to the café.",
    "Où est la gare ?",
    "J'ai été à l'école hier.",
    "Il fait -5 degrés, n'est-ce pas ?",
    "« Bonjour ! », dit-elle.",
    "Call me at 9 - it's urgent!",
]
VARIATIONS = {
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "narrow spaces": lambda text: text.replace(" ", "\u202f"),
    "thin spaces": lambda text: text.replace(" ", "\u2009"),
    "ideographic spaces": lambda text: text.replace(" ", "\u3000"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "line breaks": lambda text: text.replace(" ", "\r\n"),
    "doubled spaces": lambda text: text.replace(" ", "  "),
    "mixed spaces": lambda text: text.replace(" ", " \u00a0\t"),
    "space before": lambda text: f" {text}",
    "space after": lambda text: f"{text}\u00a0\n",
    "byte order mark": lambda text: f"\ufeff{text}",
    "zero-width spaces": lambda text: "\u200b".join(text),
    "joiners": lambda text: text.replace(" ", " \u200c\u200d\u2060"),
    "soft hyphens": lambda text: "\u00ad".join(text),
    "direction marks": lambda text: f"\u200f\u202a{text}\u202c\u200e",
    "control characters": lambda text: text.replace(" ", "\x01 \x7f"),
    "decomposed accents": lambda text: unicodedata.normalize("NFD", text),
    "curly apostrophes": lambda text: text.replace("'", "\u2019"),
    "accents as apostrophes": lambda text: text.replace("'", "\u00b4"),
    "curly quotes": lambda text: text.replace(' "', " \u201c").replace('" ', "\u201d "),
    "en dashes": lambda text: text.replace("-", "\u2013"),
    "em dashes": lambda text: text.replace("-", "\u2014"),
    "no-break hyphens": lambda text: text.replace("-", "\u2011"),
    "minus signs": lambda text: text.replace("-", "\u2212"),
    "ellipses": lambda text: text.replace("...", "\u2026"),
    "full-width forms": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}
MIXED_CASE = ["iPhone", "McDonald", "A", "I'm", "I'M", "\u00c9COLE", "Stra\u00dfe", "\u0130stanbul", "USA", "e-Mail"]
MIXED_CASE += ["42nd", "\U0001f600", "\u2764\ufe0f"]
normalize = make_normalizer().normalize_str


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = random.Random(0).sample(EVERYDAY * 60, 60 * len(EVERYDAY))
    return Tokenizer.train(texts, [text.lower() for text in texts], 800)


@pytest.mark.parametrize("name", VARIATIONS)
def test_everyday_text_has_the_ids_of_plain_text(tokenizer, name):
    for text in EVERYDAY:
        assert tokenizer.encode(VARIATIONS[name](text)) == tokenizer.encode(text)
        assert tokenizer.encode_target(VARIATIONS[name](text)) == tokenizer.encode_target(text)


def test_plain_text_survives(tokenizer):
    assert tokenizer.decode_batch(tokenizer.encode_batch(EVERYDAY)) == EVERYDAY


def test_text_without_a_visible_character_is_empty(tokenizer):
    for text in ("", " ", "\t\n", "\ufeff", "\u200b", "\u00a0\u200d\u2060", "\x00\x1f", "\u3164\ufe0f"):
        assert is_blank(text)
        assert tokenizer.encode(text) == [tokenizer.eos_id]
    for text in ("a", ".", "\u200b.", "\ud800", "\ufffd", "\u0301"):
        assert not is_blank(text)


def test_text_is_blank_where_nothing_is_left_of_it():
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0xDFF00, 0xE2000)]
    characters = [chr(code) for code in codes]
    assert [c for c in characters if is_blank(c)] == [c for c in characters if normalize(c) == ""]


def test_a_vocabulary_is_learned_from_normalised_text():
    plain = Tokenizer.train(EVERYDAY, EVERYDAY, 400).source.tokenizer.to_str()
    for name, variation in VARIATIONS.items():
        varied = [variation(text) for text in EVERYDAY]
        assert Tokenizer.train(varied, varied, 400).source.tokenizer.to_str() == plain, name


def test_decoding_returns_the_normalised_text(tokenizer):
    generator = random.Random(1)
    mixed = [" ".join(generator.choices([*MIXED_CASE, *" ,.!?'", "12", "\u00a0"], k=6)) for _ in range(300)]
    for text in [*mixed, *random_texts(1000, seed=5)]:
        ids = tokenizer.encode_target(text)
        assert tokenizer.decode(ids) == normalize(text)
        detokenizer = Detokenizer(tokenizer)
        assert "".join([*map(detokenizer.add, ids), detokenizer.finish()]) == normalize(text)


def test_capitals_need_few_pieces_more_and_no_bytes(tokenizer):
    plain, capitals = (tokenizer.encode_batch(texts) for texts in (EVERYDAY, [text.upper() for text in EVERYDAY]))
    assert sum(map(len, capitals)) < 1.6 * sum(map(len, plain))
    assert not set(BYTE_TOKENS) & set(tokenizer.tokens(sum(capitals, [])))


def test_rare_ascii_characters_are_in_the_vocabulary():
    tokenizer = Tokenizer.train(["\u6f22 " * 100_000 + "@"], [], 400)
    assert tokenizer.tokens(tokenizer.encode("@")) == [" @", "</s>"]


def test_tokenizers_of_earlier_models_are_kept(tmp_path):
    earlier = Tokenizer.load(VERSION_0_1_0)
    text = "I\u00a0don\u2019t  know\u2026 "
    assert earlier.decode(earlier.encode_target(text)) == text
    earlier.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(text) == earlier.encode(text) != earlier.encode(normalize(text))
