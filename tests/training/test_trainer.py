"""Training runs: what they write, log and validate, and how they select the best model."""

import dataclasses
import json
import math
from pathlib import Path

import mlx.core as mx
import pytest
from support.training_cases import (
    NEW_MODEL_DEFAULTS,
    all_close,
    bitwise_equal,
    fine_tuning_options,
    flatten,
    interrupt_at,
    log_events,
    run_state,
)

import mlx_transformer as mt
from mlx_transformer import metrics
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import validation
from mlx_transformer.training.run_directory import checkpoint_step
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train
from mlx_transformer.training.validation import Validator, validate


def set_scores(monkeypatch, scores):
    """Let validations report these token accuracies, one after another."""
    scores = iter(scores)
    monkeypatch.setattr(Validator, "measure", lambda *_: {"loss": 0.0, "token_accuracy": next(scores)})


def test_a_trained_model_takes_text_as_people_type_it(options, tmp_path):
    plain = ["I don't know.", "Where is the caf\u00e9?", 'Wait... I said "no" - thanks!']
    typed = ["I\u00a0don\u2019t know.\u2009", "\ufeffWhere  is the cafe\u0301\uff1f"]
    typed.append("Wait\u2026 I\u200b said \u201cno\u201d \u2013 thanks!")
    corpus = tmp_path / "corpus.tsv"
    corpus.write_text("".join(f"{text}\t{text}\n" for text in [*plain, *typed] * 9), encoding="utf-8")
    options = dataclasses.replace(options, train=(str(corpus),), valid=(str(corpus),), vocab_size=400)
    model, tokenizer = mt.load(train(options))
    typed[0] = typed[0].replace(" ", "\t\n")
    assert tokenizer.encode_batch(typed) == tokenizer.encode_batch(plain)
    assert mt.generate(model, tokenizer, typed) == mt.generate(model, tokenizer, plain)
    assert mt.generate(model, tokenizer, ["\u200b", "\ufeff\u00a0"]) == ["", ""]


def test_a_run_tells_its_model_how_to_read_lines(options, tmp_path):
    train(dataclasses.replace(options, steps=1, recase=True))
    tokenizer = mt.load(Path(options.output) / "last")[1]
    first, sources = tokenizer.config, [line.split("\t")[0] for line in Path(options.train[0]).read_text().splitlines()]
    assert first.recase and first.max_sentence_tokens == max(map(len, map(tokenizer.encode, sources)))
    assert first.min_length_ratio == 0.9  # nine tokens without end for ten with it
    tuned = fine_tuning_options(options, Path(options.output) / "last", steps=1, output=str(tmp_path / "tuned"))
    train(tuned)
    assert mt.load(tmp_path / "tuned" / "last")[1].config == first
    train(dataclasses.replace(options, steps=1, output=str(tmp_path / "plain")))
    assert mt.load(tmp_path / "plain" / "last")[1].config == dataclasses.replace(first, recase=False)


def test_run_writes_model_folders_and_logs_every_reported_entry(options):
    reports = []
    options = dataclasses.replace(options, bleu_sentences=5, ema_decay=0.5)
    best = train(options, reports.append)
    run = Path(options.output)
    assert best == run / "best"
    lines = (run / "log.jsonl").read_text().splitlines()
    assert lines == [json.dumps(entry) for entry in reports]
    assert [entry["event"] for entry in reports] == ["start", *(["step"] * 2 + ["validation"]) * 3, "end"]
    assert [entry["step"] for entry in reports] == [0, 2, 4, 4, 6, 8, 8, 10, 12, 12, 12]
    start, *_, end = reports
    assert end["reason"] == "steps"
    assert start["pairs"] == 72 and start["too_long"] == 0
    assert TrainingConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in start["config"].items()}) == options
    for entry in log_events(run, "step"):
        assert entry.keys() >= {"steps", "loss", "tokens_per_second", "learning_rate", "gradient_norm"}
        assert entry["perplexity"] == pytest.approx(math.exp(entry["loss"])) and entry["memory"] > 0
        assert entry["seconds_left"] >= 0 and entry["steps"] == 12
    for entry in log_events(run, "validation"):
        assert {"loss", "token_accuracy", "exact_match", "chrf", "best"} <= entry.keys()
        assert len(entry["samples"]) == 3

    for folder in (best, run / "last"):
        model, tokenizer = mt.load(folder)
        assert model.num_parameters == start["parameters"]
        assert isinstance(mt.generate(model, tokenizer, "ab cd ef"), str)
        assert model.search_defaults.suppress_ids == (Tokenizer.start_id,)
    assert sorted(path.name for path in run.iterdir()) == ["best", "earlier", "last", "log.jsonl", "options.toml"]


