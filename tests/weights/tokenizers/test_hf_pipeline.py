"""Tokenizers in the files of transformers: its source ids and its decoded text, of small models that are made here."""

import dataclasses
import json
import logging
import random
import struct

import pytest
import sentencepiece
import tokenizers
from support.texts import SCRIPTS, SPECIALS, TEXTS, random_texts
from support.tiny_pieces import (
    CASES,
    MASK,
    MODELS,
    NLLB_CONFIG,
    SENTINELS,
    T5_CONFIG,
    auto_tokenizer,
    lists,
    make,
    write,
)
from support.tiny_pieces import trained as train_all
from tokenizers import models, normalizers

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.tokenizers.hf_pipeline import find_tokenizer_class, read_hf_tokenizer
from mlx_transformer.weights.tokenizers.sentencepiece_proto import iterate_fields, parse_sentencepiece_model

pytestmark = pytest.mark.torch

ALL = TEXTS + random_texts(300)


@pytest.fixture(scope="module")
def trained():
    return train_all()


@pytest.fixture(scope="module")
def auto():
    with auto_tokenizer() as load:
        yield load


def read(folder):
    vocabulary, _, found = read_hf_tokenizer(folder, json.loads((folder / "config.json").read_text()))
    return Tokenizer(vocabulary, None, TokenizerConfig(**found, start_id=0))


def rows(theirs, ids):
    """Rows to decode: the texts themselves, and ids at random."""
    generator = random.Random(1)
    size = len(theirs)
    return ids + [[generator.randrange(size) for _ in range(generator.randrange(15))] for _ in range(100)]


def assert_equal(ours, theirs, texts=ALL):
    """The same ids of all texts, and the same text of many rows of ids."""
    if ours.config.target_language == "source":  # the original does not ask for the tag of a language
        plain = dataclasses.replace(ours.config, languages={}, target_language="none")
        ours = Tokenizer(ours.source, None, plain)
    ids = [list(row) for row in theirs(texts)["input_ids"]]
    assert {text: row for text, row in zip(texts, ours.encode_batch(texts), strict=True)} == dict(
        zip(texts, ids, strict=True)
    )
    batch = rows(theirs, ids)
    assert ours.decode_batch(batch) == theirs.batch_decode(batch, skip_special_tokens=True)


@pytest.mark.parametrize("name", CASES)
def test_files_of_version_4(tmp_path, trained, auto, name):
    """A sentencepiece model, or vocabulary and merges; then a copy saved by transformers 5; both loaded again."""
    folder = make(tmp_path / "four", trained, name)
    theirs, ours = auto(folder), read(folder)
    # transformers leaves out an end that byT5 would have twice; here it is always there.
    texts = [text for text in ALL if text != "</s>"] if name == "byt5" else ALL
    assert_equal(ours, theirs, texts)

    ours.save(tmp_path / "ours")
    assert_equal(Tokenizer.load(tmp_path / "ours"), theirs, texts)

    theirs.save_pretrained(tmp_path / "five")
    again = write(tmp_path / "five", {}, CASES[name][2])
    assert_equal(read(again), auto(again), texts)


