"""The table of known models: valid entries of families that convert, and searches by language, task and word."""

import subprocess
import sys
from dataclasses import replace

import pytest

import mlx_transformer as mt
from mlx_transformer.pretrained.known_models import BUNDLED, TASKS, parse_table, pivot_models, read_table
from mlx_transformer.weights.families import FAMILIES

TABLE = """
[groups]
romance = "es fr"
[[models]]
name = "owner/{pair}"
task = "translation"
family = "marian"
pairs = "en-fr fr-en"
megabytes = 300
licence = "MIT"
[[models]]
name = "owner/many"
task = "translation"
family = "marian"
sources = "en"
targets = "romance en"
megabytes = 300
licence = "MIT"
note = "Needs a language."
[languages]
en = ["eng", "English"]
es = ["spa", "Spanish"]
fr = ["fra", "French"]
"""


def names(models):
    return [model.name for model in models]


class TestTable:
    def test_every_model_is_of_a_family_that_converts(self):
        wrong = [model for model in mt.known_models() if model.family not in FAMILIES]
        assert names(wrong) == [BUNDLED]

    def test_names_are_unique_and_every_task_has_a_model(self):
        models = mt.known_models()
        assert len({model.name for model in models}) == len(models) > 60
        assert {model.task for model in models} == set(TASKS)

    def test_models_of_one_name_differ_in_their_licences(self):
        licences = {model.name: model.licence for model in mt.known_models("opus-mt")}
        pairs = ("en-fr", "en-de", "de-en", "zh-en")
        found = [licences[f"Helsinki-NLP/opus-mt-{pair}"] for pair in pairs]
        assert found == ["Apache-2.0", "CC-BY-4.0", "Apache-2.0", "CC-BY-4.0"]

    def test_no_two_languages_share_a_code_or_name(self):
        languages = read_table().languages.items()
        spellings = [spelling for code, others in languages for spelling in {s.casefold() for s in (code, *others)}]
        assert sorted(spellings) == sorted(set(spellings))

    def test_pairs_and_groups_are_expanded(self):
        first, second, many = parse_table(TABLE).models
        assert (first.name, first.sources, first.targets) == ("owner/en-fr", ("en",), ("fr",))
        assert (second.name, second.sources, second.targets) == ("owner/fr-en", ("fr",), ("en",))
        assert (many.name, many.targets, many.note) == ("owner/many", ("es", "fr", "en"), "Needs a language.")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('task = "translation"', 'task = "poetry"', "known_models.toml: owner/en-fr: task must be one of"),
            ('name = "owner/many"', 'name = "many"', "name must be owner/name on the hub, not 'many'"),
            ("megabytes = 300", 'megabytes = "300"', "megabytes must be int, not '300'"),
            ("megabytes = 300", "megabytes = 0", "megabytes must be more than 0, not 0"),
            ("megabytes = 300", "size = 300", "known_models.toml: owner/en-fr has unknown fields: size"),
            ('licence = "MIT"', "", "known_models.toml: owner/en-fr lacks the fields licence"),
            ('targets = "romance en"', 'targets = ""', "owner/many must have sources, targets and a licence"),
            ('targets = "romance en"', 'targets = "latin"', "languages must have all codes of the models, but latin"),
        ],
    )
    def test_an_invalid_table_is_refused(self, old, new, message):
        with pytest.raises(ValueError, match=message):
            parse_table(TABLE.replace(old, new))

    def test_reading_it_does_not_load_mlx(self):
        program = "import sys, mlx_transformer as mt; mt.known_models(); print('mlx' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


class TestSearch:
    def test_words_are_texts(self):
        with pytest.raises(ValueError, match="A word must be str, not 5"):
            mt.known_models(5)

    def test_a_pair_comes_before_multilingual_models(self):
        found = names(mt.known_models(source_language="fr", target_language="de"))
        assert found[0] == "Helsinki-NLP/opus-mt-fr-de" and "facebook/m2m100_418M" in found
        assert "Helsinki-NLP/opus-mt-de-fr" not in found and "Helsinki-NLP/opus-mt-en-de" not in found

    @pytest.mark.parametrize("language", ["fr", "FR", "fra", "fra_Latn", "fr-CA", "French", " french "])
    def test_languages_may_be_spelled_in_many_ways(self, language):
        assert mt.known_models(source_language=language) == mt.known_models(source_language="fr") != mt.known_models()

    @pytest.mark.parametrize("side", ["source_language", "target_language"])
    def test_an_unknown_language_names_similar_ones(self, side):
        with pytest.raises(ValueError, match=f"^{side} must be .* not 'Fremch'. Similar ones are French"):
            mt.known_models(**{side: "Fremch"})

    def test_an_unknown_task_is_refused(self):
        with pytest.raises(ValueError, match="task must be one of 'translation', .* not 'poetry'"):
            mt.known_models(task="poetry")

    def test_tasks(self):
        summarisers = mt.known_models(task="summarisation")
        assert "facebook/bart-large-cnn" in names(summarisers) and {m.task for m in summarisers} == {"summarisation"}
        assert mt.known_models(task="summarisation", source_language="fr") == []

    def test_words_are_parts_of_what_is_known_or_names_of_languages(self):
        assert names(mt.known_models("NLLB", "3.3b")) == ["facebook/nllb-200-3.3B"]
        assert "Helsinki-NLP/opus-mt-ko-en" in names(mt.known_models("korean"))
        assert mt.known_models("korean", "nonsense") == []

    def test_nothing_translates_to_its_own_language(self):
        same = mt.known_models(source_language="en", target_language="eng")
        assert same and "translation" not in {model.task for model in same}


class TestPivot:
    def test_two_models_through_english(self):
        pivot = pivot_models("ko", "fr")
        assert pivot is not None and names(pivot) == ["Helsinki-NLP/opus-mt-ko-en", "Helsinki-NLP/opus-mt-en-fr"]

    @pytest.mark.parametrize(("source", "target"), [("fr", "ko"), ("ast", "fr"), ("en", "fr"), ("fr", "en")])
    def test_none_without_both_ways_or_with_english_itself(self, source, target):
        assert pivot_models(source, target) is None


def test_the_bundled_model_is_what_the_table_says():
    (model,) = mt.known_models(BUNDLED)
    assert replace(model, note="") == mt.KnownModel(BUNDLED, "translation", ("en",), ("fr",), 11, "MIT")
