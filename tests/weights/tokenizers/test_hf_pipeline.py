"""Converted tokenizers of transformers give its ids and its text, for small models trained here."""

import dataclasses
import json
import logging
import random
import shutil

import pytest
import tokenizers
from support.texts import SCRIPTS, SPECIALS, TEXTS, random_texts
from support.tiny_hf_tokenizers import (
    CASES,
    MASK,
    NLLB_CONFIG,
    SENTINELS,
    T5_CONFIG,
    auto_tokenizer,
    read_tokenizer,
    train_models,
    vocab_and_merges,
    write_case,
    write_folder,
)
from tokenizers import models

from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.tokenizers.hf_pipeline import find_tokenizer_class, read_hf_tokenizer

pytestmark = pytest.mark.torch

ALL_TEXTS = TEXTS + random_texts(300)


@pytest.fixture(scope="module")
def trained():
    return train_models()


@pytest.fixture(scope="module")
def auto():
    with auto_tokenizer() as load:
        yield load


def id_sequences(theirs, ids):
    """Return the ids of the texts and random ids, to decode."""
    generator = random.Random(1)
    size = len(theirs)
    return ids + [[generator.randrange(size) for _ in range(generator.randrange(15))] for _ in range(100)]


def assert_equal(ours, theirs, texts=ALL_TEXTS):
    """Assert the same ids of all texts, and the same text of many sequences of ids."""
    if ours.config.target_language == "source":  # the original needs no language tag
        plain = dataclasses.replace(ours.config, languages={}, target_language="none")
        ours = Tokenizer(ours.source, None, plain)
    ids = [list(row) for row in theirs(texts)["input_ids"]]
    assert {text: row for text, row in zip(texts, ours.encode_batch(texts), strict=True)} == dict(
        zip(texts, ids, strict=True)
    )
    batch = id_sequences(theirs, ids)
    assert ours.decode_batch(batch) == theirs.batch_decode(batch, skip_special_tokens=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_folders_of_transformers_4_and_5(tmp_path, trained, auto, name):
    """A SentencePiece model, or vocabulary and merges; our saved copy; a copy saved by transformers 5."""
    folder = write_case(tmp_path / "four", trained, name)
    theirs, ours = auto(folder), read_tokenizer(folder)
    # Where a text for ByT5 ends with "</s>", transformers adds no second one; we do.
    texts = [text for text in ALL_TEXTS if text != "</s>"] if name == "byt5" else ALL_TEXTS
    assert_equal(ours, theirs, texts)

    ours.save(tmp_path / "ours")
    assert_equal(Tokenizer.load(tmp_path / "ours"), theirs, texts)

    theirs.save_pretrained(tmp_path / "five")
    resaved = write_folder(tmp_path / "five", {}, CASES[name][2])
    assert_equal(read_tokenizer(resaved), auto(resaved), texts)


def use_version_4_pipeline(tokenizer_json):
    """Set the pipeline that the converters of version 4 wrote into tokenizer.json and version 5 ignores."""
    rules = tokenizer_json["normalizer"] or {"type": "Sequence", "normalizers": []}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    tokenizer_json["normalizer"] = {"type": "Sequence", "normalizers": [*rules.get("normalizers", [rules]), strip]}
    tokenizer_json["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1].endswith(".model")])
def test_tokenizer_json_of_version_4(tmp_path, trained, auto, name):
    """The vocabulary, normalisation rules and added tokens come from tokenizer.json; its pipeline is ignored."""
    folder = write_case(tmp_path / "four", trained, name)
    auto(folder).save_pretrained(tmp_path / "five")
    tokenizer_json = json.loads((tmp_path / "five" / "tokenizer.json").read_text())
    use_version_4_pipeline(tokenizer_json)
    if "merges" in tokenizer_json["model"]:
        tokenizer_json["model"]["merges"] = [" ".join(merge) for merge in tokenizer_json["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    assert_equal(read_tokenizer(folder), auto(folder))


@pytest.mark.parametrize(("model", "model_type"), [("bart", "bart"), ("blenderbot", "blenderbot")])
@pytest.mark.parametrize("class_name", [None, "PreTrainedTokenizerFast"])
def test_byte_level_tokenizer_json(tmp_path, trained, auto, model, model_type, class_name):
    config = {"clean_up_tokenization_spaces": True} | ({"tokenizer_class": class_name} if class_name else {})
    folder = write_folder(tmp_path, {"tokenizer.json": trained[model]}, model_type, config)
    assert_equal(read_tokenizer(folder), auto(folder))


def test_tokenizer_json_of_umt5_is_unchanged(tmp_path, trained, auto):
    """Its pipeline is used, with clean-up, because it is not BPE."""
    folder = write_case(tmp_path / "four", trained, "t5")
    auto(folder).save_pretrained(tmp_path / "five")
    umt5 = write_folder(tmp_path / "five", {}, "umt5", T5_CONFIG | {"clean_up_tokenization_spaces": True})
    tokenizer_json = json.loads((umt5 / "tokenizer.json").read_text())
    use_version_4_pipeline(tokenizer_json)
    (umt5 / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    assert_equal(read_tokenizer(umt5), auto(umt5))
    assert read_tokenizer(umt5).encode("a  b") != read_tokenizer(folder).encode("a  b")


def test_special_tokens_map(tmp_path, trained, auto):
    """Before version 4.34, special tokens and added tokens were in files of their own."""
    folder = write_case(tmp_path, trained, "bart")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"mask_token": MASK, "eos_token": "<end>", "additional_special_tokens": ["<new>"]})
    )
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": size, "<new>": size + 1}))
    texts = [*ALL_TEXTS, "a <new> b<other>c <end>", "<new><new>", "x  <mask>"]
    assert_equal(read_tokenizer(folder), auto(folder), texts)


def test_blenderbot_small_with_added_tokens(tmp_path, trained, auto):
    folder = write_case(tmp_path, trained, "blenderbot-small")
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": size}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<new>"]}))
    assert_equal(
        read_tokenizer(folder),
        auto(folder),
        [*ALL_TEXTS, "a <new> b<other>c", "Don't! It\u0130s\n\nso\x1cit.", "a 'b'\nc"],
    )