def old_pipeline(stored):
    """What the converters of version 4 wrote into tokenizer.json, and version 5 does not follow."""
    rules = stored["normalizer"] or {"type": "Sequence", "normalizers": []}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    stored["normalizer"] = {"type": "Sequence", "normalizers": [*rules.get("normalizers", [rules]), strip]}
    stored["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1].endswith(".model")])
def test_tokenizer_json_of_version_4(tmp_path, trained, auto, name):
    """Vocabulary, rules and added tokens come from tokenizer.json, its pipeline does not."""
    folder = make(tmp_path / "four", trained, name)
    auto(folder).save_pretrained(tmp_path / "five")
    stored = json.loads((tmp_path / "five" / "tokenizer.json").read_text())
    old_pipeline(stored)
    if "merges" in stored["model"]:
        stored["model"]["merges"] = [" ".join(merge) for merge in stored["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    assert_equal(read(folder), auto(folder))


@pytest.mark.parametrize("model, model_type", [("bart", "bart"), ("blenderbot", "blenderbot")])
@pytest.mark.parametrize("named", [None, "PreTrainedTokenizerFast"])
def test_byte_level_tokenizer_json(tmp_path, trained, auto, model, model_type, named):
    config = {"clean_up_tokenization_spaces": True} | ({"tokenizer_class": named} if named else {})
    folder = write(tmp_path, {"tokenizer.json": trained[model]}, model_type, config)
    assert_equal(read(folder), auto(folder))


def test_tokenizer_json_as_it_is(tmp_path, trained, auto):
    """That of umT5 is not taken apart; cleaned up it is unless it is BPE."""
    folder = make(tmp_path / "four", trained, "t5")
    auto(folder).save_pretrained(tmp_path / "five")
    umt5 = write(tmp_path / "five", {}, "umt5", T5_CONFIG | {"clean_up_tokenization_spaces": True})
    stored = json.loads((umt5 / "tokenizer.json").read_text())
    old_pipeline(stored)
    (umt5 / "tokenizer.json").write_text(json.dumps(stored))
    assert_equal(read(umt5), auto(umt5))
    assert read(umt5).encode("a  b") != read(folder).encode("a  b")


def test_special_tokens_map(tmp_path, trained, auto):
    """Before version 4.34 special tokens stood in a file of their own, added ones in another."""
    folder = make(tmp_path, trained, "bart")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"mask_token": MASK, "eos_token": "<end>", "additional_special_tokens": ["<new>"]})
    )
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": size, "<new>": size + 1}))
    texts = [*ALL, "a <new> b<other>c <end>", "<new><new>", "x  <mask>"]
    assert_equal(read(folder), auto(folder), texts)


def test_chat_with_added_tokens(tmp_path, trained, auto):
    folder = make(tmp_path, trained, "blenderbot-small")
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": size}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<new>"]}))
    assert_equal(read(folder), auto(folder), [*ALL, "a <new> b<other>c", "Don't! It\u0130s\n\nso\x1cit.", "a 'b'\nc"])


