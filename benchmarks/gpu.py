"""One command to measure a GPU in limited time: tests, generation and training beside torch, and a decode step.

    python -m benchmarks.gpu [--minutes 8] [--json gpu.json] [--kernel-cache FOLDER]

It needs a checkout with `pip install '.[dev,benchmark]'`, MLX for the GPU and torch for CUDA, and no network. The file
has what is measured after each setting, so that an interruption loses nothing. It has neither paths nor host names.
Without a GPU it measures tiny sizes on the CPU, and says so.
"""

import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks import train
from benchmarks.generate import peer_versions
from benchmarks.kernels import count_kernels, count_step_kernels, longest_chain, simulate_gpu_kernels
from benchmarks.measure import markdown_table, table_row
from benchmarks.peers import Ours, System, Transformers
from benchmarks.random_weights import SOURCE_LENGTH, compare_systems, describe_setting
from benchmarks.shapes import SHAPES, random_sources, write_checkpoint
from benchmarks.steps import profile_steps
from benchmarks.unattended import (
    STOP_SECONDS,
    machine_facts,
    print_now,
    run_for,
    run_tests,
    try_measurement,
)
from mlx_transformer.cli.streams import prepare_temporary_folder
from mlx_transformer.storage.atomic import atomic_write_text
from mlx_transformer.storage.kernel_cache import temporary_folder

# Part -> its share of the time; what a part leaves goes to the next one.
SHARES = {"tests": 0.15, "generation": 0.4, "training": 0.15, "decode step": 0.1, "corpus": 0.2}
TESTS = {
    "model": ("transformer", "kv_cache", "fused_projections", "parts"),
    "decoding": ("beam_search",),
    "training": ("train_state", "losses", "optimizers"),
}
SETTINGS = [(4, 1), (1, 1), (1, 16), (4, 16), (1, 64), (4, 64)]  # beams and batch, the most important first
HALF_PRECISION = {"marian": "float16", "t5": "bfloat16"}  # T5 exceeds the range of float16
BASE = {"layers": 6, "dims": 512, "heads": 8, "mlp": 2048, "vocab": 32_000, "rows": 128, "length": 32}
TINY = {"layers": 1, "dims": 16, "heads": 2, "mlp": 16, "vocab": 50, "rows": 2, "length": 4}
CPU_NOTE = "On the CPU: tiny sizes, which only show that the command works."
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure.

    Attributes:
        shapes: Names of shapes.
        tokens: New tokens of each output.
        repeats: Calls of each system for each figure.
        training: Names of training shapes and the sizes that differ from `train.Options`.
        updates: Training updates of each call.
    """

    shapes: tuple[str, ...] = ("marian", "t5")
    tokens: int = 32
    repeats: int = 5
    training: dict[str, dict[str, int]] = field(default_factory=lambda: {"base": BASE, "small": {}})
    updates: int = 4


TINY_SIZES = Sizes(("marian-tiny", "t5-tiny"), 12, 1, {"tiny": TINY}, 1)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: Its name in `SHARES`.
        columns: The figures of the table on standard output; the file has all.
        settings: Setting -> a function that gets the seconds left for it and returns rows of figures.
        note: What to know about the figures, or why there are none.
    """

    name: str
    columns: tuple[str, ...]
    settings: dict[str, Callable[[float], list[Row]]]
    note: str = ""


class Interruption(BaseException):
    """The time is over, or the process was told to end; the argument is the signal."""


class Report:
    """The results so far, in a file that is complete at any time."""

    def __init__(self, file: Path, facts: dict[str, Any]) -> None:
        self.file, self.results = file, facts | {"state": "running", "parts": {}}
        self.write()

    def write(self) -> None:
        """Replace the file."""
        atomic_write_text(self.file, json.dumps(self.results, indent=1) + "\n")

    def finish(self, state: str) -> None:
        """Say in the file and on standard output how the benchmark ended."""
        self.results["state"] = state
        self.write()
        print_now(f"\nEnd: {state}.")

    def run(self, part: Part, ends: float) -> None:
        """Measure the settings of a part until a time of `time.monotonic`; skip the others."""
        entry = self.results["parts"][part.name] = {"note": part.note, "measured": [], "skipped": []}
        print_now(f"\n## {part.name}\n" + (f"\n{part.note}\n" if part.note else ""))
        if part.settings:
            print_now(markdown_table(["setting", *part.columns], []).rstrip())
        for number, (setting, measure) in enumerate(part.settings.items()):
            started = time.monotonic()
            if started >= ends:
                entry["skipped"].append(setting)
                continue
            result = try_measurement(measure, (ends - started) / (len(part.settings) - number))
            seconds = round(time.monotonic() - started, 1)
            row = {"setting": setting, "seconds": seconds}
            entry["measured"].append(row | ({"rows": result} if isinstance(result, list) else result))
            self.write()
            for line in result_lines(part, setting, result):
                print_now(line)
            mx.clear_cache()
        if entry["skipped"]:
            print_now(f"\nSkipped, as no time was left: {'; '.join(entry['skipped'])}.")
        self.write()


