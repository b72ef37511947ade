"""Detection of the source language: among a model's codes of any style, for each line, in the library and commands."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from support.multilingual_model import save_multilingual_model

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.inference import language_detection
from mlx_transformer.inference.language_detection import detect_language

pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
pytest.importorskip("langcodes", reason="langcodes is not installed (the extra detect)")

TEXTS = {
    "en": "Where is the next railway station, please?",
    "fr": "Où se trouve la prochaine gare, s'il vous plaît ?",
    "de": "Wo ist bitte der nächste Bahnhof?",
    "ar": "أين تقع محطة القطار التالية؟",
    "zh": "请问下一个火车站在哪里？",
    "lv": "Lūdzu, kur ir nākamā dzelzceļa stacija?",
}
STYLES = {
    "two letters": ["en", "fr", "de", "ar", "zh", "lv"],
    "nllb": ["eng_Latn", "fra_Latn", "deu_Latn", "arb_Arab", "zho_Hans", "lvs_Latn", "zho_Hant", "zul_Latn"],
    "mbart": ["en_XX", "fr_XX", "de_DE", "ar_AR", "zh_CN", "lv_LV"],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("language", TEXTS)
def test_codes_of_every_style(style, language):
    expected = STYLES[style][[*TEXTS].index(language)]
    assert detect_language(TEXTS[language], STYLES[style]) == expected


@pytest.mark.parametrize("text", ["", "12:30", "?!", " "])
def test_a_text_without_letters_has_no_language(text):
    assert detect_language(text, ["en", "fr"]) is None


def test_codes_that_cannot_be_detected_are_ignored():
    assert detect_language(TEXTS["fr"], ["tlh", "xx what?", "", "fr", "en"]) == "fr"
    assert detect_language(TEXTS["fr"], ["tlh"]) is detect_language(TEXTS["fr"], []) is None


def test_a_text_is_a_string():
    with pytest.raises(ValueError, match="text must be a string"):
        detect_language(7, ["en"])


@pytest.mark.parametrize("codes", ["de", None, 5])
def test_codes_are_a_list(codes):
    with pytest.raises(ValueError, match="codes must be a list of strings"):
        detect_language("Wo ist es?", codes)
    with pytest.raises(ValueError, match=r"codes\[0\] must be a string, not None"):
        detect_language("Wo ist es?", [None, "fr"])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language_detection._load_identifier.cache_clear()
    language_detection._make_identifier.cache_clear()
    with pytest.raises(ValueError, match="detected by py3langid and langcodes: pip install .*detect"):
        detect_language("a text", ["en"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of three languages, which reads the source language."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_multilingual_model(folder, list(TEXTS.values()), ["en", "fr", "de"])


LINES = [TEXTS["de"], TEXTS["en"], "", TEXTS["fr"]]
CODES = ["de", "en", "en", "fr"]


def test_each_line_has_its_own_language(folder):
    model, tokenizer = mt.load(folder)
    options = {"target_language": "fr", "max_tokens": 6}
    expected = mt.generate(model, tokenizer, LINES, source_language=CODES, **options)
    assert mt.generate(model, tokenizer, LINES, source_language=AUTO, **options) == expected
    assert mt.generate(model, tokenizer, LINES, source_language="en", **options) != expected


def test_a_line_whose_language_cannot_be_detected_is_an_error(folder):
    model, tokenizer = mt.load(folder)
    with pytest.raises(ValueError, match="Line 2: No language of the model can be detected in '12:30'"):
        mt.generate(model, tokenizer, [LINES[0], "12:30"], source_language=AUTO, target_language="fr")


def generate(folder, *options, stdin, status=0):
    arguments = ["generate", "--model", str(folder), "--max-tokens", "4", *options]
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert result.exit_code == status, result.output
    return result


def test_results_name_the_detected_language(folder):
    languages = ("--source-language", "auto", "--target-language", "fr")
    result = generate(folder, *languages, "--output-format", "json", stdin="\n".join([*LINES, "12:30"]), status=1)
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("source_language") for line in results] == ["de", "en", None, "fr", None]
    assert results[-1]["error"].startswith("Line 5: No language of the model can be detected")
    plain = generate(folder, *languages, stdin="\n".join(LINES))
    assert plain.stdout.splitlines() == [line["text"] for line in results[:-1]]


def test_a_json_line_may_ask_for_detection(folder):
    line = json.dumps({"text": TEXTS["de"], "source_language": "auto", "target_language": "fr"})
    (result,) = map(json.loads, generate(folder, "--json", stdin=line).stdout.splitlines())
    assert result["source_language"] == "de"


def test_a_model_without_source_languages_has_nothing_to_detect():
    result = CliRunner().invoke(main, ["generate", "--source-language", "auto", "I love you."])
    assert result.output == "Je t'aime.\n"
    assert mt.generate(*mt.load(), "I love you.", source_language=AUTO) == "Je t'aime."


def test_scores_vectors_and_attention_detect_it_too(folder):
    model, tokenizer = mt.load(folder)
    both = [{"source_language": language, "target_language": "fr"} for language in (AUTO, "de")]
    scores = [next(iter(mt.score(model, tokenizer, [TEXTS["de"]], ["Bonjour"], **languages))) for languages in both]
    assert scores[0] == scores[1]
    vectors = [np.array(mt.embed(model, tokenizer, [TEXTS["de"]], **languages)) for languages in both]
    assert (vectors[0] == vectors[1]).all()
    rows = [next(iter(mt.generate_hypotheses(model, tokenizer, [TEXTS["de"]], **languages))) for languages in both]
    assert [h.ids for h in rows[0]] == [h.ids for h in rows[1]]
    maps = [mt.attention(model, tokenizer, TEXTS["de"], "Bonjour", **languages) for languages in both]
    assert (np.array(maps[0].cross) == np.array(maps[1].cross)).all()
