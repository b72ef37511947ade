"""Marian, M2M100 and PLBart give the ids and the text of transformers, for small models trained here."""

import json
import random

import pytest
from support.texts import SCRIPTS, TEXTS, random_texts
from support.tiny_sentencepiece_tokenizers import (
    CLASS_NAMES,
    MODEL_KINDS,
    load_original,
    read_sentencepiece_tokenizer,
    transformers_class,
    write_files,
    write_m2m100,
    write_marian,
    write_plbart,
)

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.tokenizers.sentencepiece_models import SENTENCEPIECE_READERS

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("without_sacremoses")]

ALL_TEXTS = TEXTS + random_texts(300)


def assert_equals_original(ours, theirs, seed=0, source="", target="", last=None):
    """Compare the ids of sources, and the text of random ids and of truncated ids of texts."""
    ids = ours.encode_batch(ALL_TEXTS, source or None, target or None)
    expected = [theirs(text)["input_ids"] for text in ALL_TEXTS]
    differences = [(text, a, b) for text, a, b in zip(ALL_TEXTS, ids, expected, strict=True) if a != b]
    assert not differences, differences[0]
    generator = random.Random(seed)
    size = ours.target_vocab_size if last is None else last
    rows = [[generator.randrange(size) for _ in range(generator.randrange(12))] for _ in range(500)]
    texts = SCRIPTS + random_texts(100, seed)
    if not isinstance(theirs, transformers_class("MarianTokenizer")):
        theirs.tgt_lang = theirs.src_lang
    theirs._switch_to_target_mode()
    targets = [theirs.convert_tokens_to_ids(theirs.tokenize(text)) for text in texts]
    theirs._switch_to_input_mode()
    rows += [row[generator.randrange(3) :] for row in targets]
    text = theirs.batch_decode(rows, skip_special_tokens=True)
    differences = [(row, a, b) for row, a, b in zip(rows, ours.decode_batch(rows), text, strict=True) if a != b]
    assert not differences, differences[0]
    assert len(set(text)) > 300


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_marian_with_one_vocabulary(tmp_path, kind):
    folder = write_marian(tmp_path, kind)
    ours, theirs = read_sentencepiece_tokenizer("MarianTokenizer", folder), load_original("MarianTokenizer", folder)
    tagged = [f">>deu<< {text}" for text in ALL_TEXTS]
    assert ours.encode_batch(ALL_TEXTS, None, "deu") == [theirs(text)["input_ids"] for text in tagged]
    assert ours.encode_batch(tagged) == [theirs(text)["input_ids"] for text in tagged]
    assert ours.encode_target_batch(ALL_TEXTS) == [theirs(text_target=text)["input_ids"] for text in ALL_TEXTS]
    assert_equals_original(
        read_sentencepiece_tokenizer("MarianTokenizer", write_marian(tmp_path, kind, languages=())),
        load_original("MarianTokenizer", folder),
    )


@pytest.mark.parametrize(
    ("name", "config", "pair"),
    [
        ("any", {"source_lang": "en", "target_lang": "fr"}, ("en", "fr")),
        ("any", {"source_lang": "eng", "target_lang": "deu"}, ("en", "de")),
        ("any", {"source_lang": "en", "target_lang": "roa"}, None),  # a group of languages
        ("any", {"source_lang": "en", "target_lang": "ROMANCE"}, None),
        ("any", {"source_lang": 5}, None),
        ("opus-mt-en-de", {}, ("en", "de")),
        ("opus-mt-mul-en", {}, None),
        ("opus-mt-tc-big-en-de", {}, None),
    ],
)
def test_the_languages_of_marian(tmp_path, name, config, pair):
    (tmp_path / name).mkdir()
    folder = write_marian(tmp_path / name, languages=(), config=config)
    assert read_sentencepiece_tokenizer("MarianTokenizer", folder).config.language_pair == pair


@pytest.mark.parametrize(("kind", "target_kind"), [("unigram with bytes", "unigram"), ("unigram", "bpe with bytes")])
def test_marian_decodes_with_the_source_model(tmp_path, kind, target_kind):
    folder = write_marian(tmp_path, kind, languages=(), target_kind=target_kind)
    assert_equals_original(
        read_sentencepiece_tokenizer("MarianTokenizer", folder), load_original("MarianTokenizer", folder)
    )


@pytest.mark.parametrize("languages", [(), (">>fra<<",)])
def test_marian_with_a_vocabulary_per_side(tmp_path, languages):
    folder = write_marian(tmp_path, languages=languages, separate=True)
    ours, theirs = read_sentencepiece_tokenizer("MarianTokenizer", folder), load_original("MarianTokenizer", folder)
    assert ours.encode_target_batch(ALL_TEXTS) == [theirs(text_target=text)["input_ids"] for text in ALL_TEXTS]
    if not languages:
        # transformers decodes the target's padding, which is never generated, as text with a space.
        assert_equals_original(ours, theirs, last=ours.target_vocab_size - 1)