def result_lines(part: Part, setting: str, result: Any) -> list[str]:
    """Return the lines of the table for the rows of a setting or its error."""
    if "error" in result:
        return [table_row([setting, result["error"].replace("\n", " ")])]
    return [table_row([setting, *(format_figure(row.get(name)) for name in part.columns)]) for row in result]


def format_figure(value: object) -> str:
    """Format a figure of a table."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "-" if value in (None, "") else str(value)


def variants(sizes: Sizes) -> list[tuple[str, str]]:
    """Return pairs of a shape's name and a dtype, float32 first, then the half precision of the family."""
    halves = [(name, HALF_PRECISION[SHAPES[name].family]) for name in sizes.shapes]
    return [(name, "float32") for name in sizes.shapes] + halves


def tests_part(device: str) -> Part:
    """Return the part that runs tests of model, search and training."""

    def measure(folder: str, seconds: float) -> list[Row]:
        paths = [f"tests/{folder}/test_{name}.py" for name in TESTS[folder]]
        return [run_tests(device, [*paths, "-m", "not slow"], seconds)]

    return Part("tests", ("result", "failed"), {folder: functools.partial(measure, folder) for folder in TESTS})


def generation_part(sizes: Sizes, scratch: Path, device: str, threads: int) -> Part:
    """Return the part that measures generation beside transformers."""

    @functools.cache
    def systems(name: str, dtype: str) -> list[System]:
        shape, folder = SHAPES[name], checkpoint(scratch, name)
        loaded: list[System] = [Ours(shape, folder, dtype)]
        with suppress(ImportError):  # then ours is measured alone, and the versions say "absent"
            loaded.append(Transformers(shape, folder, dtype, device, threads))
        return loaded

    def measure(name: str, dtype: str, beams: int, batch: int, seconds: float) -> list[Row]:
        source = random_sources(SHAPES[name], batch, SOURCE_LENGTH)
        return compare_systems(systems(name, dtype), source, beams, sizes.tokens, sizes.repeats)[0]

    settings = {
        f"{name}, {dtype}, {describe_setting(beams, batch)}": functools.partial(measure, name, dtype, beams, batch)
        for beams, batch in SETTINGS
        for name, dtype in variants(sizes)
    }
    columns = ("system", "tokens_per_second", "ours_over_it", "same_tokens", "same_sequences")
    return Part("generation", columns, settings, "In float32, a ratio needs the same tokens.")


def checkpoint(scratch: Path, name: str) -> Path:
    """Return the folder of a shape's checkpoint, which is written at the first call."""
    folder = scratch / name
    if not folder.exists():
        write_checkpoint(SHAPES[name], folder)
    return folder


def training_part(sizes: Sizes, options: train.Options) -> Part:
    """Return the part that measures training updates beside torch."""

    def measure(shape: dict[str, int], dtype: str, seconds: float) -> list[Row]:
        changed = replace(options, compute_dtype=dtype, **shape)
        results = train.speed(changed, sizes.repeats, sizes.updates, (train.OURS, train.TORCH)).data["seconds"]
        tokens = changed.rows * changed.length
        return [
            {
                "system": name,
                "ms": 1e3 * taken,
                "target_tokens_per_second": tokens / taken,
                "ours_over_it": taken / results[train.OURS],
            }
            for name, taken in results.items()
        ]

    settings = {
        f"{name}, {dtype}": functools.partial(measure, shape, dtype)
        for name, shape in sizes.training.items()
        for dtype in ("float32", "bfloat16")
    }
    return Part("training", ("system", "ms", "target_tokens_per_second", "ours_over_it"), settings)


def step_part(sizes: Sizes, scratch: Path, device: str) -> Part:
    """Return the part that profiles a decode step of one sentence."""

    def measure(name: str, dtype: str, beams: int, seconds: float) -> list[Row]:
        shape, folder = SHAPES[name], checkpoint(scratch, name)
        source = random_sources(shape, 1, SOURCE_LENGTH)
        with nullcontext() if device == "gpu" else simulate_gpu_kernels():
            kernels, chain = count_step_kernels(
                mt.load_model(folder, dtype=dtype, allow_overflow=True),
                source,
                beams,
                (shape.eos_id,),
                lambda arrays: (count_kernels(arrays), longest_chain(arrays)),
            )
        times = profile_steps(Ours(shape, folder, dtype), source, beams, sizes.tokens, sizes.repeats)
        return [{"kernels": kernels.total(), "chain": chain} | times | {"kernels_by_name": kernels}]

    settings = {
        f"{name}, {dtype}, {describe_setting(beams, 1)}": functools.partial(measure, name, dtype, beams)
        for beams in (4, 1)
        for name, dtype in variants(sizes)
    }
    columns = ("kernels", "chain", "wall", "build", "issue", "wait", "evaluation", "gap")
    note = "Milliseconds a step: wall = build + issue + wait; gap = wall - evaluation of a step that runs alone."
    return Part("decode step", columns, settings, note)


