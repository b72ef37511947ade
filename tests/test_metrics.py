"""Grouping of references, BLEU, chrF and exact matches."""

import pytest
from sacrebleu.metrics import BLEU, CHRF

from mlx_transformer import metrics
from mlx_transformer.metrics import corpus_scores, exact_match, group_references

HYPOTHESES = ["the cat sat on the mat", "a dog barks at night", "birds sing in the morning light"]
REFERENCES = [
    ["the cat sat on a mat", "a cat was sitting on the mat today"],
    ["the dog barks at night"],
    ["birds are singing in the morning", "birds sing in the light", "in the morning birds sing"],
]


def test_references_are_grouped_in_the_order_of_their_sources():
    pairs = [("b", "1"), ("a", "2"), ("b", "3"), ("b", "1")]
    assert group_references(pairs) == (["b", "a"], [["1", "3"], ["2"]])


def test_perfect_scores_are_100():
    texts = ["I am very tired today.", "I love you."]
    assert BLEU().corpus_score(texts, [texts]).score > 100
    scores = corpus_scores(texts, [[text] for text in texts])
    assert (scores["bleu"], scores["chrf"]) == (100, 100)


def test_one_reference_equals_sacrebleu():
    first = [group[0] for group in REFERENCES]
    scores = corpus_scores(HYPOTHESES, [[reference] for reference in first])
    assert scores["bleu"] == BLEU().corpus_score(HYPOTHESES, [first]).score
    assert scores["chrf"] == CHRF().corpus_score(HYPOTHESES, [first]).score
    assert "nrefs:1|" in scores["bleu_signature"]


def test_fewer_references_equal_repeating_the_first():
    scores = corpus_scores(HYPOTHESES, REFERENCES)
    repeated = corpus_scores(HYPOTHESES, [(group + group[:1] * 3)[:3] for group in REFERENCES])
    assert (scores["bleu"], scores["chrf"]) == (repeated["bleu"], repeated["chrf"])
    assert scores["bleu"] > corpus_scores(HYPOTHESES, [group[:1] for group in REFERENCES])["bleu"]
    assert "nrefs:var|" in scores["bleu_signature"]


def test_exact_match_accepts_any_reference():
    assert exact_match(["x", "y", "z"], [["a", "x"], ["y"], ["zz"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [([], [], "not 0 and 0"), (["a"], [["a"], ["b"]], "not 2 and 1"), (["a", "b"], [["a"], [""]], "number 2 has none")],
)
def test_missing_references_are_rejected(hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        corpus_scores(hypotheses, references)


def test_missing_sacrebleu_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr(metrics, "has_sacrebleu", lambda: False)
    with pytest.raises(ValueError, match="pip install .*train"):
        corpus_scores(["a"], [["a"]])


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [(["a", None], [["a"], ["b"]]), (["a", "b"], [["a"], [None]]), (["a", "b"], [["a"], "b"]), (["a", 3], [["a"]] * 2)],
)
def test_texts_that_are_not_strings_are_refused_by_number(hypotheses, references):
    for metric in (exact_match, corpus_scores):
        with pytest.raises(ValueError, match="a list of references, all strings: number 2 has"):
            metric(hypotheses, references)
