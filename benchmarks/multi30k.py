"""Translation quality after training on Multi30k, compared with torch's layers: same shape, batches and recipe.

    python -m benchmarks.multi30k train --system ours --output RUN     and --system torch with another RUN
    python -m benchmarks.multi30k evaluate RUN...
    python -m benchmarks.multi30k report RUN... --picture curves.png

Shape and recipe are those of Transformer-tiny (Wu et al. 2021, "Good for Misconceived Reasons"), which reports about
41 BLEU for German: lower-cased and tokenised, beam 5, average of the last 10 checkpoints.
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
from benchmarks.conditions import conditions, environment
from benchmarks.measure import Goal, goals_table, markdown_table, set_device
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.plotting.learning_curves import Log, best_point, curve, read_log, run_names

SPLITS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
BEAM_SIZE = 5
MAX_BLEU_DEFICIT = 0.5  # BLEU by which ours may be below torch
BLEU_AIMS = {"de": 38.0}  # BLEU, tokenised
TABLE_ROWS = 10  # rows of the table of learning curves
MISSING = float("nan")
LogReporter = Callable[[dict[str, Any]], None]
# Name -> references and metric; the paper uses tokenised references.
METRICS = {
    "bleu_tokenised": ("tokenised", BLEU(tokenize="none", force=True)),
    "bleu": ("references", BLEU(lowercase=True, force=True)),
    "chrf": ("references", CHRF(lowercase=True)),
}


class TimeLimitReached(Exception):
    """Ends a training at the first validation after its time limit."""


def recipe(folder: Path, **changes: Any) -> TrainingConfig:
    """Return the recipe of Transformer-tiny for the files that `prepare` wrote into a folder."""
    defaults = TrainingConfig(
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
    return replace(defaults, **changes)


def prepare(data: Path, target: str, folder: Path) -> None:
    """Write each split as lower-cased and tokenised pairs, and the unchanged references of the test set."""
    tokenise = Tokenizer13a()
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        sources, targets = (read_lines(data / f"{name}.{language}.gz") for language in ("en", target))
        pairs = zip(sources, targets, strict=True)
        lines = ["\t".join(tokenise(text.lower()) for text in pair) + "\n" for pair in pairs]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "references.txt").write_text("".join(f"{text}\n" for text in targets), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a gzip file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.strip() for line in file]


@click.group()
def main() -> None:
    """Train on Multi30k, evaluate and report."""


device_option = click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)


@main.command()
@click.option("--system", type=click.Choice(["ours", "torch"]), required=True)
@click.option("--target", type=click.Choice(["de", "fr"]), default="de", show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default="../shared/data/multi30k",
    show_default=True,
)
@device_option
@click.option("--steps", type=click.IntRange(1), default=8000, show_default=True)
@click.option("--minutes", type=float, default=float("inf"), help="Time limit; training ends at the next validation.")
@click.option("--batch-tokens", type=click.IntRange(256), default=4096, show_default=True)
@click.option(
    "--valid-every",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Steps between validations and checkpoints.",
)
@click.option(
    "--bleu-sentences",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Validation sentences to translate for BLEU.",
)
@click.option("--norm-first", is_flag=True, help="Use pre-norm; the paper uses post-norm.")
@click.option("--seed", type=int, default=0, show_default=True)
def train(system: str, target: str, output: Path, data: Path, device: str, minutes: float, **changes: Any) -> None:
    """Train one of the systems; RUN/best holds its model, in the format of mlx_transformer for torch too."""
    os.environ["MLX_ENABLE_TF32"] = "0"  # full float32 precision, as in torch
    set_device(device)
    if (output / "log.jsonl").exists():
        raise click.ClickException(f"--output must not hold a run: {output} does. Choose another folder.")
    print(conditions(trained=system, target=target, **changes), flush=True)
    prepare(data, target, output)
    config = recipe(output, **changes)
    description = {"system": system, "target": target, "recipe": changes, "conditions": environment(), "minutes": None}
    write_json(output / "about.json", description)
    started, ended = time.monotonic(), "steps"
    try:
        if system == "ours":
            mt.train(config, reporter(minutes))
        else:
            import torch

            from benchmarks import torch_model
            from benchmarks.peers import torch_device

            torch_model.train(config, torch_device(torch, device), reporter(minutes))
    except TimeLimitReached:
        ended = "minutes"
    description["minutes"] = (time.monotonic() - started) / 60
    write_json(output / "about.json", description)
    print(f"{output}: ended by {ended} after {description['minutes']:.1f} minutes.", flush=True)


def reporter(minutes: float) -> LogReporter:
    """Return a function that prints log entries and ends the training after a number of minutes."""
    end = time.monotonic() + 60 * minutes

    def report(entry: dict[str, Any]) -> None:
        values = {name: entry[name] for name in ("loss", "token_accuracy", "bleu", "chrf", "best") if name in entry}
        print(entry["event"], entry["step"], *(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
        if entry["event"] == "validation" and time.monotonic() > end:
            raise TimeLimitReached

    return report


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False, exists=True, path_type=Path))
@device_option
def evaluate(runs: Sequence[Path], device: str) -> None:
    """Translate the test set with the model of each RUN at beam size 5; write RUN/test.txt and RUN/scores.json."""
    set_device(device)
    for run in runs:
        print(run, json.dumps(score_run(run)), flush=True)


def score_run(run: Path) -> dict[str, Any]:
    """Return BLEU and chrF of a run's best model on the test set, with sacrebleu's signatures."""
    model, tokenizer = mt.load(run / "best", dtype="float32")
    pairs = [line.split("\t") for line in (run / "test.tsv").read_text(encoding="utf-8").splitlines()]
    references = {
        "tokenised": [reference for _, reference in pairs],
        "references": (run / "references.txt").read_text(encoding="utf-8").splitlines(),
    }
    search = replace(model.search_defaults, beam_size=BEAM_SIZE)
    hypotheses = mt.generate(model, tokenizer, [source for source, _ in pairs], search)
    (run / "test.txt").write_text("".join(f"{text}\n" for text in hypotheses), encoding="utf-8")
    results: dict[str, Any] = {
        name: metric.corpus_score(hypotheses, [references[kind]]).score for name, (kind, metric) in METRICS.items()
    }
    results["signatures"] = [f"{name}: {metric.get_signature()}" for name, (_, metric) in METRICS.items()]
    write_json(run / "scores.json", results)
    return results


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also save the learning curves to this file."
)
def report(runs: Sequence[Path], picture: Path | None) -> None:
    """Print tables and goals of evaluated runs; draw learning curves."""
    results = {name: read_json(run / "about.json") | read_json(run / "scores.json") for name, run in named_runs(runs)}
    logs = {name: read_log(run) for name, run in named_runs(runs)}
    print(results_table(results, logs))
    print(*dict.fromkeys(text for result in results.values() for text in result.get("signatures", [])), sep="\n")
    print(f"\n{curves_table(logs)}\n{goals_table(goals(list(results.values())))}")
    if picture:
        from mlx_transformer.plotting.figures import save
        from mlx_transformer.plotting.learning_curves import plot_learning_curves

        save(plot_learning_curves(runs), picture)


def named_runs(runs: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return runs with short unique names."""
    return list(zip(run_names(runs), runs, strict=True))


