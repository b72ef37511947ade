"""Models for one pair of languages: their own languages are accepted, others are answered with a model to try."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support import echo_model
from support.command_line import error_line

from mlx_transformer.cli.languages import leave_out_own_languages
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.weights.language_pairs import language_pair

ONE_PAIR = SimpleNamespace(config=TokenizerConfig())
MANY = SimpleNamespace(
    config=replace(ONE_PAIR.config, languages={"fra": 9, "zh": 8}, source_language="none", target_language="source")
)
EN_DE = "Helsinki-NLP/opus-mt-en-de"


@pytest.mark.parametrize(
    ("model", "pair"),
    [
        (None, ("en", "fr")),
        ("bundled", ("en", "fr")),
        (EN_DE, ("en", "de")),
        ("models/opus-mt-en-de", ("en", "de")),
        ("Helsinki-NLP/opus-mt-tc-big-en-fr", None),
        ("Helsinki-NLP/opus-mt-mul-en", None),
        ("runs/mine/best", None),
    ],
)
def test_the_pair_of_a_model(model, pair):
    assert language_pair(model) == pair


@pytest.mark.parametrize("codes", [("en", "fr"), ("EN", "fr_FR"), ("eng_Latn", "fra"), (None, "fr"), (None, None)])
def test_the_languages_of_the_pair_are_accepted(codes):
    assert leave_out_own_languages(None, ONE_PAIR, *codes) == (None, None)


@pytest.mark.parametrize(
    ("model", "codes", "message"),
    [
        (
            None,
            (None, "de"),
            "The bundled model translates en to fr only: for 'de' try --model Helsinki-NLP/opus-mt-en-de.",
        ),
        (None, ("de", "fr"), "for 'de' try --model Helsinki-NLP/opus-mt-de-fr."),
        (None, ("fr", None), "for 'fr' choose another model."),
        (None, ("fr", "en"), "for 'fr' try --model Helsinki-NLP/opus-mt-fr-en."),
        (None, (None, "german"), "for 'german' choose another model."),
        (EN_DE, (None, "fr"), f"{EN_DE} translates en to de only: for 'fr' try --model Helsinki-NLP/opus-mt-en-fr."),
    ],
)
def test_another_language_is_answered_with_a_model_to_try(model, codes, message):
    with pytest.raises(ValueError) as error:
        leave_out_own_languages(model, ONE_PAIR, *codes)
    assert str(error.value).endswith(message)


def test_languages_that_a_model_reads_are_kept():
    assert leave_out_own_languages("Helsinki-NLP/opus-mt-en-zh", MANY, "en", "zh") == (None, "zh")
    assert leave_out_own_languages("runs/mine/best", ONE_PAIR, "en", "xx") == ("en", "xx")


@pytest.fixture
def one_pair(monkeypatch):
    """The stand-in for a model takes no languages, as the bundled model."""
    monkeypatch.setattr(echo_model.EchoTokenizer, "config", ONE_PAIR.config)


@pytest.mark.parametrize("command", [["generate", "one"], ["score"], ["evaluate", "en:de=pairs.tsv"]])
def test_every_command_says_what_the_model_translates(echo, one_pair, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("one\tONE\n")
    options = [] if command[0] == "evaluate" else ["--target-language", "de"]
    line = error_line(echo(*command, *options, stdin=b"one\tONE\n", status=1))
    assert "The bundled model translates en to fr only: for 'de' try" in line


def test_every_command_accepts_the_languages_of_the_bundled_model(echo, one_pair, tmp_path):
    (tmp_path / "pairs.tsv").write_text("one\tONE\n")
    options = ["--source-language", "en", "--target-language", "fr"]
    assert echo("generate", "one", *options).stdout == "ONE\n"
    assert echo("score", *options, stdin=b"one\tONE\n").stdout
    assert "100.00%" in echo("evaluate", f"en:fr={tmp_path / 'pairs.tsv'}").stdout


def test_the_source_language_that_is_left_out_still_splits_sentences(echo, one_pair):
    text = "Am 3. Mai. Dann, d. h. Hr. Müller, ging er."
    options = ["--model", "opus-mt-de-en", "--split-sentences", "--json", "--source-language", "de"]
    result = echo("generate", *options, stdin=json.dumps(text).encode())
    assert len(json.loads(result.stdout)["sentences"]) == 2


def test_languages_of_json_lines_are_those_of_the_model(echo, one_pair):
    lines = [
        {"text": "one", "source_language": "en", "target_language": "fr"},
        {"text": "two", "target_language": "de", "id": 2},
        {"text": "three"},
    ]
    result = echo("generate", "--json", stdin="\n".join(map(json.dumps, lines)).encode(), status=1)
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert (first["text"], third["text"]) == ("ONE", "THREE")
    assert second == {
        "id": 2,
        "error": "Line 2: The bundled model translates en to fr only: for 'de' try --model Helsinki-NLP/opus-mt-en-de.",
    }


def test_the_model_tells_the_language_that_splits_sentences(echo, one_pair):
    lines = [{"text": "Am 3. Mai. Dann, d. h. Hr. Müller, ging er.", "source_language": "de"}, {"text": "Am 3. Mai."}]
    options = ["--model", "opus-mt-de-en", "--split-sentences", "--json"]
    result = echo("generate", *options, stdin="\n".join(map(json.dumps, lines)).encode())
    assert [len(json.loads(line)["sentences"]) for line in result.stdout.splitlines()] == [2, 1]
