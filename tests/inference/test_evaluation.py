"""Evaluation in the library: the numbers of the command, and what it refuses before it generates."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

import mlx_transformer as mt
from mlx_transformer import metrics
from mlx_transformer.cli import main

SOURCES = ["I love you.", "Where is the station?", "I am very tired today."]
REFERENCES = ["Je t'aime.", "Où est la gare ?", "Je suis très fatigué aujourd'hui."]


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


def test_scores_equal_those_of_the_command(bundled, tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{s}\t{r}\n" for s, r in zip(SOURCES, REFERENCES, strict=True)))
    printed = json.loads(CliRunner().invoke(main, ["evaluate", str(tmp_path / "pairs.tsv"), "--json"]).stdout)
    evaluation = mt.evaluate(*bundled, SOURCES, REFERENCES)
    assert {name: printed[name] for name in ("bleu", "chrf", "exact_match", "bleu_signature", "chrf_signature")} == {
        name: value for name, value in dataclasses.asdict(evaluation).items() if name != "hypotheses"
    }
    assert evaluation.bleu > 20 and evaluation.hypotheses == mt.generate(*bundled, SOURCES)


def test_references_may_be_several_and_texts_single(bundled):
    model, tokenizer = bundled
    evaluation = mt.evaluate(model, tokenizer, "I love you.", "Je t'aime.")
    assert evaluation.exact_match == 1 and "exact_match=1.0" in repr(evaluation) and "aime" not in repr(evaluation)
    assert mt.evaluate(model, tokenizer, iter(SOURCES[:1]), [["Je dors.", "Je t'aime."]]).exact_match == 1
    (best, *_) = next(mt.generate_hypotheses(model, tokenizer, SOURCES, num_hypotheses=3, length_penalty=0.0))
    options = {"num_hypotheses": 3, "length_penalty": 0.0}
    assert mt.evaluate(model, tokenizer, SOURCES[:1], REFERENCES[:1], **options).hypotheses == [best.text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["b", "c"]), "as many groups of references as texts, at least one, not 2 and 1"),
        (([], []), "at least one, not 0 and 0"),
        ((["a"], [["", ""]]), "a reference that is not empty: number 1 has none"),
        ((["a"], [None]), "a list of references, all strings: number 1"),
        (([None], ["a"]), "a list of references, all strings: number 1"),
        ((None, ["a"]), "sources must be a list of strings, not None"),
        ((["a"], 3), "references must be a list of strings, not 3"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_generated(bundled, arguments, message):
    with pytest.raises(ValueError, match=message):
        mt.evaluate(*bundled, *arguments)


def test_sacrebleu_is_needed_and_keywords_are_checked(bundled, monkeypatch):
    with pytest.raises(TypeError, match=r"^evaluate\(\) .*'beem_size'. Similar ones are beam_size"):
        mt.evaluate(*bundled, "a", "b", beem_size=2)
    monkeypatch.setattr(metrics, "has_sacrebleu", lambda: False)
    with pytest.raises(ValueError, match="need sacrebleu, which is not installed: pip install .*train"):
        mt.evaluate(*bundled, ["a"], ["b"])


def test_a_truncated_source_is_a_warning(bundled, caplog):
    mt.evaluate(*bundled, ["I love you.", "word " * 200], ["a", "b"], max_tokens=2)
    assert [record.getMessage() for record in caplog.records] == [
        "Line 2 is longer than the model can read and was cut."
    ]
