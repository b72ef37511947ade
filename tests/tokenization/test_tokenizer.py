"""Tokenizers: any text survives the round trip, text never produces special tokens, saved tokenizers load unchanged."""

import json
import sys

import pytest
from support.texts import ENGLISH, FRENCH, random_unicode
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.bpe_trainer import BYTE_TOKENS, FIXED_TOKENS
from mlx_transformer.tokenization.normalization import make_normalizer
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer

normalize = make_normalizer().normalize_str

ODD_TEXTS = [
    "",
    " ",
    "  ",
    "a",
    " leading",
    "   three leading",
    "trailing ",
    "double  space",
    "tab\tin it",
    "\t",
    "line\nfeed\r\nand return\r",
    "\n\n",
    "\x00",
    "a\x00b\x01\x1c\x7f\x85",
    "<pad>",
    "</s>",
    " <s> </s><pad>",
    "<0x41>",
    "<0x41><0xC3><0xA9>",
    "<unk> [MASK] ##ing",
    "\u2581a\u2581",
    "\u200bzero\u200dwidth\u200c",
    "non\u00a0breaking\u202fspaces\u2028and\u2029lines\x0c",
    "\ufeffmark",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "e\u0301 \u0301 nfd and é nfc, ﬁ, Å Å",
    "你好，世界。 こんにちは 안녕 שלום مرحبا हिन्दी ไทย",
    "\u0338\U0010ffff\ufffd\ufffe",
    "don't l'eau qu’il 'quoted' aujourd'hui",
    "1987-03-03 1,000.50 ½ Ⅷ ٣",
    " ".join(["word"] * 300),
    "x" * 3000,
    " " * 500,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(ENGLISH, FRENCH, 500)


def test_round_trip_of_odd_text(tokenizer):
    for text in ODD_TEXTS:
        assert tokenizer.decode(tokenizer.encode_target(text)) == normalize(text)


def test_round_trip_of_random_unicode(tokenizer):
    texts = random_unicode(4000)
    assert tokenizer.decode_batch(tokenizer.encode_target_batch(texts)) == [*map(normalize, texts)]


def test_round_trip_after_training_on_many_scripts():
    tokenizer = Tokenizer.train(ODD_TEXTS * 3, random_unicode(500), 3000)
    texts = ODD_TEXTS + random_unicode(1000)
    assert tokenizer.decode_batch(tokenizer.encode_batch(texts)) == [*map(normalize, texts)]


def test_text_produces_no_special_ids_except_the_end(tokenizer):
    special_ids = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.start_id}
    for text in ODD_TEXTS:
        *ids, end = tokenizer.encode(text)
        assert end == tokenizer.eos_id, text
        assert not special_ids & set(ids), text


def test_batch_equals_single_texts(tokenizer):
    assert tokenizer.encode_batch(ODD_TEXTS) == [tokenizer.encode(text) for text in ODD_TEXTS]
    assert tokenizer.encode_target_batch(ODD_TEXTS) == [tokenizer.encode_target(text) for text in ODD_TEXTS]
    assert tokenizer.encode_batch([]) == []


def test_special_and_byte_tokens_come_first(tokenizer):
    assert tokenizer.tokens(range(len(FIXED_TOKENS))) == ["<pad>", "</s>", "<s>", *BYTE_TOKENS]


def test_decode_skips_special_tokens_and_replaces_invalid_bytes(tokenizer):
    ids = tokenizer.encode_target("the cat")
    assert tokenizer.decode([tokenizer.start_id, *ids, tokenizer.pad_id, tokenizer.pad_id]) == "the cat"
    lone_byte = tokenizer.tokens(range(300)).index("<0xC3>")
    assert tokenizer.decode([*ids[:-1], lone_byte]) == "the cat\ufffd"


def test_separate_vocabularies_are_trained_on_their_side():
    tokenizer = Tokenizer.train(ENGLISH, FRENCH, 500, shared=False)
    assert not tokenizer.shared
    assert len(tokenizer.encode("the dogs")) < len(tokenizer.encode_target("the dogs"))
    assert len(tokenizer.encode("chiens")) > len(tokenizer.encode_target("chiens"))
    assert tokenizer.decode_batch(tokenizer.encode_target_batch(ODD_TEXTS)) == [*map(normalize, ODD_TEXTS)]
    assert tokenizer.target_vocab_size == len(tokenizer.tokens(range(tokenizer.target_vocab_size)))


