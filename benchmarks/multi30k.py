"""How good translations are after training on Multi30k: ours beside torch's layers, same shape, batches and recipe.

    python -m benchmarks.multi30k train --system ours --output RUN     and --system torch with another RUN
    python -m benchmarks.multi30k evaluate RUN...
    python -m benchmarks.multi30k report RUN... --picture curves.png

Shape and recipe are those of Transformer-tiny (Wu et al. 2021, "Good for Misconceived Reasons"), of which about 41 BLEU
is reported for German: lower-cased and tokenised, beam 5, the last 10 checkpoints averaged.
"""

import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

import mlx_transformer as mt
from benchmarks.conditions import conditions, facts
from benchmarks.measure import Goal, goals_table, set_device, table
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.plotting.learning_curves import Log, best_point, curve, read_log, run_names

SPLITS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
BEAM_SIZE = 5
BELOW = 0.5  # BLEU that ours may be worse than torch's
AIMS = {"de": 38.0}  # BLEU, tokenised
ROWS = 10  # of the table of curves
NONE = float("nan")
Report = Callable[[dict[str, Any]], None]
# Against tokenised references as the paper has it, and against the references as they are.
METRICS = {
    "bleu_tokenised": ("tokenised", BLEU(tokenize="none", force=True)),
    "bleu": ("references", BLEU(lowercase=True, force=True)),
    "chrf": ("references", CHRF(lowercase=True)),
}


class TimeIsUp(Exception):
    """A training has come to the validation after which it was to end."""


def recipe(folder: Path, **changes: Any) -> TrainingConfig:
    """Transformer-tiny on the files that `prepare` wrote into a folder."""
    plain = TrainingConfig(
        train=(str(folder / "train.tsv"),),
        valid=(str(folder / "valid.tsv"),),
        output=str(folder),
        num_layers=4,
        dims=128,
        mlp_dims=256,
        num_heads=4,
        norm_first=False,
        vocab_size=10_000,
        learning_rate=5e-3,
        warmup_steps=2000,
        dropout=0.3,
        ema_decay=0.0,
        average_checkpoints=10,
        keep=10,
        best_by="bleu",
    )
    return replace(plain, **changes)


def prepare(data: Path, target: str, folder: Path) -> None:
    """Write each split as lower-cased and tokenised pairs, and the references of the test as they are."""
    tokenise = Tokenizer13a()
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        sources, targets = (read_lines(data / f"{name}.{language}.gz") for language in ("en", target))
        pairs = zip(sources, targets, strict=True)
        lines = ["\t".join(tokenise(text.lower()) for text in pair) + "\n" for pair in pairs]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "references.txt").write_text("".join(f"{text}\n" for text in targets), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """The lines of a file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.strip() for line in file]


@click.group()
def main() -> None:
    """Train on Multi30k, evaluate, report."""


device_option = click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)


@main.command()
@click.option("--system", type=click.Choice(["ours", "torch"]), required=True)
@click.option("--target", type=click.Choice(["de", "fr"]), default="de", show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="A folder for the run.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default="../shared/data/multi30k",
    show_default=True,
)
@device_option
@click.option("--steps", type=click.IntRange(1), default=8000, show_default=True)
@click.option("--minutes", type=float, default=float("inf"), help="End with the first validation after so many.")
@click.option("--batch-tokens", type=click.IntRange(256), default=4096, show_default=True)
@click.option("--valid-every", type=click.IntRange(1), default=200, show_default=True, help="And keep a checkpoint.")
@click.option("--bleu-sentences", type=click.IntRange(1), default=500, show_default=True, help="Of the validation.")
@click.option("--norm-first", is_flag=True, help="Pre-norm; the paper's is post-norm.")
@click.option("--seed", type=int, default=0, show_default=True)
def train(system: str, target: str, output: Path, data: Path, device: str, minutes: float, **changes: Any) -> None:
    """Train one of the systems; RUN/best is its model, converted to ours if it is torch's."""
    os.environ["MLX_ENABLE_TF32"] = "0"  # as torch: products of float32 are exact
    set_device(device)
    if (output / "log.jsonl").exists():
        raise click.ClickException(f"{output} holds a run already: choose another folder.")
    print(conditions(trained=system, target=target, **changes), flush=True)
    prepare(data, target, output)
    config = recipe(output, **changes)
    about = {"system": system, "target": target, "recipe": changes, "conditions": facts(), "minutes": None}
    write_json(output / "about.json", about)
    started, ended = time.monotonic(), "steps"
    try:
        if system == "ours":
            mt.train(config, reporter(minutes))
        else:
            import torch

            from benchmarks import torch_model
            from benchmarks.peers import torch_device

            torch_model.train(config, torch_device(torch, device), reporter(minutes))
    except TimeIsUp:
        ended = "minutes"
    about["minutes"] = (time.monotonic() - started) / 60
    write_json(output / "about.json", about)
    print(f"{output}: ended by {ended} after {about['minutes']:.1f} minutes.", flush=True)


def reporter(minutes: float) -> Report:
    """Prints what a log says, and ends the training at the first validation after so many minutes."""
    end = time.monotonic() + 60 * minutes

    def report(entry: dict[str, Any]) -> None:
        told = {name: entry[name] for name in ("loss", "token_accuracy", "bleu", "chrf", "best") if name in entry}
        shown = (f"{name} {value:.4g}" for name, value in told.items())
        print(entry["event"], entry["step"], *shown, flush=True)
        if entry["event"] == "validation" and time.monotonic() > end:
            raise TimeIsUp

    return report


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False, exists=True, path_type=Path))
@device_option
def evaluate(runs: Sequence[Path], device: str) -> None:
    """Translate the test set of runs with a beam of 5, and write RUN/test.txt and RUN/scores.json."""
    set_device(device)
    for run in runs:
        print(run, json.dumps(scores(run)), flush=True)


