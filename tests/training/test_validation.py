"""Validation: loss, token accuracy, and scores of translations with all references and languages."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from support.training_cases import MODEL, OPTIONS, STACK

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import losses as losses_module
from mlx_transformer.training import validation
from mlx_transformer.training.losses import token_losses
from mlx_transformer.training.validation import Validator, sample_references, validate


def make_corpus(count=9):
    tokenizer = Tokenizer.train(["ab cd ef gh"], ["ab cd ef gh"], 261)
    phrases = ["ab", "cd ef", "gh ab cd", "ef"]
    pairs = [(" ".join(phrases[: 1 + i % 4]), phrases[i % 4]) for i in range(count)]
    return TokenizedCorpus.build(pairs, tokenizer), tokenizer


@pytest.mark.parametrize("chunk", [None, 300])
@pytest.mark.parametrize("predicted", [Tokenizer.pad_id, Tokenizer.eos_id])
def test_loss_and_accuracy_match_each_pair_alone(predicted, chunk, monkeypatch, tolerance):
    if chunk is not None:
        monkeypatch.setattr(losses_module, "MAX_UNCHUNKED_LOGITS", 1)
        monkeypatch.setattr(losses_module, "CHUNK_LOGITS", chunk)
    corpus, _ = make_corpus()
    stack = dataclasses.replace(STACK, max_length=64)
    model = Transformer(ModelConfig(261, 261, 32, stack, stack, output_bias=True))
    model.output_bias[predicted] = 9  # the predicted token at nearly all positions, including padding
    model.eval()
    losses, correct = [], []
    for i in range(len(corpus)):
        source, target = (
            mx.array(side.ids[side.offsets[i] : side.offsets[i + 1]].astype(np.int32)[None])
            for side in (corpus.source, corpus.target)
        )
        logits = model(source, target[:, :-1])
        losses += token_losses(logits, target[:, 1:])[0].tolist()
        correct += (logits.argmax(-1) == target[:, 1:])[0].tolist()
    results = validate(model, corpus, 128)
    assert results["loss"] == pytest.approx(np.mean(losses), rel=tolerance(1e-5))
    assert results["token_accuracy"] == pytest.approx(np.mean(correct))
    assert any(correct) == (predicted == Tokenizer.eos_id)


def test_references_are_grouped_by_source_and_language():
    pairs = [
        SentencePair("a", "x"),
        SentencePair("b", "y"),
        SentencePair("a", "z"),
        SentencePair("a", "x"),
        SentencePair("a", "q", None, "fr"),
        SentencePair("c", "w"),
    ]
    sources, references = sample_references(pairs, 3)
    assert sources == [pair._replace(target="") for pair in (pairs[0], pairs[1], pairs[4])]
    assert references == [["x", "z"], ["y"], ["q"]]
    assert sample_references(pairs, 0) == ([], [])


@pytest.fixture
def validator(tmp_path):
    (tmp_path / "valid.tsv").write_text("ab\tcd\nef\tgh\nab\tef\n")
    corpora = ParallelCorpora([str(tmp_path / "valid.tsv")])
    _, tokenizer = make_corpus()
    corpus = TokenizedCorpus.build(corpora, tokenizer)
    options = dataclasses.replace(OPTIONS, samples=1, bleu_sentences=9, source_prefix="say ")
    return Validator(corpora, corpus, tokenizer, options)


def test_translations_are_scored_against_all_references(validator, monkeypatch):
    arguments = {}

    def translate(model, tokenizer, texts, **options):
        arguments.update(options, texts=texts)
        return ["ef", "no"]

    monkeypatch.setattr(validation, "generate", translate)
    model = Transformer(dataclasses.replace(MODEL, source_vocab_size=261, target_vocab_size=261))
    model.eval()
    results = validator.measure(model)
    assert arguments["texts"] == ["ab", "ef"] and arguments["source_prefix"] == "say "
    assert results["exact_match"] == 0.5 and results["bleu"] >= 0 and results["chrf"] > 0
    assert results["samples"] == [{"source": "ab", "reference": "cd", "hypothesis": "ef"}]
    monkeypatch.setattr(validation, "has_sacrebleu", lambda: False)
    results = validator.measure(model)
    assert results["exact_match"] == 0.5 and "bleu" not in results and results["samples"]


def test_translations_use_the_languages_of_the_pairs(tmp_path, monkeypatch):
    (tmp_path / "valid.tsv").write_text("ab\tcd\n")
    corpora = ParallelCorpora([f"xx:yy={tmp_path / 'valid.tsv'}", f"xx:zz={tmp_path / 'valid.tsv'}"])
    tokenizer = Tokenizer.train(["ab"], ["cd"], 270, source_languages=["xx"], target_languages=["yy", "zz"])
    arguments = {}
    monkeypatch.setattr(validation, "generate", lambda *_, **options: arguments.update(options) or ["cd", "cd"])
    options = dataclasses.replace(OPTIONS, bleu_sentences=9)
    Validator(corpora, TokenizedCorpus.build(corpora, tokenizer), tokenizer, options).score_translations(None)
    assert arguments == {"source_language": ["xx"] * 2, "target_language": ["yy", "zz"], "source_prefix": None}
