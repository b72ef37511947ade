"""One command to measure a GPU in limited time: tests, generation and training beside torch, and a decode step.

    python -m benchmarks.gpu [--minutes 8] [--json gpu.json] [--kernel-cache FOLDER]

It needs a checkout with `pip install '.[dev,benchmark]'`, MLX for the GPU and torch for CUDA, and no network. The file
has what is measured after each setting, so that an interruption loses nothing. It has neither paths nor host names. A
child process measures: if it crashes or hangs, the setting gets an error, and another process goes on with the next.
Without a GPU it measures tiny sizes on the CPU, and says so.
"""

import functools
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks import train
from benchmarks.generate import peer_versions
from benchmarks.kernels import count_kernels, count_step_kernels, longest_chain, simulate_gpu_kernels
from benchmarks.peers import Ours, System, Transformers
from benchmarks.random_weights import SOURCE_LENGTH, compare_systems, describe_setting
from benchmarks.separate_process import SeparateSystem
from benchmarks.shapes import SHAPES, random_sources, write_checkpoint
from benchmarks.steps import profile_steps
from benchmarks.supervision import Part, Report, Row, run_parts, supervise
from benchmarks.unattended import STOP_SECONDS, machine_facts, print_now, run_for, run_tests
from mlx_transformer.cli.streams import prepare_temporary_folder
from mlx_transformer.storage.kernel_cache import temporary_folder

# Part -> its share of the time.
SHARES = {"tests": 0.15, "generation": 0.4, "training": 0.15, "decode step": 0.1, "corpus": 0.2}
# Folder -> files of tests.
TESTS = {
    "model": ("transformer", "kv_cache", "fused_projections", "parts"),
    "decoding": ("beam_search",),
    "training": ("train_state", "losses", "optimizers"),
}
SETTINGS = ((4, 1), (1, 1), (1, 16), (4, 16), (1, 64), (4, 64))  # beams and batch, the most important first
HALF_PRECISION = {"marian": "float16", "t5": "bfloat16"}  # T5 exceeds the range of float16
BASE = {"layers": 6, "dims": 512, "heads": 8, "mlp": 2048, "vocab": 32_000, "rows": 128, "length": 32}
TINY = {"layers": 1, "dims": 16, "heads": 2, "mlp": 16, "vocab": 50, "rows": 2, "length": 4}
CPU_NOTE = "On the CPU: tiny sizes, which only show that the command works."


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure.

    Attributes:
        tests: Folders of tests and the files to run.
        shapes: Names of shapes.
        settings: Pairs of beam size and batch size.
        tokens: New tokens of each output.
        repeats: Calls of each system for each figure.
        training: Names of training shapes and the sizes that differ from `train.Options`.
        updates: Training updates of each call.
    """

    tests: dict[str, tuple[str, ...]] = field(default_factory=lambda: TESTS)
    shapes: tuple[str, ...] = ("marian", "t5")
    settings: tuple[tuple[int, int], ...] = SETTINGS
    tokens: int = 32
    repeats: int = 5
    training: dict[str, dict[str, int]] = field(default_factory=lambda: {"base": BASE, "small": {}})
    updates: int = 4


TINY_SIZES = Sizes({"training": ("losses",)}, ("marian-tiny", "t5-tiny"), ((4, 1), (1, 16)), 12, 1, {"tiny": TINY}, 1)


def variants(sizes: Sizes) -> list[tuple[str, str]]:
    """Return pairs of a shape's name and a dtype, float32 first, then the half precision of the family."""
    halves = [(name, HALF_PRECISION[SHAPES[name].family]) for name in sizes.shapes]
    return [(name, "float32") for name in sizes.shapes] + halves


def make_part(name: str, *arguments: Any) -> Part:
    """Return a part with its share of the time."""
    return Part(name, SHARES[name], *arguments)


def tests_part(sizes: Sizes, device: str) -> Part:
    """Return the part that runs tests of model, search and training."""

    def measure(folder: str, seconds: float) -> list[Row]:
        paths = [f"tests/{folder}/test_{name}.py" for name in sizes.tests[folder]]
        return [run_tests(device, [*paths, "-m", "not slow"], seconds)]

    settings = {folder: functools.partial(measure, folder) for folder in sizes.tests}
    return make_part("tests", ("result", "failed"), settings)


def generation_part(sizes: Sizes, scratch: Path, device: str, threads: int) -> Part:
    """Return the part that measures generation beside transformers."""

    @functools.cache
    def systems(name: str, dtype: str) -> list[System]:
        shape, folder = SHAPES[name], checkpoint(scratch, name)
        loaded: list[System] = [Ours(shape, folder, dtype)]
        with suppress(ImportError):  # then ours is measured alone, and the versions say "absent"
            loaded.append(SeparateSystem(Transformers, shape, folder, dtype, device, threads))
        return loaded

    def measure(name: str, dtype: str, beams: int, batch: int, seconds: float) -> list[Row]:
        source = random_sources(SHAPES[name], batch, SOURCE_LENGTH)
        return compare_systems(systems(name, dtype), source, beams, sizes.tokens, sizes.repeats)[0]

    settings = {
        f"{name}, {dtype}, {describe_setting(beams, batch)}": functools.partial(measure, name, dtype, beams, batch)
        for beams, batch in sizes.settings
        for name, dtype in variants(sizes)
    }
    columns = ("system", "tokens_per_second", "ours_over_it", "same_tokens", "same_sequences")
    return make_part("generation", columns, settings, "In float32, a ratio needs the same tokens.")


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
    return make_part("training", ("system", "ms", "target_tokens_per_second", "ours_over_it"), settings)


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
    return make_part("decode step", columns, settings, note)


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
        rows = [
            {name: event[name] for name in names if name in event}
            for event in events
            if event["event"] in ("step", "validation")
        ]
        return rows or [{"event": "no step was logged in the time that was left"}]

    columns = ("event", "step", "loss", "tokens_per_second", "bleu")
    if corpus is None:
        return make_part("corpus", columns, {}, "Skipped: --train-corpus is not set.")
    return make_part("corpus", columns, {"train": measure})


def keep_kernels(folder: str | None) -> None:
    """Let MLX and CUDA's driver keep compiled kernels from run to run, also those of child processes."""
    if folder is None:
        prepare_temporary_folder()
    kept = Path(folder).absolute() if folder else temporary_folder() / "mlx"
    os.environ["MLX_PTX_CACHE_DIR"] = str(kept / mx.__version__ / "ptx")
    if folder:
        os.environ["CUDA_CACHE_PATH"] = str(kept / "driver")


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
@click.option("--until", type=float, hidden=True)  # this and the next one are for the process that measures
@click.option("--scratch", hidden=True)
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
    until: float | None,
    scratch: str | None,
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
    if until is not None and scratch is not None:
        parts = [
            tests_part(sizes, device),
            generation_part(sizes, Path(scratch), device, threads),
            training_part(sizes, options),
            step_part(sizes, Path(scratch), device),
            corpus_part(train_corpus, valid_corpus, init, output, train_options),
        ]
        sys.exit(run_parts(Report(Path(file)), parts, 60 * minutes, until))
    facts = machine_facts() | peer_versions() | {"minutes": minutes, "sizes": vars(sizes), "note": note}
    print_now(" | ".join(f"{name}: {value}" for name, value in facts.items()))
    until = time.time() + 60 * minutes
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.gpu", "--until", str(until), "--scratch", scratch, *sys.argv[1:]]
        status = supervise(command, Report(Path(file), facts), until)
    sys.exit(status)


if __name__ == "__main__":
    main()
