"""Language tokens of sources and targets, default languages, and errors for missing or unknown languages."""

import dataclasses

import pytest

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

WORDS = ["<pad>", "</s>", "<s>", "<unk>", "a", "b", "<fra>", "<deu>", "<dan>", "en_XX", "fr_XX"]
IDS = {word: i for i, word in enumerate(WORDS)}
LANGUAGES = {"fra_Latn": 6, "deu_Latn": 7, "dan_Latn": 8}


def tokenizer(**fields):
    return Tokenizer(WordVocabulary(IDS, 3), None, TokenizerConfig(languages=LANGUAGES, **fields))


def test_source_language_tokens():
    before = tokenizer(source_language="before", before_source=(2,))
    assert before.encode_batch(["a b", "b"], ["fra_Latn", "deu_Latn"]) == [[6, 2, 4, 5, 1], [7, 2, 5, 1]]
    after = tokenizer(source_language="after", after_source=(1, 2))
    assert after.encode_batch(["a b", "", "b"], "dan_Latn") == [[4, 5, 1, 2, 8], [1, 2, 8], [5, 1, 2, 8]]
    assert after.encode("a", "fra_Latn") == [4, 1, 2, 6]
    assert tokenizer().encode_batch(["a"]) == [[4, 1]]


def test_decoder_starts():
    start = tokenizer(target_language="start")
    assert start.decoder_starts(2, ["fra_Latn", "deu_Latn"]) == [DecoderStart(6, None), DecoderStart(7, None)]
    assert start.encode_target_batch(["a"], "fra_Latn") == [[4, 1]]
    first = tokenizer(target_language="first", before_target=(2,))
    assert first.decoder_starts(2, "dan_Latn") == [DecoderStart(2, 8), DecoderStart(2, 8)]
    assert first.encode_target_batch(["a", "b"], ["fra_Latn", "deu_Latn"]) == [[6, 2, 4, 1], [7, 2, 5, 1]]
    assert first.encode_target("b", "fra_Latn") == [6, 2, 5, 1]
    assert tokenizer(pad_id=3, start_id=5).decoder_starts(3) == [DecoderStart(5, None)] * 3
    tags = tokenizer(target_language="source")
    assert tags.decoder_starts(1, "fra_Latn") == tags.decoder_starts(1) == [DecoderStart(2, None)]


def test_language_tag_is_prepended_once():
    tags = tokenizer(target_language="source")
    assert tags.encode_batch(["a", "<deu> b"], None, "fra_Latn") == [[6, 4, 1], [6, 7, 5, 1]]
    assert tags.encode_batch(["a", "<deu> b"], None, ["dan_Latn", None]) == [[8, 4, 1], [7, 5, 1]]
    with pytest.raises(ValueError, match="needs the target language"):
        tags.encode_batch(["a", "<deu> b"], None, [None, "deu_Latn"])


def test_default_languages():
    fields = {"default_source_language": "deu_Latn", "default_target_language": "fra_Latn"}
    both = tokenizer(source_language="before", target_language="first", **fields)
    assert both.encode_batch(["a", "b"], [None, "dan_Latn"]) == [[7, 4, 1], [8, 5, 1]]
    assert both.decoder_starts(2, [None, "dan_Latn"]) == [DecoderStart(2, 6), DecoderStart(2, 8)]
    tags = tokenizer(target_language="source", default_target_language="fra_Latn")
    assert tags.encode("a") == [6, 4, 1]


def test_missing_language_is_refused_with_an_example():
    both = tokenizer(source_language="before", target_language="first")
    message = '3 languages and needs the source language: --source-language fra_Latn .*source_language="fra_'
    with pytest.raises(ValueError, match=message):
        both.encode("a")
    for target in (None, ["deu_Latn", None]):
        message = 'the target language: --target-language fra_Latn .* target_language="fra_Latn" in P'
        with pytest.raises(ValueError, match=message):
            both.decoder_starts(2, target)
    with pytest.raises(ValueError, match="needs the target language"):
        tokenizer(target_language="start").encode_target("a")
    other = dataclasses.replace(both.config, languages={"xx": 6, "en": 7})
    with pytest.raises(ValueError, match="--source-language en "):
        Tokenizer(both.source, None, other).encode("a")


@pytest.mark.parametrize(
    ("code", "suggestions"),
    [
        ("fra_Latin", "fra_Latn, "),
        ("deu", "deu_Latn"),
        ("DAN_LATN", "dan_Latn, "),
        ("d", "dan_Latn, deu_Latn;"),
        ("D", "dan_Latn, deu_Latn;"),
        ("日", "dan_Latn, deu_Latn, fra_Latn;"),
        ("", "dan_Latn, deu_Latn, fra_Latn;"),
    ],
)
def test_unknown_language_is_refused_with_suggestions(code, suggestions):
    both = tokenizer(source_language="before", target_language="first", default_target_language="dan_Latn")
    message = f"one of the 3 that the model knows: got '{code}'. Similar codes are {suggestions}.*info lists all"
    for call in (
        lambda: both.encode("a", code),
        lambda: both.decoder_starts(1, code),
        lambda: both.decoder_starts(1, [code]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_language_for_a_model_without_languages_is_refused():
    plain = tokenizer()
    with pytest.raises(ValueError, match="takes no source language: got 'fra_Latn'; leave it out"):
        plain.encode("a", "fra_Latn")
    with pytest.raises(ValueError, match="takes no target language: got 'xx'; leave it out"):
        plain.decoder_starts(2, [None, "xx"])
    assert plain.encode_batch(["a"], [None]) == [[4, 1]]


def test_wrong_number_of_languages_is_refused():
    both = tokenizer(source_language="before", target_language="first")
    with pytest.raises(ValueError, match="source_language must be one code or one per text: got 1 for 2 texts"):
        both.encode_batch(["a", "b"], ["fra_Latn"])
    with pytest.raises(ValueError, match="target_language must be one code or one per text: got 2 for 1 texts"):
        both.decoder_starts(1, ("fra_Latn", "fra_Latn"))


def test_languages_are_listed():
    assert tokenizer().languages == ["dan_Latn", "deu_Latn", "fra_Latn"]
    assert Tokenizer(WordVocabulary(IDS, 3)).languages == []


def test_truncated_source_keeps_the_ids_after_the_text():
    after = tokenizer(source_language="after", before_source=(2,))
    ids = after.encode("a b a b", "deu_Latn")
    assert ids == [2, 4, 5, 4, 5, 1, 7]
    assert after.truncate_source(ids, 7) == after.truncate_source(ids, 100) == ids
    assert after.truncate_source(ids, 5) == [2, 4, 5, 1, 7]
    assert after.truncate_source(ids, 2) == [1, 7]
    assert after.truncate_source(ids, 1) == [7]
    before = tokenizer(source_language="before")
    assert before.truncate_source(before.encode("a b a", "deu_Latn"), 3) == [7, 4, 1]
    assert tokenizer(after_source=()).truncate_source([4, 5, 4], 2) == [4, 5]


def test_errors_stay_short_for_long_codes():
    codes = {character * 5000: i for i, character in enumerate("abc", start=6)}
    config = TokenizerConfig(languages=codes, target_language="first")
    model = Tokenizer(WordVocabulary(IDS, 3), None, config)
    for code in (None, "x" * 5000):
        with pytest.raises(ValueError) as caught:
            model.encode_target("a", code)
        assert len(str(caught.value)) < 300
