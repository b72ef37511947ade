"""How fast texts are generated: beside transformers, CTranslate2 and mlx-examples, over a file, and what a step costs.

    python -m benchmarks.generate --corpus SENTENCES --mlx-examples FOLDER [--part throughput] [--json FILE]

On Linux preload OpenBLAS (see the README). Times mean something only on a machine that does nothing else: each call is
measured together with what other programs took meanwhile, and is discarded where that was more than a tenth.
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
from benchmarks.conditions import conditions, facts
from benchmarks.measure import Goal, goals_table, set_device, set_threads
from benchmarks.random_weights import SOURCE_LENGTH, TOKENS, Options, Result
from benchmarks.shapes import SHAPES
from mlx_transformer.config.model import DTYPE_NAMES

RANDOM: dict[str, Callable[[str, Options], Result]] = {
    "throughput": random_weights.throughput,
    "growth": random_weights.growth,
    "kernels": random_weights.count_kernels,
    "syncs": random_weights.reads,
}
PARTS = ("throughput", "growth", "file", "kernels", "syncs", "shapes", "start")
BEAMS = (1, 4)
SETTINGS = [(1, 1), (1, 16), (4, 1), (4, 8)]
PEERS = ("torch", "transformers", "ctranslate2")


def numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """Whole numbers between commas."""
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(f"{text!r} must be whole numbers between commas, such as 1,16.") from None


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Repeatable; default all."
)
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=("marian", "t5"))
@click.option("--mlx-examples", "examples", type=click.Path(file_okay=False), help="The folder t5 of mlx-examples.")
@click.option("--corpus", type=click.Path(dir_okay=False, exists=True), help="Sentences, one a line, plain or .gz.")
@click.option("--sentences", type=click.IntRange(2), default=1000, show_default=True, help="Of the corpus.")
@click.option("--model", help="A trained model; the bundled one if left out.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=TOKENS, show_default=True, help="New tokens of an output.")
@click.option("--batches", callback=numbers, help="Such as 1,16,64: each of them with beams 1 and 4.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of each system.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), default="float32", show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), help="Write all figures there too.")
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
    """Measure generation: all parts, or those asked for."""
    set_device(device)
    set_threads(threads)
    known = {"threads": threads, "dtype": dtype, "repeats": repeats, "source": SOURCE_LENGTH, "tokens": tokens}
    known |= versions()
    print(conditions(**known), flush=True)
    found: dict[str, object] = {}
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = list(product(BEAMS, batches)) if batches else SETTINGS
        folder = Path(examples) if examples else None
        options = Options(Path(scratch), folder, dtype, device, threads, repeats, settings, tokens)
        lines = trained_model.read_lines(Path(corpus), sentences) if corpus else None
        for title, result in results(parts, shapes, options, model, lines):
            print(f"\n## {title}\n\n{result.text}", flush=True)
            found[title] = result.data
            goals += result.goals
    print(f"\n## Goals\n\n{goals_table(goals)}")
    if file:
        told = [goal._asdict() | {"reached": goal.reached(goal.goal)} for goal in goals]
        Path(file).write_text(json.dumps({"conditions": facts() | known, "parts": found, "goals": told}, indent=1))


def results(
    parts: tuple[str, ...], shapes: tuple[str, ...], options: Options, model: str | None, lines: list[str] | None
) -> Iterator[tuple[str, Result]]:
    """Each part with its title, as it is measured."""
    dtype = None if options.dtype == "float32" and options.device == "cpu" else options.dtype
    sentences = lines or trained_model.own_sentences()
    whose = "of the corpus" if lines else "our own simple ones, for there is no --corpus"
    for part in parts:
        if part in RANDOM:
            for name in shapes:
                yield f"{part}, {name} shape", attempt(RANDOM[part], name, options)
        elif part == "file":
            found = attempt(trained_model.whole_file, model, dtype, sentences, options.repeats)
            yield f"file, sentences {whose}", found
        elif part == "shapes":
            found = attempt(trained_model.traces, model, dtype, sentences, min(200, len(sentences)))
            yield f"shapes, sentences {whose}", found
        else:
            yield "start", attempt(trained_model.start, model)


def attempt(part: Callable[..., Result], *arguments: object) -> Result:
    """What a part finds, or why it could not be measured: the others still can."""
    try:
        return part(*arguments)
    except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        return Result(f"- Could not be measured: {error}\n", [], None)


def versions() -> dict[str, str]:
    """The versions of the peers that are there."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


if __name__ == "__main__":
    main()
