"""One command for a person with a Mac: tests, speed and memory on its GPU, in one JSON file to send back.

    python -m benchmarks.mac [--no-tests] [--output mac.json]

It needs the checkout and `pip install -e '.[dev]'` (for the tests; without it --no-tests). It takes minutes,
downloads nothing, and writes no path and no name of the machine. Elsewhere it runs too, and says so.
"""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks.conditions import facts
from benchmarks.generate import numbers
from benchmarks.kernels import as_on_a_gpu, step_kernels
from benchmarks.measure import in_turn, set_device, summary, table
from benchmarks.peers import Ours, systems
from benchmarks.random_weights import FAR, NEAR, SOURCE_LENGTH, agreement, caller, describe, window
from benchmarks.roofline import FORMATS, Work, held_bytes, step_bytes
from benchmarks.shapes import SHAPES, Shape, random_sources, variation, write_checkpoint
from benchmarks.train import Options, speed
from benchmarks.trained_model import first_sentence, own_sentences
from mlx_transformer.cli.commands.info import model_facts as describe_model

ROOT = Path(__file__).resolve().parent.parent
# Name -> the type that is computed in, and bits of the weights.
NUMBERS: dict[str, tuple[str, int | None]] = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "8-bit": ("float16", 8),
}
BEAMS = (1, 4)
UPDATES = 4  # of a call that is timed