def test_byt5_with_token_flags(tmp_path, trained, auto):
    """An end token that strips no whitespace, and fewer sentinels."""
    end = {"__type": "AddedToken", **MASK, "content": "</s>", "lstrip": False}
    names = SENTINELS[:3]
    folder = write_folder(
        tmp_path,
        {},
        "t5",
        {"tokenizer_class": "ByT5Tokenizer", "eos_token": end, "extra_ids": 3, "additional_special_tokens": names},
    )
    added_tokens = {
        str(i): MASK | {"content": token, "lstrip": i == 0} for i, token in enumerate(["<pad>", "</s>", "<unk>"])
    }
    assert_equal(read_tokenizer(folder), auto(folder), [text for text in ALL_TEXTS if text != "</s>"])
    write_folder(
        folder, {}, "t5", {"tokenizer_class": "ByT5Tokenizer", "added_tokens_decoder": added_tokens, "extra_ids": 2}
    )
    assert_equal(read_tokenizer(folder), auto(folder), [text for text in ALL_TEXTS if text != "</s>"])


@pytest.mark.parametrize("name", ["nllb", "nllb legacy", "mbart50", "mbart"])
def test_language_tokens(tmp_path, trained, auto, name):
    """Sources have the same ids as in transformers, for the first and the last languages."""
    folder = write_case(tmp_path, trained, name)
    theirs, ours = auto(folder), read_tokenizer(folder)
    for code in ours.languages[:5] + ours.languages[-2:]:
        theirs.src_lang = code
        assert ours.encode_batch(SCRIPTS, code) == [list(row) for row in theirs(SCRIPTS)["input_ids"]]
        assert ours.config.languages[code] == theirs.convert_tokens_to_ids(code)
    expected = {"nllb": 4, "nllb legacy": 4, "mbart50": 52, "mbart": 25}
    assert len(ours.languages) == expected[name]
    assert ours.config.target_language == ("start" if name == "mbart" else "first")
    text = ours.decode([ours.config.languages[ours.languages[0]], *ours.encode("Hello world")])
    assert text == "Hello world"


def test_languages_that_were_added_as_plain_tokens(tmp_path, trained, auto):
    before = write_case(tmp_path / "before", trained, "nllb")
    theirs = auto(before)
    theirs.add_tokens(["gos_Latn", "my dialect", "another"])
    theirs.src_lang = "my dialect"
    theirs.save_pretrained(tmp_path / "after")
    shutil.copy(before / "config.json", tmp_path / "after")
    ours = read_tokenizer(tmp_path / "after")
    assert {"gos_Latn", "my dialect", "fra_Latn"} < set(ours.languages) and "another" not in ours.languages
    assert ours.config.default_source_language == "my dialect"
    for code in ("gos_Latn", "my dialect", "fra_Latn"):
        theirs.src_lang = code
        assert ours.encode_batch(SCRIPTS, code) == [list(row) for row in theirs(SCRIPTS)["input_ids"]]
        assert ours.decoder_starts(1, code)[0].first_id == theirs.convert_tokens_to_ids(code)
    assert ours.decode([ours.config.languages["gos_Latn"], *ours.encode("Hello world")]) == "Hello world"


