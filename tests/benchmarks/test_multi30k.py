"""Tests of training on Multi30k: both systems read the same batches and are scored alike."""

import gzip

import numpy as np
import pytest
from click.testing import CliRunner
from support.training_benchmarks import TINY

import mlx_transformer as mt
from mlx_transformer.data.dates import date_pairs
from mlx_transformer.plotting.learning_curves import curve, read_log
from mlx_transformer.training.train_state import TrainState

torch = pytest.importorskip("torch")
torch_model = pytest.importorskip("benchmarks.torch_model")
multi30k = pytest.importorskip("benchmarks.multi30k")  # needs sacrebleu
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture
def data(tmp_path):
    """Written-out dates in files named like those of Multi30k."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, size in (("train", 60), ("val", 8), ("test_2016_flickr", 8)):
        pairs = date_pairs("train", size=size)
        for number, language in enumerate(("en", "de")):
            with gzip.open(folder / f"{split}.{language}.gz", "wt", encoding="utf-8") as file:
                file.writelines(f"Am {pair[number]}.\n" for pair in pairs)
    return folder


@pytest.fixture
def tiny_recipe(monkeypatch):
    """Replace the recipe by one with a smaller model."""
    small = {"num_layers": 1, "dims": 16, "mlp_dims": 16, "num_heads": 2, "vocab_size": 300, "max_length": 64}
    original = multi30k.recipe
    monkeypatch.setattr(multi30k, "recipe", lambda folder, **changes: original(folder, **small | changes))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.slow
def test_both_systems_train_evaluate_and_report(norm_first, data, tmp_path, monkeypatch, tiny_recipe):
    read = {"ours": [], "torch": []}
    for name, trainer in (("ours", TrainState), ("torch", torch_model.TorchTrainer)):
        update = trainer.update
        monkeypatch.setattr(
            trainer, "update", lambda self, batches, n=name, u=update: (read[n].append(batches), u(self, batches))[1]
        )
    runs = [tmp_path / name for name in read]
    flags = ["--data", data, "--steps", 5, "--valid-every", 2, "--batch-tokens", 256, "--bleu-sentences", 3]
    call = lambda *words: CliRunner().invoke(multi30k.main, list(map(str, words)), catch_exceptions=False)  # noqa: E731
    for run in runs:
        result = call("train", "--system", run.name, "--output", run, *flags, *(["--norm-first"] if norm_first else []))
        assert result.exit_code == 0 and "ended by steps" in result.output
    assert len(read["ours"]) == 5
    for ours, theirs in zip(*read.values(), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(ours[0], theirs[0], strict=True))
    logs = list(map(read_log, runs))
    for field in ("loss", "token_accuracy", "bleu", "best"):
        assert [[step for step, _ in curve(log, "validation", field)] for log in logs] == [[2, 4, 5]] * 2
    assert logs[0][0]["parameters"] == logs[1][0]["parameters"]
    models = [mt.load_model(run / "best").config for run in runs]
    assert models[0].encoder == models[1].encoder and models[0].encoder.norm_first == norm_first
    assert "tok:none" in call("evaluate", *runs).output
    output = call("report", *runs).output
    assert "| torch | torch | de |" in output and "5 of 5" in output and "ours - torch's: de" in output
    assert call("train", "--system", "ours", "--output", runs[0], *flags).exit_code == 1


@pytest.mark.parametrize("system", ["ours", "torch"])
def test_training_stops_after_the_time_limit_with_a_model(system, data, tmp_path, tiny_recipe):
    flags = ["--data", data, "--steps", 9, "--valid-every", 2, "--batch-tokens", 256, "--minutes", 0]
    words = ["train", "--system", system, "--output", tmp_path / "run", *flags]
    result = CliRunner().invoke(multi30k.main, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0 and "ended by minutes" in result.output
    assert read_log(tmp_path / "run")[-1]["step"] == 2
    assert 0 <= multi30k.score_run(tmp_path / "run")["bleu"] <= 100


def test_scores_compare_hypotheses_with_references(data, tmp_path, monkeypatch):
    multi30k.prepare(data, "de", tmp_path)
    pairs = [line.split("\t") for line in (tmp_path / "test.tsv").read_text().splitlines()]
    calls = []

    def generate(model, tokenizer, sources, search):
        calls.append((sources, search.beam_size))
        return [target for _, target in pairs]

    monkeypatch.setattr(mt, "load", lambda folder, dtype: (mt.Transformer(TINY.model), None))
    monkeypatch.setattr(mt, "generate", generate)
    results = multi30k.score_run(tmp_path)
    assert [results[name] for name in multi30k.METRICS] == [pytest.approx(100)] * 3
    assert calls == [([source for source, _ in pairs], 5)]


def test_pairs_are_lower_cased_and_tokenised_but_references_are_unchanged(data, tmp_path):
    multi30k.prepare(data, "de", tmp_path / "run")
    source, target = (tmp_path / "run" / "test.tsv").read_text().splitlines()[0].split("\t")
    reference = (tmp_path / "run" / "references.txt").read_text().splitlines()[0]
    assert source.startswith("am ") and source.endswith(" .") and source == source.lower()
    assert reference.startswith("Am ") and target == reference.lower().replace("-", " - ").replace(".", " .")


def run_entry(system, bleu, norm_first=False, target="de"):
    recipe = {"norm_first": norm_first, "steps": 10, "batch_tokens": 64}
    return {"system": system, "target": target, "recipe": recipe, "bleu_tokenised": bleu}


def test_goals_compare_means_of_the_same_recipe():
    results = [run_entry("ours", 39), run_entry("ours", 40), run_entry("torch", 40.1), run_entry("ours", 30, True)]
    results += [run_entry("torch", 31, True), run_entry("ours", 50, target="fr")]
    goals = multi30k.goals(results)
    figures = {goal.name: goal.figure for goal in goals}
    de, pre = "de, post-norm, 10 x 64 tokens", "de, pre-norm, 10 x 64 tokens"
    assert figures == {
        f"BLEU of ours: {de}": 39.5,
        f"BLEU, ours - torch's: {de}": pytest.approx(-0.6),
        f"BLEU of ours: {pre}": 30,
        f"BLEU, ours - torch's: {pre}": -1,
    }
    assert (
        multi30k.goals([run_entry("ours", 39.7), run_entry("torch", 40)])[1].reached(-multi30k.MAX_BLEU_DEFICIT)
        == "yes"
    )
    assert goals[0].reached(goals[0].aim) == "yes" and goals[1].reached(goals[1].goal) == "no"


def test_curves_table_has_the_first_and_last_validation():
    log = [{"event": "validation", "step": step, "loss": step / 8, "bleu": step} for step in range(8, 808, 8)]
    lines = multi30k.curves_table({"a": log, "b": log[:-1]}).splitlines()
    assert lines[0] == "| step | a, loss | a, bleu | b, loss | b, bleu |" and len(lines) == 2 + multi30k.TABLE_ROWS
    assert lines[2] == "| 8 | 1.000 | 8.000 | 1.000 | 8.000 |" and lines[-1] == "| 800 | 100.000 | 800.000 | - | - |"
