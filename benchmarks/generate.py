"""Speed of generation: compared with transformers, CTranslate2 and mlx-examples, over a file, and costs of a step.

    python -m benchmarks.generate --corpus SENTENCES --mlx-examples FOLDER [--part throughput] [--json FILE]

On Linux install OpenBLAS (see docs/performance.md). Run it on an idle machine: calls during which other programs use
more than 10 % of the CPU time are discarded.
"""

import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import click

from benchmarks import random_weights, trained_model
from benchmarks.conditions import conditions, environment
from benchmarks.measure import Goal, Result, goals_table, set_device, set_threads
from benchmarks.random_weights import SOURCE_LENGTH, TOKENS, Options
from benchmarks.shapes import SHAPES
from mlx_transformer.config.model import DTYPE_NAMES

RANDOM_WEIGHT_PARTS: dict[str, Callable[[str, Options], Result]] = {
    "throughput": random_weights.throughput,
    "growth": random_weights.growth,
    "kernels": random_weights.kernels_per_step,
    "syncs": random_weights.host_reads,
}
PARTS = ("throughput", "growth", "file", "kernels", "syncs", "shapes", "start")
BEAMS = (1, 4)
SETTINGS = [(1, 1), (1, 16), (4, 1), (4, 8)]
PEER_PACKAGES = ("torch", "transformers", "ctranslate2")


def parse_integers(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """Parse comma-separated integers."""
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(f"{text!r} must be comma-separated integers, such as 1,16.") from None


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Repeatable; default: all."
)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=("marian", "t5"))
@click.option("--mlx-examples", "examples", type=click.Path(file_okay=False), help="The folder t5 of mlx-examples.")
@click.option("--corpus", type=click.Path(dir_okay=False, exists=True), help="Sentences, one per line, plain or gzip.")
@click.option(
    "--sentences",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    help="Number of sentences of the corpus to use.",
)
@click.option("--model", help="A trained model; default: the bundled one.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=TOKENS, show_default=True, help="New tokens of each output.")
@click.option("--batches", callback=parse_integers, help="Batch sizes such as 1,16,64, each with beam sizes 1 and 4.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of each system.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), default="float32", show_default=True)
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, writable=True), help="Also write all figures to this file."
)
def main(
    parts: tuple[str, ...],
    shapes: tuple[str, ...],
    examples: str | None,
    corpus: str | None,
    sentences: int,
    model: str | None,
    repeats: int,
    tokens: int,
    batches: list[int],
    threads: int,
    device: str,
    dtype: str,
    file: str | None,
) -> None:
    """Measure generation: all parts, or those of --part."""
    set_device(device)
    set_threads(threads)
    conditions_shown = {
        "threads": threads,
        "dtype": dtype,
        "repeats": repeats,
        "source": SOURCE_LENGTH,
        "tokens": tokens,
    }
    conditions_shown |= peer_versions()
    print(conditions(**conditions_shown), flush=True)
    data: dict[str, object] = {}
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = list(product(BEAMS, batches)) if batches else SETTINGS
        folder = Path(examples) if examples else None
        options = Options(Path(scratch), folder, dtype, device, threads, repeats, settings, tokens)
        lines = trained_model.read_lines(Path(corpus), sentences) if corpus else None
        for title, result in run_parts(parts, shapes, options, model, lines):
            print(f"\n## {title}\n\n{result.text}", flush=True)
            data[title] = result.data
            goals += result.goals
    print(f"\n## Goals\n\n{goals_table(goals)}")
    if file:
        goal_entries = [goal._asdict() | {"reached": goal.reached(goal.goal)} for goal in goals]
        Path(file).write_text(
            json.dumps({"conditions": environment() | conditions_shown, "parts": data, "goals": goal_entries}, indent=1)
        )


def run_parts(
    parts: tuple[str, ...], shapes: tuple[str, ...], options: Options, model: str | None, lines: list[str] | None
) -> Iterator[tuple[str, Result]]:
    """Yield the title and the result of each part as it finishes."""
    dtype = None if options.dtype == "float32" and options.device == "cpu" else options.dtype
    sentences = lines or trained_model.simple_sentences()
    origin = "sentences of the corpus" if lines else "built-in sentences, as --corpus is not set"
    for part in parts:
        if part in RANDOM_WEIGHT_PARTS:
            for name in shapes:
                yield f"{part}, {name} shape", try_part(RANDOM_WEIGHT_PARTS[part], name, options)
        elif part == "file":
            yield (
                f"file, {origin}",
                try_part(trained_model.file_throughput, model, dtype, sentences, options.repeats),
            )
        elif part == "shapes":
            count = min(200, len(sentences))
            yield f"shapes, {origin}", try_part(trained_model.file_traces, model, dtype, sentences, count)
        else:
            yield "start", try_part(trained_model.startup, model)


def try_part(part: Callable[..., Result], *arguments: object) -> Result:
    """Run a part; if it fails, return the error as its result, so that the other parts still run."""
    try:
        return part(*arguments)
    except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        return Result(f"- Not measured: {error}\n", [], None)


def peer_versions() -> dict[str, str]:
    """Return the version of each peer, or "absent"."""
    versions = {}
    for name in PEER_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


if __name__ == "__main__":
    main()