def test_default_languages(tmp_path, trained):
    ours = read_tokenizer(write_case(tmp_path / "a", trained, "mbart to Romanian")).config
    assert (ours.default_source_language, ours.default_target_language) == ("ro_RO", "en_XX")
    ours = read_tokenizer(write_case(tmp_path / "b", trained, "nllb")).config
    assert (ours.default_source_language, ours.default_target_language) == ("eng_Latn", None)
    folder = write_case(tmp_path / "c", trained, "nllb")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"src_lang": "xx", "tgt_lang": ["fra_Latn"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = read_tokenizer(folder).config
    assert (ours.default_source_language, ours.default_target_language) == (None, None)


def test_language_codes_are_not_decoded(tmp_path, trained, auto):
    """Where the files of mBART-50 omit its codes, transformers decodes them as text; we do not."""
    folder = write_case(tmp_path, trained, "mbart50")
    config = {"tokenizer_class": "MBart50Tokenizer", "additional_special_tokens": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = auto(folder), read_tokenizer(folder)
    ids = [list(row) for row in theirs(SCRIPTS + SPECIALS)["input_ids"]]
    assert ours.encode_batch(SCRIPTS + SPECIALS) == ids
    texts = theirs.batch_decode(ids, skip_special_tokens=True)
    assert all(text.startswith("en_XX ") for text in texts[: len(SCRIPTS)])
    assert ours.decode_batch(ids)[: len(SCRIPTS)] == [text.removeprefix("en_XX ") for text in texts[: len(SCRIPTS)]]


def test_byt5_adds_a_second_end(tmp_path, auto):
    """Where a text ends with "</s>", transformers adds no second one; we do."""
    folder = write_folder(tmp_path, {}, "t5", {"tokenizer_class": "ByT5Tokenizer"})
    with pytest.warns(UserWarning, match="already has </s>"):
        assert auto(folder)("a</s>")["input_ids"] == [100, 1]
    assert read_tokenizer(folder).encode("a</s>") == [100, 1, 1]


@pytest.mark.parametrize(
    ("model_type", "configured", "expected"),
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
def test_tokenizer_class(tmp_path, model_type, configured, expected):
    write_folder(tmp_path, {}, model_type, {"tokenizer_class": configured} if configured else None)
    assert find_tokenizer_class(tmp_path, {"model_type": model_type}) == expected


def test_folder_without_tokenizer(tmp_path):
    for model_type in ("t5", "umt5", "bart", "blenderbot-small", "other"):
        assert read_hf_tokenizer(write_folder(tmp_path, {}, model_type), {"model_type": model_type}) is None


DAMAGES = {
    "truncated model": ("t5", "spiece.model", lambda content: content[: len(content) // 2], "sentencepiece model"),
    "empty model": ("t5", "spiece.model", lambda content: b"", "sentencepiece model"),
    "config is not JSON": ("t5", "tokenizer_config.json", lambda content: content[:-1], "must be JSON"),
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
        "A token must be text, with flags or without: .* has 7",
    ),
    "tokens are a number": (
        "t5",
        "tokenizer_config.json",
        lambda content: b'{"additional_special_tokens": 7}',
        "Special tokens must be a list: .* has 7",
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
    "ids of Blenderbot-small are text": (
        "blenderbot-small",
        "vocab.json",
        lambda content: b'{"a": "b"}',
        "must be dict",
    ),
    "no specials": ("bart", "vocab.json", lambda content: b'{"a": 0}', "complete tokenizer"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files(tmp_path, trained, case):
    name, file, damage, message = DAMAGES[case]
    folder = write_case(tmp_path, trained, name)
    (folder / file).write_bytes(damage((folder / file).read_bytes()) if (folder / file).exists() else damage(b""))
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(folder)
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
    tokenizer_json = json.loads(
        tokenizers.Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], 2)).to_str()
    )
    folder = write_folder(tmp_path, {"tokenizer.json": json.dumps(tokenizer_json | change)}, model_type)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(folder)


def test_missing_merges(tmp_path, trained):
    for name in ("bart", "blenderbot-small"):
        folder = write_case(tmp_path / name, trained, name)
        (folder / "merges.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"(?i)there is no .*merges\.txt"):
            read_tokenizer(folder)


def test_unsupported_tokenizer_class(tmp_path, trained, auto, caplog):
    """It is read from its tokenizer.json, if there is one."""
    folder = write_folder(tmp_path, vocab_and_merges(trained["bart"]), "bart", {"tokenizer_class": "GPT2Tokenizer"})
    with caplog.at_level(logging.WARNING):
        assert read_hf_tokenizer(folder, {"model_type": "bart"}) is None
    assert "its class, GPT2Tokenizer, is not supported" in caplog.text
    write_folder(folder, {"tokenizer.json": trained["bart"]}, "bart", {"tokenizer_class": "SomeTokenizer"})
    assert_equal(read_tokenizer(folder), auto(folder))


def test_nllb_without_ids_of_languages_is_refused(tmp_path, trained):
    """Given a list without ids, transformers 5 numbers the languages of NLLB differently from the trained model."""
    folder = write_case(tmp_path, trained, "nllb")
    (folder / "tokenizer_config.json").write_text(json.dumps(NLLB_CONFIG))
    with pytest.raises(ValueError, match="must number its languages: .* has no tokenizer.json"):
        read_tokenizer(folder)


def test_language_tags_are_languages(tmp_path, trained):
    """As in MADLAD: every source begins with a piece like <2de>."""
    ours = read_tokenizer(write_case(tmp_path / "tagged", trained, "t5 with symbols"))
    assert ours.languages and ours.config.target_language == "source"
    code = ours.languages[0]
    ids = ours.encode("Hello world", target_language=code)
    assert ours.config.languages[code] in ids[:2] and ids == ours.encode(f"<2{code}> Hello world")
    with pytest.raises(ValueError, match="needs the target language: --target-language"):
        ours.encode("Hello world")
