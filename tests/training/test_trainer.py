"""Training runs: what they leave behind, that they resume exactly whatever happened, and what they refuse."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from support import tiny_checkpoints
from support.paths import ROOT, TESTS
from support.texts import CORPUS
from support.training_cases import (
    MODEL,
    arrays_of,
    log_of,
    near,
    run_options,
    same_bits,
    same_run,
    state_of,
    write_corpora,
)

import mlx_transformer as mt
from mlx_transformer import metrics
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora, read_pairs
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import atomic, safetensors
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training import optimizers, validation
from mlx_transformer.training.builders import build_model_and_tokenizer, new_model_config
from mlx_transformer.training.run_directory import RunDirectory, checkpoint_step, find_damaged_files
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train
from mlx_transformer.training.validation import Validator, validate

KILLS = int(os.environ.get("KILLS", "6"))  # of one run; a start of the program takes seconds
# Each with its own state to save and restore.
VARIANTS = [
    {"ema_decay": 0.0, "optimizer": "adafactor"},
    {"accumulate": 2, "optimizer": "lion", "weight_decay": 0.01},
    {"average_checkpoints": 2, "keep": 3, "schedule": "cosine"},
    {"compute_dtype": "float16", "recompute": True},
    {"attention_dropout": 0.1, "activation_dropout": 0.1, "patience": 1},
]
# Kills itself at the so-manieth turn of a function, counted from the start of the program.
PROGRAM = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import conftest  # first of all, so that the bits are those of the same BLAS
import mlx.core as mx
mx.set_default_device(mx.cpu)
import pathlib
from mlx_transformer.storage import atomic
from mlx_transformer.training.run_directory import load_run_options
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train
import dataclasses
run, place, turns = sys.argv[2], sys.argv[3], int(sys.argv[4])
places = {"sync": (atomic, "fsync"), "rename": (pathlib.Path, "rename"), "step": (TrainState, "update")}
owner, name = places.get(place, (TrainState, "write"))
if place == "time":  # hundredths of a second
    threading.Timer(turns / 100, os.kill, (os.getpid(), signal.SIGKILL)).start()
    turns = 0
real = vars(owner)[name]
def counted(*arguments):
    global turns
    turns -= 1
    if not turns:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(owner, name, counted)
train(dataclasses.replace(load_run_options(run), resume=True))
"""


@pytest.fixture
def options(tmp_path):
    return run_options(write_corpora(tmp_path))