@pytest.mark.parametrize("shared", [True, False])
def test_saved_tokenizer_loads_unchanged(tmp_path, shared):
    saved = Tokenizer.train(ENGLISH, FRENCH, 400, shared=shared)
    saved.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.shared == shared
    assert (loaded.source_vocab_size, loaded.target_vocab_size) == (saved.source_vocab_size, saved.target_vocab_size)
    assert loaded.encode_batch(ODD_TEXTS) == saved.encode_batch(ODD_TEXTS)
    assert loaded.encode_target_batch(ODD_TEXTS) == saved.encode_target_batch(ODD_TEXTS)
    assert loaded.decode_batch(loaded.encode_target_batch(ODD_TEXTS)) == [*map(normalize, ODD_TEXTS)]


def test_saving_a_shared_vocabulary_over_separate_ones(tmp_path):
    Tokenizer.train(ENGLISH, FRENCH, 400, shared=False).save(tmp_path)
    Tokenizer.train(ENGLISH, FRENCH, 400).save(tmp_path)
    assert Tokenizer.load(tmp_path).shared


def test_missing_file_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere.tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.json", "target_tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_damaged_file_is_named_in_the_error(tmp_path, name, content):
    Tokenizer.train(ENGLISH, FRENCH, 400, shared=False).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"[\\/]{name} must hold a tokenizer"):
        Tokenizer.load(tmp_path)


def test_vocabulary_with_moved_special_tokens_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["<pad>"], vocabulary["</s>"] = 1, 0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json .*: Id 0 of a trained vocabulary must be <pad>: it is '</s"):
        Tokenizer.load(tmp_path)


def test_lone_surrogate_is_refused(tokenizer):
    for encode in (tokenizer.encode, tokenizer.encode_target):
        with pytest.raises(ValueError, match=r"'ab\\ud800' has a lone surrogate at position 2"):
            encode("ab\ud800")
    with pytest.raises(ValueError, match="lone surrogate at position 0"):
        Tokenizer.train(["\udfff"], [], 500)


@pytest.mark.parametrize("bad", [-1, sys.maxsize, "size"])
def test_id_outside_the_vocabulary_is_refused(tokenizer, bad):
    size = tokenizer.target_vocab_size
    bad = size if bad == "size" else bad
    for method in (tokenizer.decode, tokenizer.tokens):
        with pytest.raises(ValueError, match=rf"in 0\.\.{size - 1}: got {bad};"):
            method([3, bad])


EN, FR, ZH = 259, 260, 261  # language tokens follow the byte tokens, sorted by code


def train_with_languages(**options) -> Tokenizer:
    options = {"source_languages": ["fr", "zh-Hans", "fr"], "target_languages": ["zh-Hans", "fr", "en"]} | options
    return Tokenizer.train(ENGLISH, FRENCH, 400, **options)


@pytest.mark.parametrize("shared", [True, False])
def test_language_tokens_follow_the_byte_tokens(shared):
    tokenizer = train_with_languages(shared=shared)
    assert tokenizer.config.languages == {"en": EN, "fr": FR, "zh-Hans": ZH}
    for vocabulary in (tokenizer.source, tokenizer.target):
        assert [vocabulary.id_to_token(i) for i in range(262)] == [*FIXED_TOKENS, "<2en>", "<2fr>", "<2zh-Hans>"]
        assert vocabulary.size <= 400
    plain = Tokenizer.train(ENGLISH, FRENCH, 397, shared=shared)
    shifted = [EN, *(i + 3 if i >= EN else i for i in plain.encode(ENGLISH[0]))]
    assert tokenizer.encode(ENGLISH[0], "en") == shifted  # languages do not change the learned pieces