def test_language_tags_of_marian(tmp_path):
    folder = write_marian(tmp_path)
    ours, theirs = read_sentencepiece_tokenizer("MarianTokenizer", folder), load_original("MarianTokenizer", folder)
    assert ours.languages == ["deu", "fra"]
    for text in (">>fra<<", ">>fra<<x", ">>fra<< >>deu<< x", ">>fra<</s>>>deu<<x", ">>fra<< a >>xx<<"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.encode("x", None, "fra")[0] == theirs.convert_tokens_to_ids(">>fra<<")
    for text in ("x", " >>fra<< x", ">>xxx<< x", ">fra<"):
        with pytest.raises(ValueError, match="knows 2 languages and needs the target language: --target-language deu"):
            ours.encode(text)


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("codes", ["m2m100", "wmt21"])
def test_m2m100(tmp_path, kind, codes):
    folder = write_m2m100(tmp_path, kind, codes)
    theirs = load_original("M2M100Tokenizer", folder, src_lang="de")
    ours = read_sentencepiece_tokenizer("M2M100Tokenizer", folder)
    assert_equals_original(ours, theirs, source="de")
    [start] = ours.decoder_starts(1, "zh")
    assert (start.start_id, start.first_id) == (ours.start_id, theirs.get_lang_id("zh"))
    theirs.tgt_lang = "ru"
    assert ours.encode_target_batch(ALL_TEXTS, "ru") == [theirs(text_target=text)["input_ids"] for text in ALL_TEXTS]


def test_m2m100_ids_without_a_token(tmp_path):
    folder = write_m2m100(tmp_path)
    theirs = load_original("M2M100Tokenizer", folder)
    source, target, fields = SENTENCEPIECE_READERS["M2M100Tokenizer"][1](folder)
    size = source.size + 8
    ours = Tokenizer(source, target, TokenizerConfig(**fields, source_vocab_size=size, target_vocab_size=size))
    word = ours.encode_target("translation", "fr")
    rows = [[size - 1], [*word, size - 1, *word], [size - 8, size - 7], [*word, 3, *word]]
    assert ours.decode_batch(rows) == theirs.batch_decode(rows, skip_special_tokens=True)
    assert ours.tokens([size - 1, 2]) == ["", "</s>"]


def test_m2m100_languages_that_are_not_special_tokens(tmp_path):
    folder = write_m2m100(tmp_path, list_languages=False)
    assert_equals_original(
        read_sentencepiece_tokenizer("M2M100Tokenizer", folder),
        load_original("M2M100Tokenizer", folder, src_lang="fr"),
        source="fr",
    )


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("codes", ["base", "multi"])
def test_plbart(tmp_path, kind, codes):
    folder = write_plbart(tmp_path, kind, codes)
    theirs = load_original("PLBartTokenizer", folder, src_lang="python", tgt_lang="en_XX")
    ours = read_sentencepiece_tokenizer("PLBartTokenizer", folder)
    assert ours.source_vocab_size == theirs.vocab_size
    assert_equals_original(ours, theirs, source="python")
    assert ours.decoder_starts(2, ["java", "en_XX"]) == [
        (theirs.convert_tokens_to_ids("__java__"), None),
        (theirs.convert_tokens_to_ids("__en_XX__"), None),
    ]


@pytest.mark.parametrize("write", [write_marian, write_m2m100, write_plbart])
def test_files_saved_by_transformers(tmp_path, write):
    """With other special tokens, added tokens, and the whitespace that these strip."""
    name = CLASS_NAMES[write]
    language = {write_m2m100: {"src_lang": "fr"}, write_plbart: {"src_lang": "java"}}.get(write, {})
    theirs = load_original(name, write(tmp_path, **({"languages": ()} if write is write_marian else {})), **language)
    if write is not write_plbart:  # PLBart gives added tokens the ids of languages
        theirs.add_tokens(["quick", "лазу", "fox jumps"])
        theirs.add_special_tokens({"bos_token": "<go>", "extra_special_tokens": ["<x>", *theirs._extra_special_tokens]})
    theirs.save_pretrained(tmp_path / "saved")
    ours = read_sentencepiece_tokenizer(name, tmp_path / "saved")
    reloaded = load_original(name, tmp_path / "saved", **language)
    source = language.get("src_lang", "")
    last = None if write is not write_plbart else reloaded.vocab_size
    text = "the quick<x>brown <go> fox jumps"
    assert ours.encode(text, source or None) == reloaded(text)["input_ids"]
    assert_equals_original(ours, reloaded, source=source, last=last)


def test_files_without_added_tokens_decoder(tmp_path):
    token = {"content": "<pad>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    folder = write_files(
        write_m2m100(tmp_path, "no normalization", config={"src_lang": "en", "tgt_lang": "de"}, list_languages=False),
        special_tokens_map__json={"pad_token": token, "additional_special_tokens": ["__en__", "__fr__"]},
        added_tokens__json={"<new>": 2000},
    )
    ours = read_sentencepiece_tokenizer("M2M100Tokenizer", folder)
    assert_equals_original(ours, load_original("M2M100Tokenizer", folder), last=400)
    text = "a <pad>  b__fr__ <new> __de__"
    assert ours.encode(text) == load_original("M2M100Tokenizer", folder)(text)["input_ids"]
    assert ours.config.default_target_language == "de"


@pytest.mark.parametrize("write", [write_marian, write_m2m100, write_plbart])
def test_whitespace_beside_added_tokens(tmp_path, write):
    """It is stripped as the files say, except beside the fixed tokens of PLBart."""

    def token(text, left, right):
        return {"content": text, "lstrip": left, "rstrip": right, "special": True}

    folder = write(tmp_path, "no normalization")
    ids = {"<pad>": 1, "</s>": 2} if write is write_plbart else json.loads((folder / "vocab.json").read_text())
    added_tokens = {ids["<pad>"]: token("<pad>", True, True), ids["</s>"]: token("</s>", False, True)}
    added_tokens[399] = token("<x>", True, False)
    language = {write_m2m100: {"src_lang": "de"}, write_plbart: {"src_lang": "java"}}.get(write, {})
    write(tmp_path, "no normalization", config={"added_tokens_decoder": added_tokens} | language)
    ours, theirs = read_sentencepiece_tokenizer(CLASS_NAMES[write], folder), load_original(CLASS_NAMES[write], folder)
    text = ">>fra<< a  <pad>  b  </s>  c  <x>  d  <pad> </s> <x> <mask> e"
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_default_languages_of_plbart(tmp_path):
    config = {"src_lang": "__java__", "tgt_lang": "__en_XX__"}
    ours = read_sentencepiece_tokenizer("PLBartTokenizer", write_plbart(tmp_path, config=config))
    assert ours.encode("a") == load_original("PLBartTokenizer", tmp_path)("a")["input_ids"]
    assert ours.config.default_source_language == "java" and ours.config.default_target_language == "en_XX"


@pytest.mark.parametrize("clean_up", [True, False])
def test_clean_up_of_spaces_before_punctuation(tmp_path, clean_up):
    for write, name in ((write_marian, "MarianTokenizer"), (write_plbart, "PLBartTokenizer")):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, config={"clean_up_tokenization_spaces": clean_up, "src_lang": "java"})
        ours, theirs = read_sentencepiece_tokenizer(name, folder), load_original(name, folder)
        text = "Hello , world . do n't it 's he 'm a ' b"
        ids = ours.encode_target(text, "java" if write is write_plbart else None)
        assert ours.decode(ids) == theirs.batch_decode([ids], skip_special_tokens=True)[0]
        assert (" ," in ours.decode(ids)) != clean_up