def run_and_die(options, place, turns):
    """Go on with a run in a process of its own that dies at a place; gives its exit status."""
    if not RunDirectory(options.output).options.exists():
        RunDirectory(options.output).folder.mkdir()
        RunDirectory(options.output).begin(options, 0, {})
    command = [sys.executable, "-c", PROGRAM, str(TESTS), options.output, place, str(turns)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()
    return process.returncode


class TestRun:
    def test_best_and_last_are_model_folders_and_the_log_is_what_was_reported(self, options):
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
        assert (
            TrainingConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in start["config"].items()}) == options
        )
        for entry in log_of(run, "step"):
            assert entry.keys() >= {"steps", "loss", "tokens_per_second", "learning_rate", "gradient_norm"}
            assert entry["perplexity"] == pytest.approx(math.exp(entry["loss"])) and entry["memory"] > 0
            assert entry["seconds_left"] >= 0 and entry["steps"] == 12
        for entry in log_of(run, "validation"):
            assert {"loss", "token_accuracy", "exact_match", "chrf", "best"} <= entry.keys()
            assert len(entry["samples"]) == 3

        for folder in (best, run / "last"):
            model, tokenizer = mt.load(folder)
            assert model.num_parameters == start["parameters"]
            assert isinstance(mt.generate(model, tokenizer, "ab cd ef"), str)
            assert model.search_defaults.suppress_ids == (Tokenizer.start_id,)
        assert sorted(path.name for path in run.iterdir()) == ["best", "earlier", "last", "log.jsonl", "options.toml"]

    def test_best_is_the_average_of_the_best_validation(self, options):
        best = train(dataclasses.replace(options, ema_decay=0.5))
        entries = log_of(options.output, "validation")
        assert [e["best"] for e in entries] == [
            e["loss"] < min([math.inf, *(f["loss"] for f in entries[:i])]) for i, e in enumerate(entries)
        ]
        assert entries[-1]["best"]  # this run still improves: its last average is what is kept
        arrays, _ = state_of(Path(options.output))
        kept = arrays["best/model.safetensors"]
        state = arrays["last/training.safetensors"]
        average = split_projections(
            {name.removeprefix("average."): array for name, array in state.items() if "average." in name}
        )
        assert average and all(mx.array_equal(average[name], kept[name]) for name in kept if "positions" not in name)
        model, tokenizer = mt.load(best)
        pairs = [line.split("\t") for line in Path(options.valid[0]).read_text().splitlines()]
        again = validate(model, TokenizedCorpus.build(pairs, tokenizer, options.max_length), options.batch_tokens)
        assert again["loss"] == pytest.approx(entries[-1]["loss"], rel=1e-6)

    @pytest.mark.cpu
    def test_validation_does_not_change_the_run(self, options, tmp_path):
        train(options)
        train(dataclasses.replace(options, output=str(tmp_path / "other"), valid_every=5, bleu_sentences=2))
        first, second = (mx.load(f"{run}/last/training.safetensors") for run in (options.output, tmp_path / "other"))
        assert same_bits(first, second)

    @pytest.mark.parametrize("best_by", ["bleu", "chrf", "loss", "accuracy"])
    def test_best_by(self, options, best_by, monkeypatch):
        scores = iter([1.0, 3.0, 2.0])

        def measure(validator, model):
            figures = {"bleu": 0.0, "chrf": 0.0, "loss": 0.0, "token_accuracy": 0.0}
            name = {"accuracy": "token_accuracy"}.get(best_by, best_by)
            return figures | {name: next(scores) * (-1 if best_by == "loss" else 1)}

        monkeypatch.setattr(Validator, "measure", measure)
        train(dataclasses.replace(options, best_by=best_by, bleu_sentences=5))
        assert [entry["best"] for entry in log_of(options.output, "validation")] == [True, True, False]
        _, progress = state_of(options.output)
        assert (progress["best_score"], progress["stale"]) == (3.0, 1)

    def test_patience_ends_a_run_that_gets_no_better(self, options, monkeypatch):
        scores = iter([1.0, 3.0, 3.0, 2.0, 9.0])
        monkeypatch.setattr(Validator, "measure", lambda *_: {"loss": 0.0, "token_accuracy": next(scores)})
        options = dataclasses.replace(options, steps=20, patience=2)
        train(options)
        assert log_of(options.output, "end")[0] == {"event": "end", "step": 16, "reason": "patience", "best_score": 3.0}
        train(dataclasses.replace(options, resume=True))  # it has ended and does not go on
        assert len(log_of(options.output, "validation")) == 4

    def test_what_is_kept_is_the_mean_of_the_last_checkpoints(self, options):
        """At steps 4, 8 and 12, and neither of those before nor of the one at which it was stopped."""
        options = dataclasses.replace(options, steps=10, average_checkpoints=2, keep=3, ema_decay=0.0, best_by="loss")
        run = Path(options.output)
        kept = {}

        def report(entry):
            if entry["event"] == "validation":
                kept[entry["step"]] = arrays_of(mt.load(run / "last")[0].trainable_parameters())
                assert entry["best"]
            if entry["event"] == "step" and entry["step"] == 6:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(options, log_every=1), report)
        assert checkpoint_step(run / "last") == 6
        train(dataclasses.replace(options, resume=True, log_every=1, steps=8), report)
        mean = {name: (array + kept[8][name]) / 2 for name, array in kept[4].items()}
        assert near(mt.load(run / "best")[0].trainable_parameters(), mean, 1e-6)

    @pytest.mark.cpu
    def test_accumulation_takes_as_many_batches(self, options):
        train(dataclasses.replace(options, accumulate=2, steps=3))
        place = log_of(options.output, "step")
        assert [entry["step"] for entry in place] == [2, 3]

    def test_bleu_needs_sacrebleu_before_anything_is_done(self, options, monkeypatch):
        monkeypatch.setattr(metrics, "has_sacrebleu", lambda: False)
        with pytest.raises(ValueError, match="sacrebleu, which is not installed: pip install"):
            train(dataclasses.replace(options, best_by="bleu", bleu_sentences=5))
        assert not Path(options.output).exists()

    def test_exact_matches_are_counted_without_sacrebleu(self, options, monkeypatch):
        monkeypatch.setattr(validation, "has_sacrebleu", lambda: False)
        train(dataclasses.replace(options, steps=1, bleu_sentences=2))
        (entry,) = log_of(options.output, "validation")
        assert "exact_match" in entry and "bleu" not in entry

    def test_bad_lines_are_skipped_only_if_asked(self, options, caplog):
        with open(options.train[0], "a") as file:
            file.write("no tab\n")
        with pytest.raises(ValueError, match="line 73"):
            train(options)
        assert not Path(options.output).exists()
        with caplog.at_level("WARNING", logger="mlx_transformer.training.trainer"):
            train(dataclasses.replace(options, skip_bad_lines=True, steps=1))
        assert "1 bad lines of" in caplog.text
        assert log_of(options.output, "start")[0]["pairs"] == 72

    def test_separate_vocabularies(self, options):
        best = train(dataclasses.replace(options, shared_vocabulary=False, steps=1))
        model, tokenizer = mt.load(best)
        assert not tokenizer.shared and not model.config.share_embeddings

    def test_several_corpora_and_languages(self, options, tmp_path):
        words = Path(options.train[0]).read_text()
        (tmp_path / "other.tsv").write_text(words)
        specs = (f"xx:yy={options.train[0]}", f"xx:zz={tmp_path / 'other.tsv'}")
        best = train(dataclasses.replace(options, train=specs, valid=specs, steps=2, vocab_size=300, bleu_sentences=3))
        model, tokenizer = mt.load(best)
        assert tokenizer.languages == ["xx", "yy", "zz"]
        assert log_of(options.output, "start")[0]["pairs"] == 144
        assert isinstance(mt.generate(model, tokenizer, "ab cd", target_language="zz"), str)
        with pytest.raises(ValueError, match="needs the target language"):
            mt.generate(model, tokenizer, "ab cd")

    def test_impossible_runs_are_refused_before_a_folder_is_made(self, options, tmp_path):
        for changes, error, told in (
            ({"valid": ("nowhere.tsv",)}, FileNotFoundError, "there is no nowhere.tsv"),
            ({"vocab_size": 200}, ValueError, "vocab_size must be at least 261: got 200"),
            ({"max_length": 2}, ValueError, "No pair is left of"),
            ({"init": str(tmp_path / "none")}, FileNotFoundError, "there is none at"),
        ):
            defaults = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000}
            given = dataclasses.replace(options, **(defaults if "init" in changes else {}) | changes)
            with pytest.raises(error, match=told):
                train(given)
            assert not Path(options.output).exists()

    def test_an_update_takes_as_many_batches_as_asked(self, options, monkeypatch):
        counts, real = [], TrainState.update
        monkeypatch.setattr(TrainState, "update", lambda t, batches: counts.append(len(batches)) or real(t, batches))
        train(dataclasses.replace(options, accumulate=3, steps=2))
        assert counts == [3, 3]

    def test_the_mean_is_of_no_more_checkpoints_than_asked(self, options):
        """Of steps 8 and 12, though that of step 4 is kept."""
        options = dataclasses.replace(options, average_checkpoints=2, keep=3, ema_decay=0.0, best_by="loss")
        kept = {}

        def report(entry):
            if entry["event"] == "validation":
                kept[entry["step"]] = arrays_of(mt.load(Path(options.output) / "last")[0].trainable_parameters())

        train(options, report)
        assert log_of(options.output, "validation")[-1]["best"]
        mean = {name: (array + kept[12][name]) / 2 for name, array in kept[8].items()}
        assert near(mt.load(Path(options.output) / "best")[0].trainable_parameters(), mean, 1e-6)

    def test_a_better_validation_starts_patience_anew(self, options, monkeypatch):
        scores = iter([2.0, 1.0, 3.0, 2.0, 4.0])
        monkeypatch.setattr(Validator, "measure", lambda *_: {"loss": 0.0, "token_accuracy": next(scores)})
        train(dataclasses.replace(options, steps=20, patience=2))
        assert log_of(options.output, "end")[0]["reason"] == "steps"

    def test_validation_translates_sentences_of_its_own_corpora(self, options):
        path = Path(options.valid[0])
        path.write_text("".join(line.replace("ab", "ba") for line in path.read_text().splitlines(keepends=True)))
        train(dataclasses.replace(options, steps=1, bleu_sentences=3))
        (entry,) = log_of(options.output, "validation")
        pairs = [tuple(line.split("\t")) for line in path.read_text().splitlines()]
        assert {(sample["source"], sample["reference"]) for sample in entry["samples"]} <= {*pairs}

    def test_dates_of_validation_are_others_than_those_of_training(self, options, monkeypatch):
        seen = []
        monkeypatch.setattr(Validator, "__init__", lambda self, corpora, *rest: seen.append(corpora) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(dataclasses.replace(options, train=("dates",), valid=("dates",), max_length=64))
        assert [pair.source for pair in seen[0].sample(5)] == [
            pair.source for pair in ParallelCorpora(["dates:valid"]).sample(5)
        ]

    def test_steps_are_timed_without_validation(self, options, monkeypatch):
        real = Validator.measure

        def slow(validator, model):
            now[0] += 1000
            return real(validator, model)

        now = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: now.append(now.pop() + 1) or now[0])
        monkeypatch.setattr(Validator, "measure", slow)
        train(dataclasses.replace(options, log_every=3))
        assert all(entry["seconds_left"] < 500 for entry in log_of(options.output, "step"))

    @pytest.mark.parametrize("best_by", ["bleu", "chrf"])
    def test_bleu_and_chrf_need_sacrebleu_before_anything_is_done(self, options, best_by, monkeypatch):
        monkeypatch.setattr(metrics, "has_sacrebleu", lambda: False)
        with pytest.raises(ValueError, match="sacrebleu, which is not installed: pip install"):
            train(dataclasses.replace(options, best_by=best_by, bleu_sentences=5))
        assert not Path(options.output).exists()

    def test_sentences_too_long_for_the_model_are_left_out(self, options, tmp_path):
        """Which a model that is trained further may be less than the run's own limit."""
        first = train(dataclasses.replace(options, steps=1))
        own = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000, "init": str(first)}
        with open(options.train[0], "a") as file:
            file.write(" ".join(["ab"] * 25) + "\tab\n")
        train(dataclasses.replace(options, output=str(tmp_path / "further"), max_length=64, steps=1, **own))
        (start,) = log_of(tmp_path / "further", "start")
        assert (start["pairs"], start["too_long"]) == (72, 1)

    def test_sources_begin_with_the_prefix(self, options, monkeypatch):
        seen, real = [], TokenizedCorpus.build
        monkeypatch.setattr(
            TokenizedCorpus,
            "build",
            lambda *arguments, **named: seen.append(named["source_prefix"]) or real(*arguments, **named),
        )
        train(dataclasses.replace(options, source_prefix="ab ", steps=1))
        assert seen == ["ab ", "ab "]


