"""Models for one pair: every command accepts their own languages, and answers others with a model to try."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from support.command_line import error_line

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.pretrained.loading import load

OTHER = (
    "This model translates en to fr only: for 'de' choose another. Known ones are listed by: mlx-transformer models "
    "search --from en --to de"
)
COMMANDS = [["generate", "Hello."], ["score"], ["embed", "Hello."], ["evaluate", "en:de=pairs.tsv"]]


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


@pytest.fixture
def run(bundled, monkeypatch, tmp_path):
    """Run a command in an empty folder with a pair of texts, with the bundled model, which is loaded once."""
    monkeypatch.setitem(vars(mt), "load", lambda *_, **__: bundled)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("Hello.\tBonjour.\n")

    def invoke(*arguments, stdin="", status=0):
        result = CliRunner().invoke(main, list(map(str, arguments)), input=stdin)
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_the_model_translates(run, command):
    options = [] if command[0] == "evaluate" else ["--target-language", "de"]
    assert OTHER in error_line(run(*command, *options, stdin="Hello.\tBonjour.\n", status=1))


@pytest.mark.parametrize("codes", [("en", "fr"), ("EN", "fr_FR"), ("eng_Latn", "fra")])
def test_every_command_accepts_the_languages_of_the_model(run, codes):
    options = ["--source-language", codes[0], "--target-language", codes[1]]
    for command in COMMANDS[:-1]:
        stdin = "Hello.\tBonjour.\n"
        assert run(*command, *options, stdin=stdin).stdout == run(*command, stdin=stdin).stdout != ""
    assert "sentences       1" in run("evaluate", ":".join(codes) + "=pairs.tsv").stdout


def test_languages_of_json_lines_are_those_of_the_model(run):
    lines = [
        {"text": "Hello.", "source_language": "en", "target_language": "fr"},
        {"text": "Hello.", "target_language": "de", "id": 2},
        {"text": "Hello."},
    ]
    result = run("generate", "--json", stdin="\n".join(map(json.dumps, lines)), status=1)
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert first["text"] == third["text"] and second["id"] == 2
    assert second["error"].startswith(f"Line 2: {OTHER}")


def test_the_model_tells_the_language_that_splits_sentences(run, bundled, monkeypatch):
    model, tokenizer = bundled
    text = "Am 3. Mai. Dann, d. h. Hr. Müller, ging er."
    counts = []
    for pair in (("en", "fr"), ("de", "fr")):
        monkeypatch.setattr(tokenizer, "config", dataclasses.replace(tokenizer.config, language_pair=pair))
        result = run("generate", "--split-sentences", "--json", stdin=json.dumps({"text": text}))
        counts.append(len(json.loads(result.stdout)["sentences"]))
    assert counts[0] > counts[1] == 2


@pytest.mark.slow
def test_models_made_from_a_model_for_one_pair_keep_its_languages(run):
    run("convert", "bundled", "converted", "--dtype", "float16")
    run("train", "--init", "bundled", "--train", "pairs.tsv", "--valid", "pairs.tsv", "--steps", 1, "--output", "run")
    run("train", "--init", "bundled", "--train", "pairs.tsv", "--valid", "pairs.tsv", "--steps", 1, "--output", "lora",
        "--lora-rank", 2)  # fmt: skip
    run("fuse", "bundled", "lora/best", "fused")
    for folder in ("converted", "run/best", "fused"):
        assert load(folder)[1].config.language_pair == ("en", "fr"), folder


def test_python_accepts_the_languages_of_the_model(bundled):
    expected = mt.generate(*bundled, "I am tired.")
    assert mt.generate(*bundled, "I am tired.", source_language="en", target_language="fr") == expected
    with pytest.raises(ValueError, match="en to fr only: for 'fr' .* search --from fr$"):
        mt.generate(*bundled, "I am tired.", source_language="fr")