@click.command()
@click.option("--output", type=click.Path(dir_okay=False, writable=True), default="mac.json", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="The GPU if there is one.")
@click.option("--tests/--no-tests", default=True, help="Run the test suite on the device first.")
@click.option("--peers/--no-peers", default=True, help="Measure transformers and CTranslate2 too, if installed.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=("marian", "t5"))
@click.option("--numbers", "kinds", multiple=True, type=click.Choice(list(NUMBERS)), help="All; float32 on the CPU.")
@click.option("--batches", callback=numbers, default="1,8,16", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--growth/--no-growth", default=True, help="Measure the time per token at position 512.")
@click.option("--bundled/--no-bundled", default=True, help="Measure the bundled model on sentences.")
@click.option("--training/--no-training", default=True, help="Measure training steps.")
def main(
    output: str,
    device: str | None,
    tests: bool,
    peers: bool,
    shapes: tuple[str, ...],
    kinds: tuple[str, ...],
    batches: list[int],
    repeats: int,
    tokens: int,
    growth: bool,
    bundled: bool,
    training: bool,
) -> None:
    """Measure this machine, write one file."""
    device = device or ("gpu" if mx.is_available(mx.gpu) else "cpu")
    set_device(device)
    kinds = kinds or (tuple(NUMBERS) if device == "gpu" else ("float32",))
    found: dict[str, Any] = {"machine": machine(device)}
    tell(" | ".join(f"{name}: {value}" for name, value in found["machine"].items()))
    if tests:
        tell("Tests ...")
        found["tests"] = run_tests(device)
        tell(json.dumps(found["tests"]))
    found["shapes"] = {}
    for name in shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_checkpoint(SHAPES[name], folder)
            found["shapes"][name] = measured = measure_shape(SHAPES[name], folder, kinds, batches, repeats, tokens)
            if peers:
                measured["peers"] = measure_peers(SHAPES[name], folder, device, batches, repeats, tokens)
            if growth:
                measured["growth"] = attempt(measure_growth, SHAPES[name], folder)
        tell(f"\n## {name}\n\n{speeds(measured)}")
    if bundled:
        found["bundled"] = attempt(measure_bundled, repeats)
        tell(f"\n## bundled model\n\n{json.dumps(found['bundled'], indent=1)}")
    if training:
        found["training"] = measure_training(device, repeats)
        tell(f"\n## training, seconds an update\n\n{json.dumps(found['training'], indent=1)}")
    Path(output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    tell(f"\nPlease send back {output}.")


def tell(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def machine(device: str) -> dict[str, Any]:
    """The machine and what runs on it; no name of it or of its user, no path."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    is_mac = platform.system() == "Darwin"
    return facts() | {
        "memory_gb": round(pages / 2**30, 1),
        "macos": platform.mac_ver()[0] or None,
        "metal": mx.metal.is_available(),
        "device_info": {name: anonymous(value) for name, value in mx.device_info().items()},
        "note": None
        if is_mac and device == "gpu"
        else "Not the GPU of a Mac: this file only shows that the command works.",
    }


def anonymous(value: Any) -> Any:
    """A text without this machine's paths and names."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"(?<!\w)(?:[A-Za-z]:)?[\\/](?:[\w.@ -]+[\\/])+[\w.@-]*", "<path>", value)
    for name in (platform.node(), Path.home().name):
        text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text) if name else text
    return text


def attempt(measurement: Any, *arguments: Any) -> dict[str, Any]:
    """What a measurement finds, or why it could not be made: the others still can."""
    try:
        return measurement(*arguments)
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return {"error": anonymous(f"{type(error).__name__}: {error}")}


def run_tests(device: str) -> dict[str, Any]:
    """The result of the test suite: its last line, and the names of what failed."""
    if importlib.util.find_spec("pytest") is None:
        return {"result": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--device", device, "tests"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"seconds": round(time.perf_counter() - started), **outcome(done.stdout)}


def outcome(text: str) -> dict[str, Any]:
    """What pytest printed: its last line, and the names of failed tests."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip()]
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return {"result": anonymous(lines[-1]) if lines else "nothing was printed", "failed": [*map(anonymous, failed)]}


def measure_shape(
    shape: Shape, folder: Path, kinds: tuple[str, ...], batches: list[int], repeats: int, tokens: int
) -> dict[str, Any]:
    """Speed, memory, kernels and attention of a shape in each type of numbers."""
    found: dict[str, Any] = {"speed": [], "kernels": {}}
    for kind in kinds:
        tell(f"{shape.kind}, {kind} ...")
        system = Ours(shape, folder, *NUMBERS[kind])
        for beams in BEAMS:
            for batch in batches:
                row = {"numbers": kind, "beams": beams, "batch": batch}
                row |= attempt(measure_speed, system, shape, beams, batch, repeats, tokens)
                found["speed"].append(row)
        found.setdefault("held_bytes", {})[kind] = held_bytes(system.model)
        found["fused_attention"] = describe_model(system.model, None)["fused_attention"]
    config = system.model.config
    found["step_bytes"] = {name: step_bytes(config, form, Work()) for name, form in FORMATS.items()}
    found["same_tokens_as_on_the_cpu"] = attempt(compare_with_cpu, shape, folder, tokens)
    for beams in BEAMS:
        for built, context in (("here", nullcontext), ("as on a GPU", as_on_a_gpu)):
            model, source = mt.load(folder, dtype="float32")[0], random_sources(shape, 1, SOURCE_LENGTH)
            with context():
                counts = step_kernels(model, source, beams, (shape.eos_id,))
            found["kernels"][f"beam {beams}, {built}"] = {"total": counts.total(), **counts}
    return found


def measure_speed(system: Any, shape: Shape, beams: int, batch: int, repeats: int, tokens: int) -> dict[str, Any]:
    """Target tokens a second of a setting, the peak of MLX's memory, and whether outputs vary."""
    source = random_sources(shape, batch, SOURCE_LENGTH)
    outputs = system.generate(source, beams, tokens)  # traces and compiles
    mx.reset_peak_memory()
    call = caller(system, source, beams, tokens)
    taken = summary(in_turn({system.name: call}, repeats)[system.name])
    speeds = [round(batch * tokens / seconds, 1) for seconds in (taken.median, taken.most, taken.least)]
    found = dict(zip(("tokens_per_second", "least", "most"), speeds, strict=True))
    peak = round(mx.get_peak_memory() / 1e6, 1) if isinstance(system, Ours) else None
    return found | {"peak_mb": peak, "calls": taken.counted, "distinct_tokens": variation(outputs)}


def measure_peers(
    shape: Shape, folder: Path, device: str, batches: list[int], repeats: int, tokens: int
) -> dict[str, Any]:
    """The same of transformers (on MPS) and of CTranslate2 (on the CPU) in float32, where they are installed."""
    found, notes = systems(shape, folder, "float32", device, os.cpu_count() or 1, None)
    rows = []
    for system in found[1:]:
        tell(f"{shape.kind}, {system.name} ...")
        for beams in BEAMS:
            for batch in batches:
                row = {"system": system.name, "beams": beams, "batch": batch}
                rows.append(row | attempt(measure_speed, system, shape, beams, batch, repeats, tokens))
    return {"speed": rows, "left_out": [*map(anonymous, notes)]}


def compare_with_cpu(shape: Shape, folder: Path, tokens: int) -> dict[str, Any]:
    """The share of tokens that this device in float32 has in common with the CPU."""
    source, device, outputs = random_sources(shape, 4, SOURCE_LENGTH), mx.default_device(), []
    try:
        for each in (device, mx.cpu):
            mx.set_default_device(each)
            outputs.append({beams: Ours(shape, folder).generate(source, beams, tokens) for beams in BEAMS})
    finally:
        mx.set_default_device(device)
    return {describe(beams, 4): agreement(outputs[0][beams], outputs[1][beams]) for beams in BEAMS}


def measure_growth(shape: Shape, folder: Path) -> dict[str, Any]:
    """Milliseconds per token around positions 16 and 512."""
    system, source = Ours(shape, folder), random_sources(shape, 1, SOURCE_LENGTH)
    system.stamps(source, FAR[1])
    stamps = system.stamps(source, FAR[1])
    near, far = window(stamps, NEAR), window(stamps, FAR)
    return {"ms_at_16": near, "ms_at_512": far, "growth": far / near}


def measure_bundled(repeats: int) -> dict[str, Any]:
    """Sentences a second of the bundled model, at once and one by one, and the time to the first sentence."""
    network, tokenizer = mt.load()
    if tokenizer is None:
        raise ValueError("The bundled model must have a tokenizer: it has none.")
    lines, found = own_sentences(), {}
    for beams in BEAMS:
        search = replace(network.search_defaults, beam_size=beams)
        mt.generate(network, tokenizer, lines, search)
        mt.generate(network, tokenizer, lines[0], search)
        calls = {
            "at once": lambda search=search: mt.generate(network, tokenizer, lines, search),
            "one by one": lambda search=search: [mt.generate(network, tokenizer, line, search) for line in lines[:32]],
        }
        for name, samples in in_turn(calls, max(1, repeats // 2)).items():
            count = len(lines) if name == "at once" else 32
            found[f"sentences/s, beam {beams}, {name}"] = round(count / summary(samples).median, 1)
    seconds, text = first_sentence(None, {}, 4)
    found |= {"seconds_to_first_sentence": [round(each, 2) for each in seconds], "first_sentence": text}
    return found | {"dtype": str(network.dtype).removeprefix("mlx.core.")}


def measure_training(device: str, repeats: int) -> dict[str, Any]:
    """Seconds an update of ours and of its peers, by the type that is computed in."""
    found = {}
    for kind in ("float32", "bfloat16") if device == "gpu" else ("float32",):
        tell(f"training, {kind} ...")
        options = Options(device=device, threads=os.cpu_count() or 1, compute_dtype=kind)
        found[kind] = attempt(lambda options=options: speed(options, repeats, UPDATES).data["seconds"])
    return found


def speeds(measured: dict[str, Any]) -> str:
    """The speeds of a shape for a reader."""
    rows = []
    for row in [*measured["speed"], *measured.get("peers", {}).get("speed", [])]:
        who = row.get("system", f"mlx_transformer, {row.get('numbers')}")
        figures = [row.get("error") or row["tokens_per_second"], row.get("peak_mb") or "-"]
        rows.append((who, describe(row["beams"], row["batch"]), *figures))
    return table(["system", "setting", "tokens/s", "peak MB"], rows)


if __name__ == "__main__":
    main()