def test_best_holds_the_moving_average_of_the_best_validation(options):
    best = train(dataclasses.replace(options, ema_decay=0.5))
    entries = log_events(options.output, "validation")
    assert [e["best"] for e in entries] == [
        e["loss"] < min([math.inf, *(f["loss"] for f in entries[:i])]) for i, e in enumerate(entries)
    ]
    assert entries[-1]["best"]  # this run improves until its end
    arrays, _ = run_state(Path(options.output))
    best_weights = {n: a for n, a in arrays["best/model.safetensors"].items() if "positions" not in n}
    extra = arrays["last/training.safetensors"]
    average = split_projections({n.removeprefix("average."): a for n, a in extra.items() if "average." in n})
    assert average and all(mx.array_equal(average[name], array) for name, array in best_weights.items())
    model, tokenizer = mt.load(best)
    pairs = [line.split("\t") for line in Path(options.valid[0]).read_text().splitlines()]
    results = validate(model, TokenizedCorpus.build(pairs, tokenizer, options.max_length), options.batch_tokens)
    assert results["loss"] == pytest.approx(entries[-1]["loss"], rel=1e-6)


@pytest.mark.cpu
def test_validation_does_not_affect_training(options, tmp_path):
    train(options)
    train(dataclasses.replace(options, output=str(tmp_path / "other"), valid_every=5, bleu_sentences=2))
    first, second = (mx.load(f"{run}/last/training.safetensors") for run in (options.output, tmp_path / "other"))
    assert bitwise_equal(first, second)


@pytest.mark.parametrize("best_by", ["bleu", "chrf", "loss", "accuracy"])
def test_best_by_selects_the_metric(options, best_by, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])

    def measure(validator, model):
        results = {"bleu": 0.0, "chrf": 0.0, "loss": 0.0, "token_accuracy": 0.0}
        name = {"accuracy": "token_accuracy"}.get(best_by, best_by)
        return results | {name: next(scores) * (-1 if best_by == "loss" else 1)}

    monkeypatch.setattr(Validator, "measure", measure)
    train(dataclasses.replace(options, best_by=best_by, bleu_sentences=5))
    assert [entry["best"] for entry in log_events(options.output, "validation")] == [True, True, False]
    _, progress = run_state(options.output)
    assert (progress["best_score"], progress["stale"]) == (3.0, 1)


def test_patience_stops_a_run_without_improvement(options, monkeypatch):
    set_scores(monkeypatch, [1.0, 3.0, 3.0, 2.0, 9.0])
    options = dataclasses.replace(options, steps=20, patience=2)
    train(options)
    assert log_events(options.output, "end")[0] == {"event": "end", "step": 16, "reason": "patience", "best_score": 3.0}
    train(dataclasses.replace(options, resume=True))  # has no steps left to do
    assert len(log_events(options.output, "validation")) == 4


def test_best_is_the_mean_of_the_last_validation_checkpoints(options):
    """The mean of the checkpoints of steps 4 and 8, without that of step 6, at which the run was stopped."""
    options = dataclasses.replace(options, steps=10, average_checkpoints=2, keep=3, ema_decay=0.0, best_by="loss")
    run = Path(options.output)
    weights = {}

    def report(entry):
        if entry["event"] == "validation":
            weights[entry["step"]] = flatten(mt.load_model(run / "last").trainable_parameters())
            assert entry["best"]
        interrupt_at(6)(entry)

    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(options, log_every=1), report)
    assert checkpoint_step(run / "last") == 6
    train(dataclasses.replace(options, resume=True, log_every=1, steps=8), report)
    mean = {name: (array + weights[8][name]) / 2 for name, array in weights[4].items()}
    assert all_close(mt.load_model(run / "best").trainable_parameters(), mean, 1e-6)


@pytest.mark.cpu
def test_steps_count_updates_not_batches(options):
    train(dataclasses.replace(options, accumulate=2, steps=3))
    assert [entry["step"] for entry in log_events(options.output, "step")] == [2, 3]


def test_exact_match_works_without_sacrebleu(options, monkeypatch):
    monkeypatch.setattr(validation, "has_sacrebleu", lambda: False)
    train(dataclasses.replace(options, steps=1, bleu_sentences=2))
    (entry,) = log_events(options.output, "validation")
    assert "exact_match" in entry and "bleu" not in entry


def test_skip_bad_lines_skips_and_counts_them(options, caplog):
    with open(options.train[0], "a") as file:
        file.write("no tab\n")
    with pytest.raises(ValueError, match="line 73: .*--skip-bad-lines"):
        train(options)
    assert not Path(options.output).exists()
    with caplog.at_level("WARNING", logger="mlx_transformer.training.trainer"):
        train(dataclasses.replace(options, skip_bad_lines=True, steps=1))
    assert "Skipped 1 bad lines of" in caplog.text
    assert log_events(options.output, "start")[0]["pairs"] == 72


def test_separate_vocabularies(options):
    best = train(dataclasses.replace(options, shared_vocabulary=False, steps=1))
    model, tokenizer = mt.load(best)
    assert not tokenizer.shared and not model.config.share_embeddings