@pytest.mark.cpu
class TestResume:
    def test_twice_n_steps_are_n_resumed_for_n(self, options, tmp_path):
        halves = dataclasses.replace(options, output=str(tmp_path / "halves"))
        train(options)
        train(dataclasses.replace(halves, steps=4))
        assert not same_run(options.output, halves.output)
        train(dataclasses.replace(halves, resume=True))
        assert same_run(options.output, halves.output)
        whole, resumed = (log_of(run, "validation") for run in (options.output, halves.output))
        assert whole == resumed  # also the losses, which are those of one unbroken run
        strip = [
            {k: e[k] for k in ("step", "loss", "learning_rate", "gradient_norm")}
            for e in log_of(options.output, "step")
        ]
        assert strip == [{k: e[k] for k in strip[0]} for e in log_of(halves.output, "step")]

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_so_is_every_kind_of_run(self, options, changes, tmp_path):
        options = dataclasses.replace(options, **changes)
        killed = dataclasses.replace(options, output=str(tmp_path / "killed"), log_every=1)
        train(options)

        def stop(entry):
            if entry["event"] == "step" and entry["step"] in (3, 6):
                signal.raise_signal(signal.SIGINT)

        for resume in (False, True):
            with pytest.raises(KeyboardInterrupt):
                train(dataclasses.replace(killed, resume=resume), stop)
        train(dataclasses.replace(killed, resume=True))
        assert same_run(options.output, killed.output)
        assert log_of(options.output, "validation") == log_of(killed.output, "validation")

    def test_the_log_goes_on_as_well(self, options, tmp_path):
        """A line tells of all steps since the one before, also where the run was stopped between them."""
        options = dataclasses.replace(options, log_every=5)
        stopped = dataclasses.replace(options, output=str(tmp_path / "stopped"))
        train(options)

        def stop(entry):
            if entry["step"] == 4:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(stopped, stop)
        train(dataclasses.replace(stopped, resume=True))
        told = [
            [{name: entry[name] for name in ("step", "loss", "perplexity")} for entry in log_of(run, "step")]
            for run in (options.output, stopped.output)
        ]
        assert told[0] == told[1] and len(told[0]) == 3

    def test_a_run_that_is_killed_anywhere_goes_on_as_if_nothing_had_been(self, options, tmp_path):
        """At random moments, and in the middle of writing a checkpoint: at some files' and folders' turns."""
        options = dataclasses.replace(options, steps=5 * KILLS + 10)
        train(options)
        killed = dataclasses.replace(options, output=str(tmp_path / "killed"))
        moments = random.Random(0)
        for number in range(KILLS):
            place, most = [("time", 40), ("sync", 25), ("step", 6), ("rename", 6)][number % 4]
            assert run_and_die(killed, place, moments.randint(1, most)) == -signal.SIGKILL
        assert RunDirectory(killed.output).checkpoints()
        train(dataclasses.replace(killed, resume=True))
        assert same_run(options.output, killed.output)
        steps = [[entry["step"] for entry in log_of(run, "step")] for run in (options.output, killed.output)]
        assert steps[0] == steps[1]  # what was done after the last checkpoint is logged once

    def test_a_run_that_exists_is_not_overwritten(self, options):
        train(dataclasses.replace(options, steps=1))
        before = state_of(options.output)
        with pytest.raises(FileExistsError, match=f"{options.output} holds a run already: resume it"):
            train(options)
        after = state_of(options.output)
        assert before[1] == after[1] and same_bits(before[0], after[0])

    def test_a_run_without_a_checkpoint_begins_anew(self, options, tmp_path):
        resumed = dataclasses.replace(options, resume=True)
        with pytest.raises(FileNotFoundError, match=f"There is no run to resume in {options.output}: start one"):
            train(resumed)
        assert not Path(options.output).exists()

        def stop(entry):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train(options, stop)
        train(resumed)
        train(dataclasses.replace(options, output=str(tmp_path / "other")))
        assert same_run(options.output, tmp_path / "other")

    @pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "SHA256SUMS"])
    @pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
    def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(self, options, name, harm, caplog, tmp_path):
        train(options)
        harmed = dataclasses.replace(options, output=str(tmp_path / "harmed"))
        shutil.copytree(options.output, harmed.output)
        path = Path(harmed.output) / "last" / name
        data = path.read_bytes()
        middle = len(data) // 2
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:middle] if harm == "cut" else data[:middle] + b"#" + data[middle + 1 :])
        with caplog.at_level("WARNING", logger="mlx_transformer.training.run_directory"):
            train(dataclasses.replace(harmed, resume=True))
        assert f"{Path(harmed.output) / 'last'} is damaged: " in caplog.text and name in caplog.text
        assert log_of(harmed.output, "start")[-1]["step"] == 8
        assert same_run(options.output, harmed.output)
        assert (Path(harmed.output) / "damaged-last").exists()

    def test_without_a_whole_checkpoint_nothing_is_done(self, options):
        train(options)
        run = Path(options.output)
        for folder in RunDirectory(run).checkpoints():
            (folder / "training.json").write_text("{}")
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for _ in range(2):
            with pytest.raises(
                ValueError, match="No checkpoint is whole.*last: training.json has.*step-8.*with init .*best"
            ):
                train(dataclasses.replace(options, resume=True))
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files

    def test_so_many_checkpoints_are_kept(self, options):
        for keep, kept in ((1, []), (2, [8]), (3, [8, 4]), (9, [8, 4])):
            run = Path(options.output).with_name(f"keep{keep}")
            train(dataclasses.replace(options, output=str(run), keep=keep))
            assert [checkpoint_step(path) for path in RunDirectory(run).checkpoints()] == [12, *kept]

    def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(self, options, monkeypatch, tmp_path):
        whole = safetensors.write_arrays

        def full(path, arrays, metadata=None):
            if path.name == "training.safetensors" and (Path(options.output) / "last").exists():
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            whole(path, arrays, metadata)

        monkeypatch.setattr(safetensors, "write_arrays", full)
        told = "checkpoint of step 8 could not be written, that of step 4 is whole: make room.*No space left on device"
        with pytest.raises(OSError, match=told):
            train(options)
        monkeypatch.setattr(safetensors, "write_arrays", whole)
        assert find_damaged_files(Path(options.output) / "last") is None
        assert not list(Path(options.output).glob(".last.new*"))
        train(dataclasses.replace(options, resume=True))
        train(dataclasses.replace(options, output=str(tmp_path / "other")))
        assert same_run(options.output, tmp_path / "other")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_end_it_with_a_checkpoint(self, options, number, tmp_path):
        killed = dataclasses.replace(options, output=str(tmp_path / "killed"))
        handler = signal.getsignal(number)

        def stop(entry):
            if entry["event"] == "step" and entry["step"] == 6:
                signal.raise_signal(number)

        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
            train(killed, stop)
        assert number == signal.SIGINT or ended.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(number) is handler
        assert log_of(killed.output, "stopped") == [{"event": "stopped", "step": 6, "signal": number}]
        assert checkpoint_step(Path(killed.output) / "last") == 6
        train(options)
        train(dataclasses.replace(killed, resume=True))
        assert same_run(options.output, killed.output)

    def test_other_options_are_refused_by_name(self, options):
        train(dataclasses.replace(options, steps=1))
        other = dataclasses.replace(options, resume=True, seed=9, learning_rate=1.0, steps=3, keep=5)
        with pytest.raises(
            ValueError, match="but learning_rate, seed differ from .*options.toml; only keep and steps may"
        ):
            train(other)
        train(dataclasses.replace(options, resume=True, steps=2, keep=5))

    @pytest.mark.parametrize("schedule", ["cosine", "linear"])
    def test_a_schedule_that_ends_with_the_run_keeps_its_steps(self, options, schedule):
        options = dataclasses.replace(options, schedule=schedule)
        train(options)
        with pytest.raises(ValueError, match="but steps differ .* only keep may"):
            train(dataclasses.replace(options, resume=True, steps=20))

    def test_other_data_are_refused(self, options):
        train(dataclasses.replace(options, steps=1))
        path = Path(options.train[0])
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([lines[1], lines[0], *lines[2:]]))
        with pytest.raises(ValueError, match="what they hold has changed: put the files back"):
            train(dataclasses.replace(options, resume=True))
        path.write_text("".join(lines))
        valid = Path(options.valid[0])
        kept = valid.read_text()
        valid.write_text(kept.partition("\n")[0] + "\n")
        with pytest.raises(ValueError, match="what they hold has changed"):
            train(dataclasses.replace(options, resume=True))
        valid.write_text(kept)
        train(dataclasses.replace(options, resume=True))

    def test_two_processes_do_not_train_one_run(self, options, monkeypatch):
        """The second looks at nothing and moves nothing, also in the middle of a checkpoint."""
        refused = []

        def again(*_):
            for resume in (True, False):
                with pytest.raises(BlockingIOError, match="is being trained by another process: end that one first"):
                    train(dataclasses.replace(options, resume=resume))
                refused.append(resume)

        whole = atomic.fsync
        monkeypatch.setattr(atomic, "fsync", lambda path: again() or whole(path))
        monkeypatch.setattr(RunDirectory, "newest", lambda *_, **__: None)  # would look
        train(options, again)
        assert len(log_of(options.output, "validation")) == 3 and len(refused) > 60
        assert not list(Path(options.output).glob("damaged*"))

    def test_fewer_steps_than_were_done_are_refused(self, options):
        train(dataclasses.replace(options, steps=2))
        with pytest.raises(ValueError, match="steps must not be less than the run has done: 1 is less than 2"):
            train(dataclasses.replace(options, resume=True, steps=1))

    def test_the_random_numbers_of_the_caller_go_on(self, options):
        mx.random.seed(5)
        expected = mx.random.uniform().item()
        mx.random.seed(5)
        train(dataclasses.replace(options, steps=1))
        assert mx.random.uniform().item() == expected

    def test_a_run_that_is_finished_is_left_as_it_is(self, options):
        best = train(options)
        files = {path: path.read_bytes() for path in Path(options.output).rglob("*.safetensors")}
        assert train(dataclasses.replace(options, resume=True)) == best
        assert files == {path: path.read_bytes() for path in Path(options.output).rglob("*.safetensors")}

    def test_a_stop_right_after_a_validation_saves_nothing_more(self, options, monkeypatch):
        saved, real = [], RunDirectory.save
        monkeypatch.setattr(RunDirectory, "save", lambda run, *rest: saved.append(1) or real(run, *rest))

        def stop(entry):
            if entry["event"] == "validation":
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(options, stop)
        assert len(saved) == 1 and [path.name for path in RunDirectory(options.output).checkpoints()] == ["last"]

    def test_checkpoints_of_a_stop_do_not_push_out_those_of_validations(self, options):
        options = dataclasses.replace(options, keep=2, log_every=1)

        def stop(entry):
            if entry["event"] == "step" and entry["step"] in (6, 7):
                signal.raise_signal(signal.SIGINT)

        for resume in (False, True):
            with pytest.raises(KeyboardInterrupt):
                train(dataclasses.replace(options, resume=resume), stop)
        assert [checkpoint_step(path) for path in RunDirectory(options.output).checkpoints()] == [7, 4]

    def test_a_checkpoint_damaged_a_second_time_is_set_aside_too(self, options):
        train(options)
        for _ in range(2):
            (Path(options.output) / "last" / "training.json").write_text("{}")
            train(dataclasses.replace(options, resume=True))
        assert (Path(options.output) / "damaged-last" / "training.json").read_text() == "{}"

    def test_a_first_checkpoint_that_cannot_be_written(self, options, monkeypatch):
        def full(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(TrainState, "write", full)
        with pytest.raises(OSError, match="step 4 could not be written, and there was none before: make room"):
            train(options)

    def test_best_is_put_back_where_its_replacement_was_cut_off(self, options):
        best = train(options)
        best.rename(best.with_name(".best.old"))
        assert train(dataclasses.replace(options, resume=True)) == best
        assert isinstance(mt.load(best)[1], Tokenizer)

    @pytest.mark.parametrize("side", [0, 1])
    def test_the_fingerprint_tells_any_change(self, options, side):
        tokenizer = Tokenizer.train(["ab cd"], ["ab cd"], 261)
        pairs = [["ab", "cd"], ["cd", "ab"]]
        first = TokenizedCorpus.build(pairs, tokenizer).fingerprint
        pairs[1][side] = "ef"
        assert TokenizedCorpus.build(pairs, tokenizer).fingerprint != first

    def test_a_folder_that_was_moved_goes_on(self, options, tmp_path):
        train(dataclasses.replace(options, steps=4))
        Path(options.output).rename(tmp_path / "moved")
        train(dataclasses.replace(options, output=str(tmp_path / "moved"), resume=True))
        train(options)
        assert same_run(options.output, tmp_path / "moved")

    def test_several_damaged_checkpoints_are_passed_over(self, options, tmp_path):
        options = dataclasses.replace(options, keep=3)
        train(options)
        harmed = dataclasses.replace(options, output=str(tmp_path / "harmed"))
        train(harmed)
        for name in ("last", "earlier/step-8"):
            (Path(harmed.output) / name / "training.json").unlink()
        train(dataclasses.replace(harmed, resume=True))
        assert log_of(harmed.output, "start")[-1]["step"] == 4
        assert same_run(options.output, harmed.output)
        assert {"damaged-last", "damaged-step-8"} <= {path.name for path in Path(harmed.output).iterdir()}


class TestFurther:
    """Training a model further, with its own tokenizer."""

    def further(self, options, model, **changes):
        own = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000}
        return dataclasses.replace(options, **own | {"init": str(model)} | changes)

    def test_it_begins_where_the_model_is(self, options, tmp_path):
        first = train(options)
        (before,) = [entry for entry in log_of(options.output, "validation") if entry["step"] == 12]
        changes = {"output": str(tmp_path / "further"), "learning_rate": 1e-30, "steps": 1, "dropout": 0.3}
        best = train(self.further(options, first, **changes))
        (after,) = log_of(tmp_path / "further", "validation")
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
        model, tokenizer = mt.load(best)
        assert model.config.dropout == 0.3
        assert tokenizer.source.tokenizer.to_str() == mt.load(first)[1].source.tokenizer.to_str()

    @pytest.mark.parametrize("freeze", [(), ("encoder", "embeddings")])
    def test_it_resumes_exactly_and_frozen_parts_stay(self, options, freeze, tmp_path):
        first = train(options)
        whole = self.further(options, first, output=str(tmp_path / "whole"), freeze=freeze, steps=8)
        halves = dataclasses.replace(whole, output=str(tmp_path / "halves"), log_every=1)
        train(whole)

        def stop(entry):
            if entry["step"] == 3:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(halves, stop)
        train(dataclasses.replace(halves, resume=True))
        assert same_run(whole.output, halves.output)
        before, after = (arrays_of(mt.load(folder)[0].parameters()) for folder in (first, tmp_path / "whole" / "last"))
        still = {name.split(".")[0] for name in before if mx.array_equal(before[name], after[name])}
        assert ("encoder" in still and "source_embedding" in still) == bool(freeze)
        moved = {name.split(".")[0] for name in before if not mx.array_equal(before[name], after[name])}
        assert moved == ({"decoder"} if freeze else {"encoder", "decoder", "source_embedding"})

    @pytest.mark.torch
    @pytest.mark.parametrize("kind", ["opus_mt", "nllb", "t5"])
    def test_checkpoints_of_families_learn_with_their_own_tokenizers(self, options, kind, tmp_path):
        """Also where the decoder starts with padding, and where languages or a prefix must be told."""
        (tmp_path / "checkpoint").mkdir()
        vars(tiny_checkpoints)[kind](tmp_path / "checkpoint")
        pairs = [(line, " ".join(line.split()[::-1])) for line in CORPUS]
        (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
        specs = (("eng_Latn:fra_Latn=" if kind == "nllb" else "") + str(tmp_path / "pairs.tsv"),)
        changes = {"train": specs, "valid": specs, "output": str(tmp_path / "further"), "dropout": 0.0}
        changes |= {"source_prefix": "turn: " if kind == "t5" else "", "max_length": 64, "bleu_sentences": 2}
        changes |= {"learning_rate": 3e-3, "schedule": "constant", "ema_decay": 0.0, "optimizer": "adafactor"}
        best = train(self.further(options, tmp_path / "checkpoint", **changes))
        losses = [entry["loss"] for entry in log_of(tmp_path / "further", "validation")]
        assert losses[-1] < losses[0] - 0.1
        model, tokenizer = mt.load(best)
        languages = {"source_language": "eng_Latn", "target_language": "fra_Latn"} if kind == "nllb" else {}
        assert isinstance(mt.generate(model, tokenizer, "Hello", **languages), str)

    @pytest.mark.parametrize(
        ("freeze", "told"),
        [
            (("output",), "This model has no output of its own to freeze"),
            (("encoder", "decoder", "embeddings"), "Something must be left to train: freeze names all parts"),
        ],
    )
    def test_freezing_nothing_or_all_is_refused(self, options, freeze, told, tmp_path):
        first = train(options)
        with pytest.raises(ValueError, match=told):
            train(self.further(options, first, output=str(tmp_path / "x"), freeze=freeze))
        assert not (tmp_path / "x").exists()

    def test_a_model_without_a_tokenizer_is_refused(self, options, tmp_path):
        mt.save(tmp_path / "bare", Transformer(MODEL))
        with pytest.raises(ValueError, match="needs its tokenizer: .*bare has none"):
            train(self.further(options, tmp_path / "bare"))

    def test_float16_is_refused_where_it_overflows(self, options, tmp_path):
        first = train(options)
        model, tokenizer = mt.load(first)
        model.config = dataclasses.replace(model.config, overflows_float16=True)
        mt.save(tmp_path / "wide", model, tokenizer)
        with pytest.raises(ValueError, match="overflow float16"):
            train(self.further(options, tmp_path / "wide", output=str(tmp_path / "x"), compute_dtype="float16"))


class TestDivergence:
    @pytest.mark.parametrize("log_every", [1, 100])
    def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_kept(self, options, log_every, monkeypatch):
        """Whether the log or the validation sees it first."""
        options = dataclasses.replace(options, steps=8, valid_every=2, log_every=log_every)
        train(dataclasses.replace(options, steps=2))
        before = state_of(options.output)
        # Resuming with another rate is refused, so let the schedule itself go mad.
        monkeypatch.setattr(optimizers, "make_schedule", lambda config: lambda step: mx.array(1e30))
        told = (
            r"not finite any more at step \d, batch \d+ of epoch 0 \(\d+ x \d+ source tokens, pairs .*Likely the steps"
        )
        with pytest.raises(ValueError, match=told):
            train(dataclasses.replace(options, resume=True))
        after = state_of(options.output)
        assert after[1]["step"] < 8
        for arrays in after[0].values():
            assert all(mx.isfinite(array).all().item() for array in arrays.values())
        assert before[1]["best_score"] <= after[1]["best_score"]

    def test_a_huge_learning_rate_is_told_at_the_step_it_shows(self, options):
        options = dataclasses.replace(options, learning_rate=1e30, warmup_steps=1, valid_every=12, log_every=12)
        with pytest.raises(ValueError, match="at step 2, .* lower learning_rate"):
            train(options)
        assert not (Path(options.output) / "last").exists()
        for line in (Path(options.output) / "log.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)

    @pytest.mark.parametrize("bleu_sentences", [0, 2])
    def test_weights_that_are_lost_at_a_validation_are_not_kept(self, options, bleu_sentences):
        """The loss of their last step was that of the weights before."""
        options = dataclasses.replace(options, learning_rate=1e30, warmup_steps=1, clip_norm=0.0, ema_decay=0.0)
        with pytest.raises(ValueError, match="not finite any more at step 1, batch 0 .* set clip_norm to 1.$"):
            train(dataclasses.replace(options, valid_every=1, bleu_sentences=bleu_sentences))
        assert not (Path(options.output) / "last").exists() and not (Path(options.output) / "best").exists()

    def test_gradients_that_overflow_for_ever_end_the_run(self, options, monkeypatch):
        real = TrainState.update

        def update(trainer, batches):
            loss, norm = real(trainer, batches)
            trainer.scaling["scale"] = mx.array(1.0)
            return loss, norm * math.inf

        monkeypatch.setattr(TrainState, "update", update)
        with pytest.raises(ValueError, match="float16 overflowed: compute in bfloat16"):
            train(dataclasses.replace(options, compute_dtype="float16"))

    def test_an_overflow_is_logged_without_a_number(self, options, monkeypatch):
        real = TrainState.update
        monkeypatch.setattr(
            TrainState, "update", lambda trainer, batches: (real(trainer, batches)[0], mx.array(math.nan))
        )
        train(dataclasses.replace(options, compute_dtype="float16"))
        assert {entry["gradient_norm"] for entry in log_of(options.output, "step")} == {None}

    def test_the_batch_that_is_named_is_the_one(self, options, monkeypatch):
        """The pairs of the batch at whose step the loss was lost."""
        real = TrainState.update

        def update(trainer, batches):
            loss, norm = real(trainer, batches)
            return (loss * math.nan if trainer.step == 3 else loss), norm

        monkeypatch.setattr(TrainState, "update", update)
        with pytest.raises(ValueError, match="at step 3, batch 2 of epoch 0") as error:
            train(options)
        tokenizer = Tokenizer.train(*zip(*read_pairs(options.train[0]).pairs, strict=True), options.vocab_size)
        corpus = TokenizedCorpus.build(ParallelCorpora(options.train), tokenizer, options.max_length)
        place, _ = next(iterate_batches(corpus, options.batch_tokens, options.seed, skip=2))
        assert f"pairs {', '.join(str(i) for i in place.members[:3])} and so on" in str(error.value)

    def test_float16_is_named_as_the_cause(self, options, monkeypatch):
        monkeypatch.setattr(TrainState, "update", lambda trainer, batches: (mx.array(math.inf), mx.array(1.0)))
        with pytest.raises(ValueError, match="Likely float16 overflowed: compute in bfloat16 or float32"):
            train(dataclasses.replace(options, compute_dtype="float16"))

    def test_a_stop_does_not_keep_a_model_that_is_lost(self, options, monkeypatch):
        real = TrainState.update

        def update(trainer, batches):
            loss, norm = real(trainer, batches)
            if trainer.step == 3:
                signal.raise_signal(signal.SIGINT)
                return loss * math.nan, norm
            return loss, norm

        monkeypatch.setattr(TrainState, "update", update)
        with pytest.raises((ValueError, KeyboardInterrupt)) as ended:
            train(options)
        assert "not finite any more at step 3" in str(ended.value)
        assert not (Path(options.output) / "last").exists()


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (4, 12, 8, 100):
        (tmp_path / "earlier" / f"step-{step}").mkdir(parents=True)
    assert [checkpoint_step(path) for path in RunDirectory(tmp_path).checkpoints()] == [100, 12, 8, 4]


class TestLearner:
    def test_a_new_model_is_what_the_options_say(self, options):
        tokenizer = Tokenizer.train(["ab"], ["cd"], 261, shared=False)
        rates = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}
        sizes = {"num_layers": 2, "decoder_layers": 1, "num_heads": 2, "activation": "gelu", "norm_first": False}
        model = new_model_config(dataclasses.replace(options, **rates, **sizes), tokenizer)
        assert {name: vars(model)[name] for name in rates} == rates
        assert (model.dims, model.activation, model.share_embeddings) == (64, "gelu", False)
        for stack, layers in ((model.encoder, 2), (model.decoder, 1)):
            assert (stack.num_layers, stack.num_heads, stack.mlp_dims) == (layers, 2, 32)
            assert (stack.norm_first, stack.final_norm) == (False, False)

    def test_vocabularies_are_learned_from_their_own_sides(self, options, tmp_path):
        (tmp_path / "pairs.tsv").write_text("ab ab\txy xy\n" * 9)
        spec = f"en:fr={tmp_path / 'pairs.tsv'}"
        config = dataclasses.replace(options, train=(spec,), shared_vocabulary=False)
        _, tokenizer = build_model_and_tokenizer(config, ParallelCorpora(config.train))
        for side, own, other in ((tokenizer.source, "ab", "xy"), (tokenizer.target, "xy", "ab")):
            assert len(side.tokenizer.encode(own).ids) < len(side.tokenizer.encode(other).ids)
        config = tokenizer.config
        assert (config.default_source_language, config.default_target_language) == ("en", "fr")

    def test_search_tasks_and_rates_are_kept_through_init_and_resume(self, options, tmp_path):
        model, tokenizer = mt.load(train(dataclasses.replace(options, steps=1)))
        model.search_defaults = SearchConfig(beam_size=3, suppress_ids=(2,))
        task = TaskConfig("turn", "turn: ", SearchConfig(beam_size=2))
        model.tasks["turn"] = task
        mt.save(tmp_path / "own", model, tokenizer)
        own = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000, "init": str(tmp_path / "own")}
        rates = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.4}
        further = dataclasses.replace(options, **own, **rates, output=str(tmp_path / "further"), steps=1)
        train(further)
        train(dataclasses.replace(further, resume=True, steps=2))
        for name in ("best", "last"):
            folder = model_folder.read_config(tmp_path / "further" / name)
            assert (folder.search, folder.tasks) == (model.search_defaults, (task,))
            assert folder.model == dataclasses.replace(model.config, **rates)


