"""The benchmarks of training: peers that are what they are compared as, and the arithmetic of figures and goals."""

import gzip
import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

import mlx_transformer as mt
from benchmarks import measure, mlx_model, train
from benchmarks.measure import Sample
from benchmarks.train import MLX, OURS, TORCH, Options
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.data.dates import date_pairs
from mlx_transformer.plotting.learning_curves import curve, read_log
from mlx_transformer.training.train_state import TrainState

torch = pytest.importorskip("torch")
torch_model = pytest.importorskip("benchmarks.torch_model")
multi30k = pytest.importorskip("benchmarks.multi30k")  # needs sacrebleu
pytestmark = pytest.mark.torch

TINY = Options(layers=2, dims=32, heads=2, mlp=48, vocab=60, rows=3, length=7, dropout=0.0, threads=1)
RECIPE = TrainingConfig(
    train=("none",),
    valid=("none",),
    output="",
    learning_rate=0.01,
    warmup_steps=2,
    label_smoothing=0.1,
    clip_norm=1.5,
    ema_decay=0.0,
    accumulate=2,
)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Nothing is timed here in earnest, on a CPU every new trace costs seconds, and threads wait busily."""
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mx.disable_compile()
    yield
    mx.enable_compile()
    torch.set_num_threads(threads)


def model_config(norm_first, **changes):
    config = replace(TINY, **changes).model
    stack = replace(config.encoder, norm_first=norm_first, final_norm=norm_first)
    return replace(config, encoder=stack, decoder=stack)


def padded_batch(seed=0):
    ids = np.random.default_rng(seed).integers(3, TINY.vocab, (2, TINY.rows, TINY.length + 1), np.int32)
    ids[1, :, 0] = 2
    ids[0, 0, 3:] = ids[0, 1, 5:] = ids[1, 1, 4:] = ids[1, 2, 6:] = 0
    return Batch(ids[0, :, :-1], ids[1])


def twins(config, tmp_path):
    """A model of torch and ours with its weights."""
    theirs, ours = torch_model.TorchTransformer(config), mt.Transformer(config)
    torch_model.load_torch_weights(ours, theirs.state_dict(), tmp_path / "weights.pt")
    return theirs, ours


@pytest.mark.parametrize("norm_first", [True, False])
def test_converted_weights_give_the_logits_of_torch(norm_first, tmp_path, tolerance):
    theirs, ours = twins(model_config(norm_first), tmp_path)
    source, target = padded_batch()
    with torch.no_grad():
        expected = theirs(torch.tensor(source), torch.tensor(target[:, :-1])).numpy()
    found = np.array(ours(mx.array(source), mx.array(target[:, :-1])))
    assert np.abs(found - expected).max() <= tolerance(1e-4) and np.abs(expected).max() > 1


def test_weights_of_another_shape_are_refused(tmp_path):
    theirs, ours = torch_model.TorchTransformer(model_config(True)), mt.Transformer(model_config(False))
    with pytest.raises(ValueError, match="must have the shape of ours"):
        torch_model.load_torch_weights(ours, theirs.state_dict(), tmp_path / "weights.pt")


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_makes_the_updates_that_we_make(norm_first, tmp_path, tolerance):
    theirs, ours = twins(model_config(norm_first), tmp_path)
    trainers = TrainState(ours, RECIPE), torch_model.TorchTrainer(theirs, RECIPE)
    clipped = set()
    for number in range(5):
        batches = [padded_batch(number), replace(TINY, rows=2).batch]
        (loss, norm), (their_loss, their_norm) = (trainer.update(batches) for trainer in trainers)
        assert loss.item() == pytest.approx(their_loss.item(), abs=tolerance(1e-4))
        assert norm.item() == pytest.approx(their_norm.item(), rel=tolerance(1e-3))
        clipped.add(norm.item() > RECIPE.clip_norm)
    assert clipped == {True, False}


def test_torch_begins_with_weights_of_the_same_sizes(tmp_path):
    theirs, ours = twins(model_config(True, dims=128, mlp=256, vocab=500), tmp_path)
    sizes = (
        {name: array.std().item() for name, array in tree_flatten(model.trainable_parameters())}
        for model in (ours, mt.Transformer(ours.config))
    )
    assert next(sizes) == pytest.approx(next(sizes), rel=0.05)


def test_torch_drops_what_we_drop():
    config = replace(model_config(True, dropout=0.5), attention_dropout=0.25, activation_dropout=0.125)
    theirs = torch_model.TorchTransformer(config)
    rates = {name: module.p for name, module in theirs.named_modules() if isinstance(module, torch.nn.Dropout)}
    attention = [module.dropout for module in theirs.modules() if isinstance(module, torch.nn.MultiheadAttention)]
    inside = {name for name, rate in rates.items() if rate == 0.125}
    assert inside == {f"{side}.layers.{i}.dropout" for side in ("encoder", "decoder") for i in (0, 1)}
    assert {rate for name, rate in rates.items() if name not in inside} == {0.5}
    assert len(rates) == 1 + 2 * (1 + 2) + 2 * (1 + 3) and attention == [0.25] * 6


def test_torch_averages_the_weights_that_were_kept_last():
    trainer = torch_model.TorchTrainer(
        torch_model.TorchTransformer(model_config(True)), replace(RECIPE, average_checkpoints=2, keep=2)
    )
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(trainer.model.embedding.weight, value)
        trainer.keep_checkpoint()
    assert trainer.averaged_weights()["embedding.weight"].unique().tolist() == [3]


def test_padding_changes_nothing_for_mlx():
    trainer = mlx_model.MlxTrainer(mlx_model.MlxTransformer(replace(TINY, length=12).model), RECIPE)
    source, target = map(mx.array, padded_batch())
    loss = trainer._loss(source, target)
    assert trainer._loss(*(mx.pad(ids, [(0, 0), (0, 3)]) for ids in (source, target))).item() == pytest.approx(
        loss.item(), abs=1e-5
    )


@pytest.mark.parametrize("name", train.SYSTEMS)
def test_every_system_learns_its_batch(name):
    update = train.SYSTEMS[name](TINY)
    assert update(1) > update(20) + 0.05


def test_speed_is_compared_with_ours(monkeypatch):
    monkeypatch.setattr(train, "SYSTEMS", dict.fromkeys(train.SYSTEMS, lambda options: lambda count: None))
    seconds = {OURS: 2.0, MLX: 3.0, TORCH: 1.0}
    monkeypatch.setattr(
        train, "interleave_calls", lambda calls, n: {name: [Sample(seconds[name], 0.0)] for name in calls}
    )
    found = train.speed(TINY, repeats=1, updates=4)
    assert found.data["seconds"] == {OURS: 0.5, MLX: 0.75, TORCH: 0.25}
    assert [(goal.figure, goal.reached(goal.goal)) for goal in found.goals] == [(1.5, "yes"), (0.5, "no")]
    assert f"| {TORCH} | 250.00 | 84 | 0.50 |" in found.text


def test_memory_is_compared_with_ours(monkeypatch):
    peaks = {OURS: 100, MLX: 80, TORCH: 200}
    monkeypatch.setattr(train, "peak_in_subprocess", lambda name, options: peaks[name])
    assert [(goal.figure, goal.reached(goal.goal)) for goal in train.memory(TINY).goals] == [(1.25, "no"), (0.5, "yes")]


def test_weights_and_averages_do_not_count_as_memory_of_the_loss(monkeypatch):
    sizes = []

    def peak(name, options, updates):
        model = mt.Transformer(options.model)
        sizes.append(sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters())))
        return 3 * sizes[-1] + 1_500_000_000

    monkeypatch.setattr(train, "peak_in_subprocess", peak)
    monkeypatch.setattr(train, "LARGE_VOCABULARY", {"layers": 1, "vocab": 60, "rows": 2, "length": 3})
    assert [goal.figure for goal in train.loss(TINY).goals] == [pytest.approx(1.5)] * 2
    assert sizes[0] < sizes[1]


def test_a_process_of_its_own_tells_its_peak():
    large = replace(TINY, vocab=20_000)
    numbers = 20_000 * TINY.dims * 4
    assert 4 * numbers < train.peak_in_subprocess(OURS, large, updates=1) < 30 * numbers
    with pytest.raises(RuntimeError, match="mlx_transformer failed: .*num_heads must divide dims"):
        train.peak_in_subprocess(OURS, replace(TINY, heads=5))


def test_command_of_training_steps(tmp_path, pytestconfig):
    flags = [f"--{name}={value}" for name, value in vars(TINY).items() if name in ("layers", "dims", "heads", "mlp")]
    flags += ["--rows=2", "--length=4", "--vocab=50", "--part=speed", "--repeats=1", "--steps=1", "--threads=1"]
    flags += ["--device", pytestconfig.getoption("--device"), "--json", str(tmp_path / "found.json")]
    done = CliRunner().invoke(train.main, flags, catch_exceptions=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["parts"]["speed"]["seconds"]) == set(train.SYSTEMS) and found["conditions"]["vocab"] == 50
    assert done.exit_code == 0 and "speed / torch.nn.Transformer" in done.output


@pytest.fixture
def data(tmp_path):
    """Written-out dates under the names of Multi30k."""
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
    """Transformer-tiny made tinier."""
    small = {"num_layers": 1, "dims": 16, "mlp_dims": 16, "num_heads": 2, "vocab_size": 300, "max_length": 64}
    plain = multi30k.recipe
    monkeypatch.setattr(multi30k, "recipe", lambda folder, **changes: plain(folder, **small | changes))


def test_sentences_are_lower_cased_and_tokenised_but_references_are_as_they_were(data, tmp_path):
    multi30k.prepare(data, "de", tmp_path / "run")
    source, target = (tmp_path / "run" / "test.tsv").read_text().splitlines()[0].split("\t")
    reference = (tmp_path / "run" / "references.txt").read_text().splitlines()[0]
    assert source.startswith("am ") and source.endswith(" .") and source == source.lower()
    assert reference.startswith("Am ") and target == reference.lower().replace("-", " - ").replace(".", " .")


@pytest.mark.parametrize("norm_first", [True, False])
def test_both_systems_run_from_files_to_tables(norm_first, data, tmp_path, monkeypatch, tiny_recipe):
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
        done = call("train", "--system", run.name, "--output", run, *flags, *(["--norm-first"] if norm_first else []))
        assert done.exit_code == 0 and "ended by steps" in done.output
    assert len(read["ours"]) == 5
    for ours, theirs in zip(*read.values(), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(ours[0], theirs[0], strict=True))
    logs = list(map(read_log, runs))
    for field in ("loss", "token_accuracy", "bleu", "best"):
        assert [[step for step, _ in curve(log, "validation", field)] for log in logs] == [[2, 4, 5]] * 2
    assert logs[0][0]["parameters"] == logs[1][0]["parameters"]
    models = [mt.load(run / "best")[0].config for run in runs]
    assert models[0].encoder == models[1].encoder and models[0].encoder.norm_first == norm_first
    assert "tok:none" in call("evaluate", *runs).output
    told = call("report", *runs).output
    assert "| torch | torch | de |" in told and "5 of 5" in told and "ours - torch's: de" in told
    assert call("train", "--system", "ours", "--output", runs[0], *flags).exit_code == 1


@pytest.mark.parametrize("system", ["ours", "torch"])
def test_a_training_whose_time_is_up_ends_with_a_model(system, data, tmp_path, tiny_recipe):
    flags = ["--data", data, "--steps", 9, "--valid-every", 2, "--batch-tokens", 256, "--minutes", 0]
    words = ["train", "--system", system, "--output", tmp_path / "run", *flags]
    done = CliRunner().invoke(multi30k.main, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0 and "ended by minutes" in done.output
    assert read_log(tmp_path / "run")[-1]["step"] == 2
    assert 0 <= multi30k.score_run(tmp_path / "run")["bleu"] <= 100


def test_scores_are_of_the_texts(data, tmp_path, monkeypatch):
    multi30k.prepare(data, "de", tmp_path)
    pairs = [line.split("\t") for line in (tmp_path / "test.tsv").read_text().splitlines()]
    asked = []

    def generate(model, tokenizer, sources, search):
        asked.append((sources, search.beam_size))
        return [target for _, target in pairs]

    monkeypatch.setattr(mt, "load", lambda folder: (mt.Transformer(TINY.model), None))
    monkeypatch.setattr(mt, "generate", generate)
    found = multi30k.score_run(tmp_path)
    assert [found[name] for name in multi30k.METRICS] == [pytest.approx(100)] * 3
    assert asked == [([source for source, _ in pairs], 5)]


def run_of(system, bleu, norm_first=False, target="de"):
    recipe = {"norm_first": norm_first, "steps": 10, "batch_tokens": 64}
    return {"system": system, "target": target, "recipe": recipe, "bleu_tokenised": bleu}


def test_goals_compare_means_after_the_same_recipe():
    found = [run_of("ours", 39), run_of("ours", 40), run_of("torch", 40.1), run_of("ours", 30, True)]
    found += [run_of("torch", 31, True), run_of("ours", 50, target="fr")]
    goals = multi30k.goals(found)
    figures = {goal.name: goal.figure for goal in goals}
    de, pre = "de, post-norm, 10 x 64 tokens", "de, pre-norm, 10 x 64 tokens"
    assert figures == {
        f"BLEU of ours: {de}": 39.5,
        f"BLEU, ours - torch's: {de}": pytest.approx(-0.6),
        f"BLEU of ours: {pre}": 30,
        f"BLEU, ours - torch's: {pre}": -1,
    }
    assert multi30k.goals([run_of("ours", 39.7), run_of("torch", 40)])[1].reached(-multi30k.MAX_BLEU_DEFICIT) == "yes"
    assert goals[0].reached(goals[0].aim) == "yes" and goals[1].reached(goals[1].goal) == "no"


def test_table_of_curves_has_some_of_the_steps_and_the_ends():
    log = [{"event": "validation", "step": step, "loss": step / 8, "bleu": step} for step in range(8, 808, 8)]
    lines = multi30k.curves_table({"a": log, "b": log[:-1]}).splitlines()
    assert lines[0] == "| step | a, loss | a, bleu | b, loss | b, bleu |" and len(lines) == 2 + multi30k.TABLE_ROWS
    assert lines[2] == "| 8 | 1.000 | 8.000 | 1.000 | 8.000 |" and lines[-1] == "| 800 | 100.000 | 800.000 | - | - |"