def test_bytes_with_flags(tmp_path, trained, auto):
    """byT5 with an end beside which spaces stay, and fewer sentinels."""
    end = {"__type": "AddedToken", **MASK, "content": "</s>", "lstrip": False}
    names = SENTINELS[:3]
    folder = write(
        tmp_path,
        {},
        "t5",
        {"tokenizer_class": "ByT5Tokenizer", "eos_token": end, "extra_ids": 3, "additional_special_tokens": names},
    )
    flagged = {
        str(i): MASK | {"content": token, "lstrip": i == 0} for i, token in enumerate(["<pad>", "</s>", "<unk>"])
    }
    assert_equal(read(folder), auto(folder), [text for text in ALL if text != "</s>"])
    write(folder, {}, "t5", {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": flagged, "extra_ids": 2})
    assert_equal(read(folder), auto(folder), [text for text in ALL if text != "</s>"])


@pytest.mark.parametrize("name", ["nllb", "nllb legacy", "mbart50", "mbart"])
def test_languages(tmp_path, trained, auto, name):
    """Sources as transformers has them for every language; what stands where; the same codes."""
    folder = make(tmp_path, trained, name)
    theirs, ours = auto(folder), read(folder)
    for code in ours.languages[:5] + ours.languages[-2:]:
        theirs.src_lang = code
        assert ours.encode_batch(SCRIPTS, code) == [list(row) for row in theirs(SCRIPTS)["input_ids"]]
        assert ours.config.languages[code] == theirs.convert_tokens_to_ids(code)
    expected = {"nllb": 4, "nllb legacy": 4, "mbart50": 52, "mbart": 25}
    assert len(ours.languages) == expected[name]
    assert ours.config.target_language == ("start" if name == "mbart" else "first")
    text = ours.decode([ours.config.languages[ours.languages[0]], *ours.encode("Hello world")])
    assert text == "Hello world"


def test_default_languages(tmp_path, trained):
    ours = read(make(tmp_path / "a", trained, "mbart to Romanian")).config
    assert (ours.default_source_language, ours.default_target_language) == ("ro_RO", "en_XX")
    ours = read(make(tmp_path / "b", trained, "nllb")).config
    assert (ours.default_source_language, ours.default_target_language) == ("eng_Latn", None)
    folder = make(tmp_path / "c", trained, "nllb")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"src_lang": "xx", "tgt_lang": ["fra_Latn"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = read(folder).config
    assert (ours.default_source_language, ours.default_target_language) == (None, None)


def test_codes_are_no_text(tmp_path, trained, auto):
    """Where the files of mBART-50 leave its codes out, transformers writes them into translations."""
    folder = make(tmp_path, trained, "mbart50")
    config = {"tokenizer_class": "MBart50Tokenizer", "additional_special_tokens": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = auto(folder), read(folder)
    ids = [list(row) for row in theirs(SCRIPTS + SPECIALS)["input_ids"]]
    assert ours.encode_batch(SCRIPTS + SPECIALS) == ids
    texts = theirs.batch_decode(ids, skip_special_tokens=True)
    assert all(text.startswith("en_XX ") for text in texts[: len(SCRIPTS)])
    assert ours.decode_batch(ids)[: len(SCRIPTS)] == [text.removeprefix("en_XX ") for text in texts[: len(SCRIPTS)]]


def test_end_of_bytes_is_doubled(tmp_path, auto):
    """Where a text for byT5 ends with "</s>", transformers adds no other end."""
    folder = write(tmp_path, {}, "t5", {"tokenizer_class": "ByT5Tokenizer"})
    with pytest.warns(UserWarning, match="already has </s>"):
        assert auto(folder)("a</s>")["input_ids"] == [100, 1]
    assert read(folder).encode("a</s>") == [100, 1, 1]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_read_as_sentencepiece_reads_them(trained, name):
    model = parse_sentencepiece_model(trained[name], "it")
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained[name])
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


def test_fields_of_a_message():
    number = b"\x08\x96\x01"
    text = b"\x12\x02hi"
    single = b"\x1d" + struct.pack("<f", 1.5)
    double = b"\x21" + bytes(8)
    found = [(field, value) for field, value in iterate_fields(number + text + single + double)]
    assert found == [(1, 150), (2, b"hi"), (3, struct.pack("<f", 1.5)), (4, bytes(8))]
    for damaged, error in (
        (text[:-1], "2 bytes, but only 1"),
        (b"\x0b", "unknown wire type 3"),
        (b"\xff" * 11, "more than 10"),
    ):
        with pytest.raises((IndexError, TypeError), match=error):
            list(iterate_fields(damaged))
    with pytest.raises(IndexError):
        list(iterate_fields(b"\x08\x96"))


@pytest.mark.parametrize(
    "model_type, stated, expected",
    [
        ("t5", None, "T5Tokenizer"),
        ("t5", "T5TokenizerFast", "T5Tokenizer"),
        ("t5", "ByT5Tokenizer", "ByT5Tokenizer"),
        ("umt5", "T5Tokenizer", "PreTrainedTokenizer"),
        ("mbart", "PreTrainedTokenizerFast", "PreTrainedTokenizer"),
        ("mbart", "TokenizersBackend", "PreTrainedTokenizer"),
        ("m2m_100", "NllbTokenizer", "NllbTokenizer"),
        ("m2m_100", None, "M2M100Tokenizer"),
        ("other", None, ""),
    ],
)
def test_class(tmp_path, model_type, stated, expected):
    write(tmp_path, {}, model_type, {"tokenizer_class": stated} if stated else None)
    assert find_tokenizer_class(tmp_path, {"model_type": model_type}) == expected


def test_no_files(tmp_path):
    for model_type in ("t5", "umt5", "bart", "blenderbot-small", "other"):
        assert read_hf_tokenizer(write(tmp_path, {}, model_type), {"model_type": model_type}) is None


DAMAGES = {
    "truncated model": ("t5", "spiece.model", lambda content: content[: len(content) // 2], "sentencepiece model"),
    "empty model": ("t5", "spiece.model", lambda content: b"", "sentencepiece model"),
    "config is no JSON": ("t5", "tokenizer_config.json", lambda content: content[:-1], "must be JSON"),
    "config is a list": ("t5", "tokenizer_config.json", lambda content: b"[]", "must be a JSON object"),
    "too many sentinels": (
        "t5",
        "tokenizer_config.json",
        lambda content: b'{"extra_ids": 1000000000}',
        "extra_ids of a tokenizer must be a number up to 100000: .* has 1000000000",
    ),
    "token is a number": (
        "t5",
        "tokenizer_config.json",
        lambda content: b'{"eos_token": 7}',
        "A token must be text, with flags or without: .* has '7'",
    ),
    "tokens are a number": (
        "t5",
        "tokenizer_config.json",
        lambda content: b'{"additional_special_tokens": 7}',
        "Special tokens must be a list: .* has '7'",
    ),
    "added tokens without ids": (
        "t5",
        "tokenizer_config.json",
        lambda content: b'{"added_tokens_decoder": {"x": {}}}',
        "added_tokens_decoder must map ids to tokens",
    ),
    "merges of one piece": ("bart", "merges.txt", lambda content: b"\xff", "must be text in UTF-8"),
    "merges of unknown pieces": ("bart", "merges.txt", lambda content: b"#\nqqq zzz\n", "complete tokenizer: .*qqq"),
    "ids are text": ("bart", "vocab.json", lambda content: b'{"a": "b"}', "must hold a complete tokenizer"),
    "chat ids are text": ("blenderbot-small", "vocab.json", lambda content: b'{"a": "b"}', "must be dict"),
    "no specials": ("bart", "vocab.json", lambda content: b'{"a": 0}', "complete tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files(tmp_path, trained, case):
    name, file, damage, message = DAMAGES[case]
    folder = make(tmp_path, trained, name)
    (folder / file).write_bytes(damage((folder / file).read_bytes()) if (folder / file).exists() else damage(b""))
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


DAMAGED_JSON = {
    "no model": ({"model": None}, "must have a model with a vocab"),
    "no vocab": ({"model": {}}, "must have a model with a vocab"),
    "vocab of another kind": ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "must hold a complete tokenizer"),
    "added token without id": ({"added_tokens": [{"content": "x"}]}, "An added token must have an id"),
    "damaged rules": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA"}}, "complete tokenizer"),
}


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
@pytest.mark.parametrize("case", DAMAGED_JSON)
def test_damaged_tokenizer_json(tmp_path, case, model_type, capfd):
    change, message = DAMAGED_JSON[case]
    stored = json.loads(
        tokenizers.Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], 2)).to_str()
    )
    folder = write(tmp_path, {"tokenizer.json": json.dumps(stored | change)}, model_type)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_missing_merges(tmp_path, trained):
    for name in ("bart", "blenderbot-small"):
        folder = make(tmp_path / name, trained, name)
        (folder / "merges.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"(?i)there is no .*merges\.txt"):
            read(folder)


def test_classes_that_are_not_covered(tmp_path, trained, auto, caplog):
    """They are read by their tokenizer.json, if they have one."""
    folder = write(tmp_path, lists(trained["bart"]), "bart", {"tokenizer_class": "GPT2Tokenizer"})
    with caplog.at_level(logging.WARNING):
        assert read_hf_tokenizer(folder, {"model_type": "bart"}) is None
    assert "its class, GPT2Tokenizer, is not supported" in caplog.text
    write(folder, {"tokenizer.json": trained["bart"]}, "bart", {"tokenizer_class": "SomeTokenizer"})
    assert_equal(read(folder), auto(folder))


def test_languages_without_numbers(tmp_path, trained):
    """Of a list without ids transformers 5 numbers the languages of NLLB otherwise than the model learned them."""
    folder = make(tmp_path, trained, "nllb")
    (folder / "tokenizer_config.json").write_text(json.dumps(NLLB_CONFIG))
    with pytest.raises(ValueError, match="must number its languages: .* has no tokenizer.json"):
        read(folder)


def test_tags_of_languages_are_languages(tmp_path, trained):
    """As MADLAD has them: pieces like <2de>, one of which every source begins with."""
    ours = read(make(tmp_path / "tagged", trained, "t5 with symbols"))
    assert ours.languages and ours.config.target_language == "source"
    code = ours.languages[0]
    ids = ours.encode("Hello world", target_language=code)
    assert ours.config.languages[code] in ids[:2] and ids == ours.encode(f"<2{code}> Hello world")
    with pytest.raises(ValueError, match="needs the target language: --target-language"):
        ours.encode("Hello world")
