"""Lines in capitals are generated from as lower case, if the tokenizer's configuration says so."""

from dataclasses import replace

import pytest

import mlx_transformer as mt
from mlx_transformer.inference.source_lines import (
    SourceLine,
    capitalize,
    has_lowercase,
    is_in_capitals,
    uppercase,
    uppercase_stream,
)
from mlx_transformer.tokenization.tokenizer import Tokenizer

CAPITALS, USUAL = "THE DOG SLEEPS.", "The dog sleeps."


@pytest.fixture(scope="module")
def model():
    return mt.load_model()


@pytest.fixture(scope="module")
def tokenizer():
    return with_recase(True)


def with_recase(recase):
    _, tokenizer = mt.load()
    return Tokenizer(tokenizer.source, tokenizer.target, replace(tokenizer.config, recase=recase))


def first_ids(model, tokenizer, line, **options):
    return [h.ids for h in next(mt.generate_hypotheses(model, tokenizer, line, **options))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CAPITALS, True),
        ("I'M OK", True),
        ("ROOM 5 IS MINE", True),
        ("ÉCOLE À GAUCHE", True),
        ("READ https://a.example AND {name}", True),
        ("NASA", False),  # one word may be an abbreviation
        ("STOP 5!", False),
        ("The USA", False),
        ("NO iPhone", False),
        ("STOP a@b.example %s", False),
        ("12 30", False),
        ("你好 世界", False),
        ("", False),
    ],
)
def test_several_words_in_capitals(text, expected):
    assert is_in_capitals(text) == expected


def test_results_are_those_of_the_usual_case_in_capitals(model, tokenizer):
    usual = mt.generate(model, tokenizer, USUAL)
    assert any(map(str.islower, usual))
    assert mt.generate(model, tokenizer, [CAPITALS, USUAL]) == [usual.upper(), usual]
    assert first_ids(model, tokenizer, CAPITALS, num_hypotheses=3) == first_ids(
        model, tokenizer, USUAL, num_hypotheses=3
    )
    streamed = ["".join(mt.stream_generate(model, tokenizer, text)) for text in (CAPITALS, USUAL)]
    assert streamed[0] == streamed[1].upper() and any(map(str.islower, streamed[1]))


def test_other_lines_and_other_tokenizers_stay(model, tokenizer):
    plain = with_recase(False)
    for line in ("NASA", "He is in the USA.", SourceLine(CAPITALS, target_prefix="Le")):
        assert first_ids(model, tokenizer, line) == first_ids(model, plain, line)
    assert first_ids(model, tokenizer, CAPITALS) != first_ids(model, plain, CAPITALS)


def test_each_sentence_of_a_line_is_recased_alone(model, tokenizer):
    text = f"{CAPITALS} {USUAL}"
    upper, usual = mt.generate(model, tokenizer, [CAPITALS, USUAL])
    assert mt.generate(model, tokenizer, text, split_sentences=True) == f"{upper} {usual}"


def test_prefixes_in_capitals(model, tokenizer):
    generated = mt.generate(model, tokenizer, CAPITALS, target_prefix="UN CHIEN")
    assert generated == mt.generate(model, tokenizer, USUAL, target_prefix="Un chien").upper()
    assert generated.startswith("UN CHIEN")


def test_scores_alignments_and_attention_are_those_of_the_generated_target(model, tokenizer):
    options = {"alignment": mt.AlignmentConfig(), "token_scores": True}
    ((best, *_),) = mt.generate_hypotheses(model, tokenizer, [CAPITALS], **options)
    (result,) = mt.score(model, tokenizer, [CAPITALS], [best.text], alignment=mt.AlignmentConfig())
    assert result.tokens == [*best.ids, best.end_id] and result.alignment == best.alignment
    assert result.token_scores == pytest.approx(best.token_scores, abs=1e-4)
    assert mt.attention(model, tokenizer, CAPITALS).source_tokens == mt.attention(model, tokenizer, USUAL).source_tokens


def test_targets_in_lower_case_are_scored_as_they_are(model, tokenizer):
    mixed = "Le CHIEN dort."
    (result,) = mt.score(model, tokenizer, [CAPITALS], [mixed])
    assert result.tokens == tokenizer.encode_target(mixed)


def test_urls_and_placeholders_keep_their_case():
    text = "READ <b>https://a.Example</b> OR {nAme}, ÉLISE."
    assert capitalize(text) == "Read <b>https://a.Example</b> or {nAme}, élise."
    assert uppercase(capitalize(text)) == text


def test_lines_in_capitals_around_protected_text(model, tokenizer):
    texts = ["READ https://example.org BEFORE FRIDAY.", "WHERE ARE MY {name} KEYS?"]
    first, second = mt.generate(model, tokenizer, texts)
    assert "https://example.org" in first and "VENDREDI" in first and not has_lowercase(first)
    assert "{name}" in second and "CLÉS" in second


def test_terms_are_in_capitals_too(model, tokenizer):
    texts = ["I LOVE MY DOG.", "SEND IT TO WWW.DOGS.COM."]
    first, second = mt.generate(model, tokenizer, texts, glossary={"dog": "toutou"})
    assert first == "J'ADORE MON TOUTOU." and "WWW.DOGS.COM" in second


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OPEN THE DOOR", "Open the door"),
        ('"HELLO, MY FRIEND."', '"Hello, my friend."'),
        ("(2) TOM IS HERE", "(2) Tom is here"),
        ("{name} IS HERE", "{name} is here"),
        ("READ HTTPS://A.EXAMPLE NOW", "Read HTTPS://A.EXAMPLE now"),
    ],
)
def test_the_first_letter_is_a_capital(text, expected):
    assert capitalize(text) == expected


def test_streams_keep_the_case_of_urls_and_placeholders():
    text = "Voir https://example.com/foo et {name}. Oui\u202f!"
    for size in (1, 3, 7, 100):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert "".join(uppercase_stream(pieces)) == "VOIR https://example.com/foo ET {name}. OUI\u202f!"
    assert list(uppercase_stream(["a ", "b", "c ", "d"])) == ["A ", "BC ", "D"]