@pytest.mark.parametrize("stopped", [2, 6])
def test_a_stopped_run_that_is_to_end_where_it_is_is_validated(options, stopped):
    def stop(entry):
        if entry["event"] == "step" and entry["step"] == stopped:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(options, stop)
    assert train(dataclasses.replace(options, resume=True, steps=stopped)).exists()
    assert log_of(options.output, "validation")[-1]["step"] == stopped


def test_sources_begin_with_the_prefix_of_the_tokenizer(options, tmp_path, monkeypatch):
    """As they do in validation and in translating."""
    model, tokenizer = mt.load(train(dataclasses.replace(options, steps=1)))
    tokenizer.config = dataclasses.replace(tokenizer.config, source_prefix="ab ")
    mt.save(tmp_path / "own", model, tokenizer)
    prefixes, real = [], TokenizedCorpus.build
    monkeypatch.setattr(
        TokenizedCorpus, "build", lambda *args, **named: prefixes.append(named["source_prefix"]) or real(*args, **named)
    )
    own = {"num_layers": None, "dims": None, "mlp_dims": None, "vocab_size": 8000, "init": str(tmp_path / "own")}
    train(dataclasses.replace(options, output=str(tmp_path / "further"), steps=1, **own))
    assert prefixes == ["ab ", "ab "]


def test_a_run_s_prefix_is_that_of_its_model(options):
    _, tokenizer = mt.load(train(dataclasses.replace(options, steps=1, source_prefix="ab ")))
    assert tokenizer.config.source_prefix == "ab "
