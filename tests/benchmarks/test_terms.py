"""What terms cost, and how well they come through."""

import mlx_transformer as mt
from benchmarks import terms


def test_sentences_have_their_terms_in_the_reference():
    sentences = terms.read_sentences()
    assert {sentence.kind for sentence in sentences} == {"copies", "glossary"} and len(sentences) == 120
    for sentence in sentences:
        assert all(term in sentence.reference for term in sentence.glossary.values())
    references = [sentence.reference for sentence in sentences]
    _, lines, kept, chrf = terms.quality_row("references", sentences, references)
    assert (lines, chrf) == (120, 100) and kept.split(" of ")[0] == kept.split(" of ")[1]


def test_missing_terms_and_other_words_count(monkeypatch):
    sentences = [sentence for sentence in terms.read_sentences() if sentence.kind == "glossary"][:2]
    targets = [sentences[0].reference, "Mon frère travaille."]
    _, _, kept, chrf = terms.quality_row("", sentences, targets)
    assert kept == "2 of 4" and chrf < 90


def test_tables(monkeypatch):
    model, tokenizer = mt.load()
    chosen = [terms.read_sentences()[index] for index in (0, -1)]
    monkeypatch.setattr(terms, "read_sentences", lambda: chosen)
    monkeypatch.setattr(terms, "LINES", 2)
    quality = terms.quality_table(model, tokenizer).splitlines()
    assert quality[0] == "|  | lines | terms | chrF |" and len(quality) == 7
    assert "| 1 of 1 |" in quality[-1]
    assert terms.cost_table(model, tokenizer, 1).count(" s |") == len(terms.COSTS) + 2