@pytest.mark.parametrize("shared", [True, False])
def test_language_tokens_begin_sources_and_targets(tmp_path, shared):
    trained = train_with_languages(shared=shared)
    trained.save(tmp_path)
    for tokenizer in (trained, Tokenizer.load(tmp_path)):
        assert tokenizer.config == trained.config and tokenizer.languages == ["en", "fr", "zh-Hans"]
        text = tokenizer.encode("the cat", "en")[1:-1]
        assert tokenizer.encode_batch(["the cat", "the cat"], ["en", "fr"]) == [[i, *text, 1] for i in (EN, FR)]
        target = tokenizer.encode_target("l'ours", "fr")[1:-1]
        assert tokenizer.encode_target_batch(["l'ours"], "zh-Hans") == [[ZH, *target, 1]]
        assert tokenizer.decoder_starts(2, ["fr", "zh-Hans"]) == [DecoderStart(2, FR), DecoderStart(2, ZH)]
        assert tokenizer.decode([2, FR, *target, 1, 0]) == "l'ours"
        with pytest.raises(ValueError, match="needs the source language"):
            tokenizer.encode("the cat")


def test_text_never_produces_a_language_token():
    tokenizer = Tokenizer.train([*ENGLISH, "<2fr>"] * 9, [*FRENCH, "<2fr>"] * 9, 600, target_languages=["fr"])
    for text in [*ODD_TEXTS, "<2fr>", " <2fr>", "<2en> the cat <2zh-Hans>", "<2", "2fr>"]:
        first, *ids = tokenizer.encode_target(text)
        assert first == 259 and 259 not in ids and 259 not in tokenizer.encode(text), text
        assert tokenizer.decode(ids) == normalize(text)


def test_single_language_of_a_side_is_the_default():
    tokenizer = train_with_languages(source_languages=["en"])
    assert tokenizer.encode("the cat") == tokenizer.encode("the cat", "en")
    with pytest.raises(ValueError, match="needs the target language"):
        tokenizer.encode_target("l'ours")
    only_target = train_with_languages(source_languages=(), target_languages=iter(["fr"]))
    assert only_target.encode_target("l'ours")[0] == 259 and only_target.encode("the cat")[0] != 259
    with pytest.raises(ValueError, match="takes no source language"):
        only_target.encode("the cat", "fr")


@pytest.mark.parametrize(
    "options",
    [{}, {"target_languages": ()}, {"source_languages": ()}, {"source_languages": ["en"], "target_languages": ["fr"]}],
)
@pytest.mark.parametrize("token", ["<2fr>", "<s>"])
def test_vocabulary_with_moved_language_tokens_is_refused(tmp_path, options, token):
    train_with_languages(**options).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[token], vocabulary["<0x41>"] = vocabulary["<0x41>"], vocabulary[token]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"tokenizer\.json .*Id \d+ of a trained vocabulary must be {token}: it is"):
        Tokenizer.load(tmp_path)


def test_config_without_languages_is_the_default():
    assert Tokenizer.train(ENGLISH, FRENCH, 400).config == TokenizerConfig()


def test_generation_forces_the_target_language():
    tokenizer = train_with_languages(source_languages=["en"])
    stack = StackConfig(num_layers=1, num_heads=2, mlp_dims=32, norm_first=True, final_norm=True, max_length=64)
    size = tokenizer.source_vocab_size
    model = mt.Transformer(ModelConfig(size, size, 32, stack, stack, share_embeddings=True))
    search = mt.SearchConfig(max_tokens=5, suppress_ids=(2,))
    languages = ["fr", "zh-Hans"]
    hypotheses = list(mt.generate_hypotheses(model, tokenizer, ENGLISH[:2], search, target_language=languages))
    assert [best.ids[0] for best, *_ in hypotheses] == [FR, ZH]
    assert all("<2" not in best.text for best, *_ in hypotheses)
    assert len(mt.generate(model, tokenizer, ENGLISH[:3], search, target_language="fr")) == 3


CALLS = {
    "generate": lambda model, tokenizer, folder: mt.generate(model, tokenizer, "ab"),
    "stream_generate": lambda model, tokenizer, folder: list(mt.stream_generate(model, tokenizer, "ab")),
    "score": lambda model, tokenizer, folder: list(mt.score(model, tokenizer, ["ab"], ["ab"])),
    "save": lambda model, tokenizer, folder: mt.save(folder, model, tokenizer),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, call):
    tokenizer = Tokenizer.train(["ab"], ["ab"], 261)
    model = random_model(config(source_vocab_size=300, target_vocab_size=300))
    with pytest.raises(ValueError, match="^The tokenizer does not match the model: it has 26. source pieces, .* 300; "):
        call(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()
