"""Translation through a third language: that of two calls, one after the other."""

import json

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.command_line import error_line
from support.multilingual_model import save_multilingual_model

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.cli.input_lines import InputLine
from mlx_transformer.cli.pivot import with_faults_of_pivot
from mlx_transformer.cli.results import LineResult
from mlx_transformer.inference.source_lines import SourceLine

LINES = ["Wo ist der Bahnhof?", "", "Ich habe einen Hund und eine Katze."]
TEXT = "\n".join(LINES)
LANGUAGES = ["de", "en", "fr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of three languages."""
    return save_multilingual_model(tmp_path_factory.mktemp("model") / "tiny", LINES, LANGUAGES)


@pytest.fixture(autouse=True)
def uncompiled():
    """Compilation takes seconds."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def generate(*options, stdin=TEXT, status=0):
    result = CliRunner().invoke(main, ["generate", *map(str, options)], input=stdin)
    assert result.exit_code == status, result.output
    return result


def options(folder, source, target):
    languages = ("--source-language", source, "--target-language", target)
    return ("--model", folder, "--max-tokens", "8", *languages)


@pytest.mark.parametrize("beams", ["1", "3"])
def test_the_result_is_that_of_two_calls(folder, beams):
    beam = ("--beam-size", beams)
    pivot = generate(*options(folder, "de", "en"), *beam).stdout
    expected = generate(*options(folder, "en", "fr"), *beam, stdin=pivot).stdout
    assert generate(*options(folder, "de", "fr"), "--via", "en", *beam).stdout == expected
    assert generate(*options(folder, "de", "fr"), *beam).stdout != expected


def test_results_name_the_text_in_the_third_language(folder):
    pivot = generate(*options(folder, "de", "en")).stdout.splitlines()
    through = (*options(folder, "de", "fr"), "--via", "en")
    lines = [json.loads(line) for line in generate(*through, "--output-format", "json").stdout.splitlines()]
    assert [line["via"] for line in lines] == pivot
    with_two = generate(*through, "--output-format", "json", "--num-hypotheses", "2").stdout.splitlines()
    both = [json.loads(line) for line in with_two]
    assert [line["via"] for line in both] == generate(
        *options(folder, "de", "en"), "--beam-size", "2"
    ).stdout.splitlines()
    assert [len(line["hypotheses"]) for line in both] == [2, 1, 2]
    streamed = generate(*through, "--stream").stdout
    assert streamed == generate(*through).stdout


def test_lines_that_cannot_be_read_keep_their_place(folder):
    bad = b"Hallo.\n\xff\nWo ist es?\n"
    result = generate(*options(folder, "de", "fr"), "--via", "en", stdin=bad, status=1)
    assert result.stdout.count("\n") == 3 and result.stdout.splitlines()[1] == ""
    assert "Line 2 must be valid UTF-8" in result.stderr


def test_json_lines_have_their_own_target_language(folder):
    line = json.dumps({"text": LINES[0], "target_language": "de"})
    (result,) = map(
        json.loads, generate(*options(folder, "de", "fr"), "--via", "en", "--json", stdin=line).stdout.splitlines()
    )
    pivot = generate(*options(folder, "de", "en"), stdin=LINES[0]).stdout
    assert result["text"] == generate(*options(folder, "en", "de"), stdin=pivot).stdout.removesuffix("\n")


def test_what_the_model_does_not_know_is_refused(folder):
    line = error_line(generate(*options(folder, "de", "fr"), "--via", "it", status=1))
    assert "A language must be one of the 3 that the model knows: got 'it'" in line
    line = error_line(generate("--via", "en", status=2))
    assert "--via needs a model of several languages: pipe the result" in line


def test_what_the_first_translation_loses_is_told(folder):
    long = "Der Bahnhof. " * 40
    through = (*options(folder, "de", "fr"), "--via", "en", "--no-split-sentences")
    result = generate(*through, "--output-format", "json", stdin=long)
    assert json.loads(result.stdout)["truncated"] is True
    assert "Line 1 is longer than the model can read" in result.stderr
    result = generate(*through, "--strict", stdin=long, status=1)
    assert "longer than the model can read" in result.stderr and result.stdout == "\n"


def test_missing_terms_of_both_translations_are_named():
    line = InputLine("Line 1", SourceLine("x"), {}, pivot=mt.Hypothesis([1], 0.0, "stop", missing_terms=("a", "b")))
    answer = LineResult(line, [mt.Hypothesis([1], 0.0, "stop", missing_terms=("b", "c"), too_short=True)])
    (hypothesis,) = with_faults_of_pivot(answer).hypotheses
    assert hypothesis.missing_terms == ("a", "b", "c") and hypothesis.too_short and not hypothesis.truncated


def test_a_glossary_has_no_language_to_be_in(folder, tmp_path):
    (tmp_path / "terms.tsv").write_text("dog\tchien\n")
    result = generate(*options(folder, "de", "fr"), "--via", "en", "--glossary", tmp_path / "terms.tsv", status=2)
    assert "Give --via or --glossary, not both: a glossary has terms of two languages" in result.output