@pytest.mark.parametrize("write", [write_marian, write_m2m100, write_plbart])
def test_saved_tokenizer_loads_unchanged(tmp_path, write):
    name = CLASS_NAMES[write]
    saved = read_sentencepiece_tokenizer(name, write(tmp_path))
    saved.save(tmp_path / "model")
    loaded = Tokenizer.find(tmp_path / "model")
    source = None if write is write_marian else saved.languages[0]
    target = saved.languages[1]
    assert loaded.config == saved.config
    assert loaded.encode_batch(ALL_TEXTS, source, target) == saved.encode_batch(ALL_TEXTS, source, target)
    rows = saved.encode_target_batch(ALL_TEXTS, None if write is write_marian else target)
    assert loaded.encode_target_batch(ALL_TEXTS, None if write is write_marian else target) == rows
    assert loaded.decode_batch(rows) == saved.decode_batch(rows)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"language_codes": "m3"},
            "language_codes of tokenizer_config.json must be one of m2m100, wmt21, not 'm3'",
        ),
        ({"language_codes": ["m2m100"]}, "language_codes of tokenizer_config.json must be one of"),
        ({"eos_token": None}, "must have an eos_token: tokenizer_config.json removes it"),
        ({"unk_token": None}, "must have an unk_token"),
        ({"added_tokens_decoder": {"-5": {"content": "x"}}}, "added_tokens_decoder must map ids to tokens"),
        ({"added_tokens_decoder": {"7": {"content": ""}}}, "Added tokens must not be empty"),
    ],
)
def test_invalid_tokenizer_config(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        read_sentencepiece_tokenizer("M2M100Tokenizer", write_m2m100(tmp_path, config=config))