def test_several_corpora_and_languages(options, tmp_path):
    (tmp_path / "other.tsv").write_text(Path(options.train[0]).read_text())
    specs = (f"xx:yy={options.train[0]}", f"xx:zz={tmp_path / 'other.tsv'}")
    best = train(dataclasses.replace(options, train=specs, valid=specs, steps=2, vocab_size=300, bleu_sentences=3))
    model, tokenizer = mt.load(best)
    assert tokenizer.languages == ["xx", "yy", "zz"]
    assert log_events(options.output, "start")[0]["pairs"] == 144
    assert isinstance(mt.generate(model, tokenizer, "ab cd", target_language="zz"), str)
    with pytest.raises(ValueError, match="needs the target language"):
        mt.generate(model, tokenizer, "ab cd")


def test_invalid_options_raise_before_the_folder_is_created(options, tmp_path):
    for changes, error, message in (
        ({"valid": ("nowhere.tsv",)}, FileNotFoundError, "corpus file nowhere.tsv does not exist"),
        ({"vocab_size": 200}, ValueError, "vocab_size must be at least 261: got 200"),
        ({"max_length": 2}, ValueError, "At least one pair must fit 2 tokens"),
        ({"init": str(tmp_path / "none")}, FileNotFoundError, "there is none at"),
    ):
        defaults = NEW_MODEL_DEFAULTS if "init" in changes else {}
        with pytest.raises(error, match=message):
            train(dataclasses.replace(options, **defaults | changes))
        assert not Path(options.output).exists()


def test_an_update_accumulates_the_given_number_of_batches(options, monkeypatch):
    counts, update = [], TrainState.update
    monkeypatch.setattr(TrainState, "update", lambda t, batches: counts.append(len(batches)) or update(t, batches))
    train(dataclasses.replace(options, accumulate=3, steps=2))
    assert counts == [3, 3]


def test_only_average_checkpoints_are_averaged(options):
    """The mean of the checkpoints of steps 8 and 12, although that of step 4 exists."""
    options = dataclasses.replace(options, average_checkpoints=2, keep=3, ema_decay=0.0, best_by="loss")
    weights = {}

    def report(entry):
        if entry["event"] == "validation":
            weights[entry["step"]] = flatten(mt.load_model(Path(options.output) / "last").trainable_parameters())

    train(options, report)
    assert log_events(options.output, "validation")[-1]["best"]
    mean = {name: (array + weights[12][name]) / 2 for name, array in weights[8].items()}
    assert all_close(mt.load_model(Path(options.output) / "best").trainable_parameters(), mean, 1e-6)


def test_improvement_resets_patience(options, monkeypatch):
    set_scores(monkeypatch, [2.0, 1.0, 3.0, 2.0, 4.0])
    train(dataclasses.replace(options, steps=20, patience=2))
    assert log_events(options.output, "end")[0]["reason"] == "steps"


def test_samples_come_from_the_validation_corpus(options):
    path = Path(options.valid[0])
    path.write_text("".join(line.replace("ab", "ba") for line in path.read_text().splitlines(keepends=True)))
    train(dataclasses.replace(options, steps=1, bleu_sentences=3))
    (entry,) = log_events(options.output, "validation")
    pairs = [tuple(line.split("\t")) for line in path.read_text().splitlines()]
    assert {(sample["source"], sample["reference"]) for sample in entry["samples"]} <= {*pairs}


@pytest.mark.slow
def test_dates_task_validates_on_its_valid_split(options, monkeypatch):
    corpora = []
    monkeypatch.setattr(Validator, "__init__", lambda self, pairs, *rest: corpora.append(pairs) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(dataclasses.replace(options, train=("dates",), valid=("dates",), max_length=64))
    assert [pair.source for pair in corpora[0].sample(5)] == [
        pair.source for pair in ParallelCorpora(["dates:valid"]).sample(5)
    ]


def test_time_left_does_not_include_validation(options, monkeypatch):
    measure = Validator.measure

    def slow_measure(validator, model):
        now[0] += 1000
        return measure(validator, model)

    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now.append(now.pop() + 1) or now[0])
    monkeypatch.setattr(Validator, "measure", slow_measure)
    train(dataclasses.replace(options, log_every=3))
    assert all(entry["seconds_left"] < 500 for entry in log_events(options.output, "step"))


@pytest.mark.parametrize("best_by", ["bleu", "chrf"])
def test_best_by_bleu_or_chrf_requires_sacrebleu_from_the_start(options, best_by, monkeypatch):
    monkeypatch.setattr(metrics, "has_sacrebleu", lambda: False)
    with pytest.raises(ValueError, match="sacrebleu, which is not installed: pip install"):
        train(dataclasses.replace(options, best_by=best_by, bleu_sentences=5))
    assert not Path(options.output).exists()


def test_source_prefix_is_added_to_both_corpora(options, monkeypatch):
    prefixes, build = [], TokenizedCorpus.build
    monkeypatch.setattr(
        TokenizedCorpus,
        "build",
        lambda *args, **kwargs: prefixes.append(kwargs["source_prefix"]) or build(*args, **kwargs),
    )
    train(dataclasses.replace(options, source_prefix="ab ", steps=1))
    assert prefixes == ["ab ", "ab "]