def scores(run: Path) -> dict[str, Any]:
    """BLEU and chrF of a run's best model on the test set, with sacrebleu's signatures."""
    model, tokenizer = mt.load(run / "best")
    pairs = [line.split("\t") for line in (run / "test.tsv").read_text(encoding="utf-8").splitlines()]
    references = {
        "tokenised": [reference for _, reference in pairs],
        "references": (run / "references.txt").read_text(encoding="utf-8").splitlines(),
    }
    search = replace(model.search_defaults, beam_size=BEAM_SIZE)
    hypotheses = mt.generate(model, tokenizer, [source for source, _ in pairs], search)
    (run / "test.txt").write_text("".join(f"{text}\n" for text in hypotheses), encoding="utf-8")
    found: dict[str, Any] = {
        name: metric.corpus_score(hypotheses, [references[kind]]).score for name, (kind, metric) in METRICS.items()
    }
    found["signatures"] = [f"{name}: {metric.get_signature()}" for name, (_, metric) in METRICS.items()]
    write_json(run / "scores.json", found)
    return found


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw learning curves there.")
def report(runs: Sequence[Path], picture: Path | None) -> None:
    """Print tables of runs that were evaluated, and the goals; draw learning curves."""
    found = {name: read_json(run / "about.json") | read_json(run / "scores.json") for name, run in named(runs)}
    logs = {name: read_log(run) for name, run in named(runs)}
    print(results_table(found, logs))
    print(*dict.fromkeys(text for each in found.values() for text in each.get("signatures", [])), sep="\n")
    print(f"\n{curves_table(logs)}\n{goals_table(goals(list(found.values())))}")
    if picture:
        from mlx_transformer.plotting.figures import save
        from mlx_transformer.plotting.learning_curves import learning_curves

        save(learning_curves(runs), picture)


def named(runs: Sequence[Path]) -> list[tuple[str, Path]]:
    """Runs with what to call them."""
    return list(zip(run_names(runs), runs, strict=True))


def results_table(found: dict[str, dict[str, Any]], logs: dict[str, Log]) -> str:
    """What each run came to."""
    rows = []
    for name, each in found.items():
        start = next(entry for entry in logs[name] if entry["event"] == "start")
        step, loss = best_point(logs[name], "loss") or (0, NONE)
        figures = [f"{each.get(metric, NONE):.2f}" for metric in METRICS]
        steps = f"{logs[name][-1]['step']} of {start['steps']}"
        known = [name, each["system"], each["target"], start["parameters"], steps, f"{each['minutes'] or NONE:.1f}"]
        rows.append([*known, step, f"{loss:.3f}", *figures])
    header = ["run", "system", "target", "parameters", "updates", "minutes", "best at", "its validation loss"]
    return table([*header, "BLEU, tokenised", "BLEU", "chrF"], rows)


def curves_table(logs: dict[str, Log]) -> str:
    """Validation loss and BLEU of each run, at some of the steps."""
    fields = [(name, field) for name in logs for field in ("loss", "bleu")]
    curves = {f"{name}, {field}": dict(curve(logs[name], "validation", field)) for name, field in fields}
    steps = sorted(set().union(*curves.values()))
    chosen = sorted({steps[(len(steps) - 1) * i // (ROWS - 1)] for i in range(ROWS)})
    rows = [[step, *(f"{each[step]:.3f}" if step in each else "-" for each in curves.values())] for step in chosen]
    return table(["step", *curves], rows)


def goals(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """Ours is good, and not below torch after the same recipe by more than is allowed; of several seeds the mean."""
    bleu: dict[str, dict[str, list[float]]] = {}
    for each in found:
        asked = each["recipe"]
        norm = "pre-norm" if asked["norm_first"] else "post-norm"
        told = f"{each['target']}, {norm}, {asked['steps']} x {asked['batch_tokens']} tokens"
        bleu.setdefault(told, {}).setdefault(each["system"], []).append(each.get("bleu_tokenised", NONE))
    goals = []
    for told, scored in bleu.items():
        means = {system: mean(each) for system, each in scored.items()}
        if "ours" in means and (aim := AIMS.get(told[:2])):
            goals.append(Goal(f"BLEU of ours: {told}", means["ours"], None, aim))
        if len(means) == 2:
            goals.append(Goal(f"BLEU, ours - torch's: {told}", means["ours"] - means["torch"], -BELOW, 0.0))
    return goals


def read_json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data."""
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