def corpus_part(corpus: str | None, valid: str | None, init: str | None, output: str, more: tuple[str, ...]) -> Part:
    """Return the part that trains on a corpus and continues the run if there is one."""

    def measure(seconds: float) -> list[Row]:
        run = ["--resume"] if (Path(output) / "last").exists() else ["--train", str(corpus), "--valid", str(valid)]
        run += ["--init", init] if init and run != ["--resume"] else []
        command = [sys.executable, "-m", "mlx_transformer", "train", "--json", "--output", output, *run, *more]
        printed, stopped, status = run_for(command, max(1, seconds - STOP_SECONDS), signal.SIGTERM)
        if status and not stopped:
            raise RuntimeError(printed.strip().splitlines()[-1])
        events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        names = ("event", "step", "loss", "tokens_per_second", "bleu")
        return [
            {name: event[name] for name in names if name in event}
            for event in events
            if event["event"] in ("step", "validation")
        ]

    columns = ("event", "step", "loss", "tokens_per_second", "bleu")
    if corpus is None:
        return Part("corpus", columns, {}, "Skipped: --train-corpus is not set.")
    return Part("corpus", columns, {"train": measure})


def keep_kernels(folder: str | None) -> None:
    """Let MLX and CUDA's driver keep compiled kernels from run to run, also those of child processes."""
    if folder is None:
        prepare_temporary_folder()
    kept = Path(folder).absolute() if folder else temporary_folder() / "mlx"
    os.environ["MLX_PTX_CACHE_DIR"] = str(kept / mx.__version__ / "ptx")
    if folder:
        os.environ["CUDA_CACHE_PATH"] = str(kept / "driver")


@contextmanager
def interruptible(seconds: float) -> Iterator[None]:
    """Raise `Interruption` at SIGINT and SIGTERM, and when the time is over."""

    def interrupt(number: int, frame: object) -> None:
        raise Interruption(number)

    signals = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in signals}
    # Once a second from then on, because Python drops an exception that is raised in a destructor.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run_parts(report: Report, parts: list[Part], seconds: float) -> int:
    """Run parts one after the other, each until its share of the time is over; return the exit status."""
    ends = time.monotonic()
    total = sum(SHARES[part.name] for part in parts if part.settings)
    try:
        with interruptible(seconds):
            for part in parts:
                ends += seconds * SHARES[part.name] / total if part.settings else 0
                report.run(part, ends)
    except Interruption as interruption:
        number = interruption.args[0]
        report.finish("the time was over" if number == signal.SIGALRM else "interrupted")
        return 0 if number == signal.SIGALRM else 128 + number
    report.finish("finished")
    return 0


@click.command()
@click.option("--minutes", type=click.FloatRange(0), default=8, show_default=True, help="When to end.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), default="gpu.json", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Default: the GPU if available.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 1, show_default="all cores")
@click.option("--kernel-cache", type=click.Path(file_okay=False), help="Folder for compiled kernels of CUDA.")
@click.option("--train-corpus", help="Corpus to train on in the time that is left; see `mlx-transformer train`.")
@click.option("--valid-corpus", help="Its validation corpus.")
@click.option("--init", help="Model to fine-tune on it.")
@click.option("--output", type=click.Path(file_okay=False), default="gpu-run", show_default=True, help="Run to write.")
@click.argument("train_options", nargs=-1, type=click.UNPROCESSED)
def main(
    minutes: float,
    file: str,
    device: str | None,
    threads: int,
    kernel_cache: str | None,
    train_corpus: str | None,
    valid_corpus: str | None,
    init: str | None,
    output: str,
    train_options: tuple[str, ...],
) -> None:
    """Measure this machine's GPU for a limited time. TRAIN_OPTIONS (after --) are further options of training."""
    if train_corpus and not valid_corpus:
        raise click.UsageError("--train-corpus needs --valid-corpus: set both.")
    keep_kernels(kernel_cache)
    device = device or ("gpu" if mx.is_available(mx.gpu) else "cpu")
    options = train.Options(device=device, threads=threads)
    train.set_up_device(options)
    sizes, note = (Sizes(), None) if device == "gpu" else (TINY_SIZES, CPU_NOTE)
    facts = machine_facts() | peer_versions() | {"minutes": minutes, "sizes": vars(sizes), "note": note}
    print_now(" | ".join(f"{name}: {value}" for name, value in facts.items()))
    with tempfile.TemporaryDirectory() as name:
        parts = [
            tests_part(device),
            generation_part(sizes, Path(name), device, threads),
            training_part(sizes, options),
            step_part(sizes, Path(name), device),
            corpus_part(train_corpus, valid_corpus, init, output, train_options),
        ]
        status = run_parts(Report(Path(file), facts), parts, 60 * minutes)
    sys.exit(status)


if __name__ == "__main__":
    main()
