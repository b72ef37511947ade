"""Fine-tuning models with their own tokenizers."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import pytest
from support import tiny_checkpoints
from support.texts import CORPUS
from support.training_cases import (
    MODEL,
    fine_tuning_options,
    flatten,
    interrupt_at,
    log_events,
    runs_equal,
)

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.trainer import train


@pytest.fixture
def pretrained(finished):
    """The run folder of the model to fine-tune."""
    return Path(finished.output)


def test_fine_tuning_starts_from_the_model_s_weights(options, pretrained):
    (before,) = [entry for entry in log_events(pretrained, "validation") if entry["step"] == 12]
    changes = {"learning_rate": 1e-30, "steps": 1, "dropout": 0.3}
    best = train(fine_tuning_options(options, pretrained / "best", **changes))
    (after,) = log_events(options.output, "validation")
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    model, tokenizer = mt.load(best)
    assert model.config.dropout == 0.3
    assert tokenizer.source.tokenizer.to_str() == mt.load(pretrained / "best")[1].source.tokenizer.to_str()


def test_validation_searches_as_the_model_does_and_the_log_says_how(options, pretrained, tmp_path):
    model, tokenizer = mt.load(pretrained / "best")
    model.search_defaults = dataclasses.replace(model.search_defaults, beam_size=3, max_tokens=5)
    model_folder.save(tmp_path / "beams", model, tokenizer)
    best = train(fine_tuning_options(options, tmp_path / "beams", steps=1, bleu_sentences=3, samples=3))
    (start,), (entry,) = (log_events(options.output, event) for event in ("start", "validation"))
    assert (start["search"]["beam_size"], start["search"]["max_tokens"]) == (3, 5)
    texts = mt.generate(*mt.load(best), [sample["source"] for sample in entry["samples"]])
    assert texts == [sample["hypothesis"] for sample in entry["samples"]] and len(texts) == 3


@pytest.mark.parametrize("freeze", [(), ("encoder", "embeddings")])
def test_fine_tuning_resumes_exactly_and_keeps_frozen_parts(options, pretrained, freeze, tmp_path):
    options = fine_tuning_options(options, pretrained / "best", freeze=freeze, steps=8)
    resumed = dataclasses.replace(options, output=str(tmp_path / "resumed"), log_every=1)
    train(options)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, interrupt_at(3))
    train(dataclasses.replace(resumed, resume=True))
    assert runs_equal(options.output, resumed.output)
    folders = pretrained / "best", Path(options.output) / "last"
    before, after = (flatten(mt.load_model(folder).parameters()) for folder in folders)
    unchanged = {name.split(".")[0] for name in before if mx.array_equal(before[name], after[name])}
    assert ("encoder" in unchanged and "source_embedding" in unchanged) == bool(freeze)
    changed = {name.split(".")[0] for name in before if not mx.array_equal(before[name], after[name])}
    assert changed == ({"decoder"} if freeze else {"encoder", "decoder", "source_embedding"})


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["opus_mt", "nllb", "t5"])
def test_checkpoints_of_families_are_fine_tuned_with_their_tokenizers(options, kind, tmp_path):
    """Including a decoder that starts with padding, languages, and a source prefix."""
    (tmp_path / "checkpoint").mkdir()
    vars(tiny_checkpoints)[kind](tmp_path / "checkpoint")
    pairs = [(line, " ".join(line.split()[::-1])) for line in CORPUS]
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    specs = (("eng_Latn:fra_Latn=" if kind == "nllb" else "") + str(tmp_path / "pairs.tsv"),)
    changes = {"train": specs, "valid": specs, "dropout": 0.0}
    changes |= {"source_prefix": "turn: " if kind == "t5" else "", "max_length": 64, "bleu_sentences": 2}
    changes |= {"learning_rate": 3e-3, "schedule": "constant", "ema_decay": 0.0, "optimizer": "adafactor"}
    best = train(fine_tuning_options(options, tmp_path / "checkpoint", **changes))
    losses = [entry["loss"] for entry in log_events(options.output, "validation")]
    assert losses[-1] < losses[0] - 0.1
    model, tokenizer = mt.load(best)
    languages = {"source_language": "eng_Latn", "target_language": "fra_Latn"} if kind == "nllb" else {}
    assert isinstance(mt.generate(model, tokenizer, "Hello", **languages), str)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("output",), "This model has no separate output to freeze"),
        (
            ("encoder", "decoder", "embeddings"),
            "freeze must leave something to train, but nothing is left without encoder, decoder, embeddings",
        ),
    ],
)
def test_freezing_a_missing_part_or_everything_raises(options, pretrained, freeze, message):
    with pytest.raises(ValueError, match=message):
        train(fine_tuning_options(options, pretrained / "best", freeze=freeze))
    assert not Path(options.output).exists()


def test_a_model_without_a_tokenizer_raises(options, tmp_path):
    mt.save(tmp_path / "bare", Transformer(MODEL))
    with pytest.raises(ValueError, match="must have a tokenizer, but .*bare has none"):
        train(fine_tuning_options(options, tmp_path / "bare"))


def test_weights_that_are_not_finite_are_blamed_on_the_model(options, pretrained, tmp_path):
    model, tokenizer = mt.load(Path(pretrained) / "best")
    model.encoder.layers[0].feed_forward.up_proj.weight[0, 0] = mx.nan
    mt.save(tmp_path / "broken", model, tokenizer)
    with pytest.raises(ValueError, match="broken must be finite, but those of encoder.layers.0.feed_forward.up_proj"):
        train(fine_tuning_options(options, tmp_path / "broken"))


def test_float16_raises_for_a_model_that_overflows(options, pretrained, tmp_path):
    model, tokenizer = mt.load(pretrained / "best")
    model.config = dataclasses.replace(model.config, overflows_float16=True)
    mt.save(tmp_path / "wide", model, tokenizer)
    with pytest.raises(ValueError, match=r"overflow float16: use bfloat16 or float32\.$"):
        train(fine_tuning_options(options, tmp_path / "wide", compute_dtype="float16"))


def test_fine_tuning_uses_the_source_prefix_of_the_tokenizer(options, pretrained, tmp_path, monkeypatch):
    model, tokenizer = mt.load(pretrained / "best")
    tokenizer.config = dataclasses.replace(tokenizer.config, source_prefix="ab ")
    mt.save(tmp_path / "init", model, tokenizer)
    prefixes, build = [], TokenizedCorpus.build
    monkeypatch.setattr(
        TokenizedCorpus,
        "build",
        lambda *args, **kwargs: prefixes.append(kwargs["source_prefix"]) or build(*args, **kwargs),
    )
    train(fine_tuning_options(options, tmp_path / "init", steps=1))
    assert prefixes == ["ab ", "ab "]


def test_source_prefix_is_saved_with_the_tokenizer(options):
    _, tokenizer = mt.load(train(dataclasses.replace(options, steps=1, source_prefix="ab ")))
    assert tokenizer.config.source_prefix == "ab "


def test_search_defaults_tasks_and_dropout_rates_survive_fine_tuning_and_resuming(options, pretrained, tmp_path):
    model, tokenizer = mt.load(pretrained / "best")
    model.search_defaults = SearchConfig(beam_size=3, suppress_ids=(2,))
    task = TaskConfig("turn", "turn: ", SearchConfig(beam_size=2))
    model.tasks["turn"] = task
    mt.save(tmp_path / "init", model, tokenizer)
    rates = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.4}
    options = fine_tuning_options(options, tmp_path / "init", **rates, steps=1)
    train(options)
    train(dataclasses.replace(options, resume=True, steps=2))
    for name in ("best", "last"):
        folder = model_folder.read_config(Path(options.output) / name)
        assert (folder.search, folder.tasks) == (model.search_defaults, (task,))
        assert folder.model == dataclasses.replace(model.config, **rates)


def test_sentences_too_long_for_the_initial_model_are_dropped(options, pretrained):
    """The model's limit may be lower than max_length."""
    with open(options.train[0], "a") as file:
        file.write(" ".join(["ab"] * 25) + "\tab\n")
    train(fine_tuning_options(options, pretrained / "best", max_length=64, steps=1))
    (start,) = log_events(options.output, "start")
    assert (start["pairs"], start["too_long"]) == (72, 1)