def results_table(results: dict[str, dict[str, Any]], logs: dict[str, Log]) -> str:
    """Format the final results of each run."""
    rows = []
    for name, result in results.items():
        start = next(entry for entry in logs[name] if entry["event"] == "start")
        step, loss = best_point(logs[name], "loss") or (0, MISSING)
        figures = [f"{result.get(metric, MISSING):.2f}" for metric in METRICS]
        steps = f"{logs[name][-1]['step']} of {start['steps']}"
        minutes = f"{result['minutes'] or MISSING:.1f}"
        run = [name, result["system"], result["target"], start["parameters"], steps, minutes]
        rows.append([*run, step, f"{loss:.3f}", *figures])
    header = ["run", "system", "target", "parameters", "updates", "minutes", "best at", "validation loss"]
    return markdown_table([*header, "BLEU, tokenised", "BLEU", "chrF"], rows)


def curves_table(logs: dict[str, Log]) -> str:
    """Format validation loss and BLEU of each run at evenly spaced validations."""
    fields = [(name, field) for name in logs for field in ("loss", "bleu")]
    curves = {f"{name}, {field}": dict(curve(logs[name], "validation", field)) for name, field in fields}
    steps = sorted(set().union(*curves.values()))
    chosen = sorted({steps[(len(steps) - 1) * i // (TABLE_ROWS - 1)] for i in range(TABLE_ROWS)})
    rows = [[step, *(f"{line[step]:.3f}" if step in line else "-" for line in curves.values())] for step in chosen]
    return markdown_table(["step", *curves], rows)


def goals(results: Sequence[dict[str, Any]]) -> list[Goal]:
    """Return goals for our BLEU and for its difference to torch's after the same recipe; seeds are averaged."""
    bleu: dict[str, dict[str, list[float]]] = {}
    for result in results:
        recipe_changes = result["recipe"]
        norm = "pre-norm" if recipe_changes["norm_first"] else "post-norm"
        setting = f"{result['target']}, {norm}, {recipe_changes['steps']} x {recipe_changes['batch_tokens']} tokens"
        bleu.setdefault(setting, {}).setdefault(result["system"], []).append(result.get("bleu_tokenised", MISSING))
    goals = []
    for setting, by_system in bleu.items():
        means = {system: mean(scores) for system, scores in by_system.items()}
        if "ours" in means and (aim := BLEU_AIMS.get(setting[:2])):
            goals.append(Goal(f"BLEU of ours: {setting}", means["ours"], None, aim))
        if len(means) == 2:
            goals.append(
                Goal(f"BLEU, ours - torch's: {setting}", means["ours"] - means["torch"], -MAX_BLEU_DEFICIT, 0.0)
            )
    return goals


def read_json(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, or an empty dict if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON."""
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
