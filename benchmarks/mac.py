"""One command to measure a Mac: tests, speed and memory on its GPU, written to one JSON file to send back.

    python -m benchmarks.mac [--no-tests] [--output mac.json]

It needs a checkout and, for the tests, `pip install -e '.[dev]'`; otherwise use --no-tests. It takes minutes, downloads
nothing, and writes neither paths nor host names. On other machines it runs too, and the file says so.
"""

import json
import os
import platform
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks.command_buffers import limits_table, measure_limits
from benchmarks.generate import parse_integers
from benchmarks.kernels import count_step_kernels, simulate_gpu_kernels
from benchmarks.measure import interleave_calls, markdown_table, set_device, summarise
from benchmarks.peers import Ours, available_systems
from benchmarks.random_weights import (
    FAR_WINDOW,
    NEAR_WINDOW,
    SOURCE_LENGTH,
    agreement,
    describe_setting,
    generate_call,
    ms_per_token,
)
from benchmarks.roofline import FORMATS, Workload, loaded_bytes, step_bytes
from benchmarks.rows import measure_rows, rows_table
from benchmarks.shapes import SHAPES, Shape, distinct_token_counts, random_sources, write_checkpoint
from benchmarks.train import Options, speed
from benchmarks.trained_model import simple_sentences, time_first_sentence
from benchmarks.unattended import anonymise, machine_facts, print_now, run_tests, try_measurement
from mlx_transformer.cli.commands.info import model_facts as describe_model

# Name -> compute dtype and bits of quantised weights.
PRECISIONS: dict[str, tuple[str, int | None]] = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "8-bit": ("float16", 8),
}
BEAMS = (1, 4)
ROW_DIMS = (512, 2048)  # width and feed-forward width of the measured matrix products
UPDATES = 4  # updates of each timed call


@click.command()
@click.option("--output", type=click.Path(dir_okay=False, writable=True), default="mac.json", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Default: the GPU if available.")
@click.option("--tests/--no-tests", default=True, help="Run the test suite on the device first.")
@click.option("--peers/--no-peers", default=True, help="Also measure transformers and CTranslate2, if installed.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=("marian", "t5"))
@click.option(
    "--numbers",
    "precisions",
    multiple=True,
    type=click.Choice(list(PRECISIONS)),
    help="Default: all; on the CPU float32.",
)
@click.option("--batches", callback=parse_integers, default="1,8,16", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--growth/--no-growth", default=True, help="Measure the time per token at position 512.")
@click.option("--bundled/--no-bundled", default=True, help="Measure the bundled model on sentences.")
@click.option("--training/--no-training", default=True, help="Measure training steps.")
@click.option(
    "--command-buffers/--no-command-buffers",
    default=None,
    show_default="on Macs",
    help="Measure the first shape with several limits of Metal's command buffers.",
)
def main(
    output: str,
    device: str | None,
    tests: bool,
    peers: bool,
    shapes: tuple[str, ...],
    precisions: tuple[str, ...],
    batches: list[int],
    repeats: int,
    tokens: int,
    growth: bool,
    bundled: bool,
    training: bool,
    command_buffers: bool | None,
) -> None:
    """Measure this machine and write one JSON file."""
    device = device or ("gpu" if mx.is_available(mx.gpu) else "cpu")
    set_device(device)
    precisions = precisions or (tuple(PRECISIONS) if device == "gpu" else ("float32",))
    results: dict[str, Any] = {"machine": describe_machine(device)}
    print_now(" | ".join(f"{name}: {value}" for name, value in results["machine"].items()))
    if tests:
        print_now("Tests ...")
        results["tests"] = run_tests(device)
        print_now(json.dumps(results["tests"]))
    results["shapes"] = {}
    for name in shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_checkpoint(SHAPES[name], folder)
            results["shapes"][name] = shape_results = measure_shape(
                SHAPES[name], folder, precisions, batches, repeats, tokens
            )
            if peers:
                shape_results["peers"] = measure_peers(SHAPES[name], folder, device, batches, repeats, tokens)
            if growth:
                shape_results["growth"] = try_measurement(measure_growth, SHAPES[name], folder)
        print_now(f"\n## {name}\n\n{speed_table(shape_results)}")
    if bundled:
        results["bundled"] = try_measurement(measure_bundled, repeats)
        print_now(f"\n## bundled model\n\n{json.dumps(results['bundled'], indent=1)}")
    if training:
        results["training"] = measure_training(device, repeats)
        print_now(f"\n## training, seconds an update\n\n{json.dumps(results['training'], indent=1)}")
    if platform.system() == "Darwin" if command_buffers is None else command_buffers:
        results["command_buffers"] = sweep_command_buffers(shapes[0], device, repeats, tokens)
    results["rows"] = try_measurement(measure_rows, *ROW_DIMS, repeats, device)
    print_now(f"\n## microseconds of two products by rows\n\n{format_rows(results['rows'])}")
    Path(output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_now(f"\nPlease send back {output}.")


def describe_machine(device: str) -> dict[str, Any]:
    """Return facts about the machine, with a note if it is not the GPU of a Mac."""
    on_a_mac = platform.system() == "Darwin" and device == "gpu"
    note = "Not measured on the GPU of a Mac: this file only shows that the command works."
    return machine_facts() | {"note": None if on_a_mac else note}


def measure_shape(
    shape: Shape, folder: Path, precisions: tuple[str, ...], batches: list[int], repeats: int, tokens: int
) -> dict[str, Any]:
    """Measure speed, memory, kernels and attention of a shape in each precision."""
    results: dict[str, Any] = {"speed": [], "kernels": {}}
    for precision in precisions:
        print_now(f"{shape.family}, {precision} ...")
        system = Ours(shape, folder, *PRECISIONS[precision])
        for beams in BEAMS:
            for batch in batches:
                row = {"numbers": precision, "beams": beams, "batch": batch}
                row |= try_measurement(measure_speed, system, shape, beams, batch, repeats, tokens)
                results["speed"].append(row)
        results.setdefault("held_bytes", {})[precision] = loaded_bytes(system.model)
        results["fused_attention"] = describe_model(system.model, None)["fused_attention"]
    config = system.model.config
    results["step_bytes"] = {
        name: step_bytes(config, number_format, Workload()) for name, number_format in FORMATS.items()
    }
    results["same_tokens_as_on_the_cpu"] = try_measurement(compare_with_cpu, shape, folder, tokens)
    for beams in BEAMS:
        for built, context in (("here", nullcontext), ("as on a GPU", simulate_gpu_kernels)):
            model, source = mt.load_model(folder, dtype="float32"), random_sources(shape, 1, SOURCE_LENGTH)
            with context():
                counts = count_step_kernels(model, source, beams, (shape.eos_id,))
            results["kernels"][f"beam {beams}, {built}"] = {"total": counts.total(), **counts}
    return results


def measure_speed(system: Any, shape: Shape, beams: int, batch: int, repeats: int, tokens: int) -> dict[str, Any]:
    """Measure target tokens per second and MLX's peak memory, and count distinct tokens."""
    source = random_sources(shape, batch, SOURCE_LENGTH)
    outputs = system.generate(source, beams, tokens)  # warm up: trace and compile
    mx.reset_peak_memory()
    call = generate_call(system, source, beams, tokens)
    timing = summarise(interleave_calls({system.name: call}, repeats)[system.name])
    speeds = [round(batch * tokens / seconds, 1) for seconds in (timing.median, timing.slowest, timing.fastest)]
    results = dict(zip(("tokens_per_second", "least", "most"), speeds, strict=True))
    peak = round(mx.get_peak_memory() / 1e6, 1) if isinstance(system, Ours) else None
    return results | {"peak_mb": peak, "calls": timing.calls, "distinct_tokens": distinct_token_counts(outputs)}


def measure_peers(
    shape: Shape, folder: Path, device: str, batches: list[int], repeats: int, tokens: int
) -> dict[str, Any]:
    """Measure transformers (on MPS) and CTranslate2 (on the CPU) in float32, if installed."""
    available, notes = available_systems(shape, folder, "float32", device, os.cpu_count() or 1, None)
    rows = []
    for system in available[1:]:
        print_now(f"{shape.family}, {system.name} ...")
        for beams in BEAMS:
            for batch in batches:
                row = {"system": system.name, "beams": beams, "batch": batch}
                rows.append(row | try_measurement(measure_speed, system, shape, beams, batch, repeats, tokens))
    return {"speed": rows, "left_out": [*map(anonymise, notes)]}


def compare_with_cpu(shape: Shape, folder: Path, tokens: int) -> dict[str, Any]:
    """Return the share of tokens that this device and the CPU have in common in float32."""
    source, device, outputs = random_sources(shape, 4, SOURCE_LENGTH), mx.default_device(), []
    try:
        for current in (device, mx.cpu):
            mx.set_default_device(current)
            outputs.append({beams: Ours(shape, folder).generate(source, beams, tokens) for beams in BEAMS})
    finally:
        mx.set_default_device(device)
    return {describe_setting(beams, 4): agreement(outputs[0][beams], outputs[1][beams]) for beams in BEAMS}


def measure_growth(shape: Shape, folder: Path) -> dict[str, Any]:
    """Measure milliseconds per token around positions 16 and 512."""
    system, source = Ours(shape, folder), random_sources(shape, 1, SOURCE_LENGTH)
    system.token_timestamps(source, FAR_WINDOW[1])
    timestamps = system.token_timestamps(source, FAR_WINDOW[1])
    near, far = ms_per_token(timestamps, NEAR_WINDOW), ms_per_token(timestamps, FAR_WINDOW)
    return {"ms_at_16": near, "ms_at_512": far, "growth": far / near}


def measure_bundled(repeats: int) -> dict[str, Any]:
    """Measure sentences per second of the bundled model, in one call and in single calls, and the start-up time."""
    network, tokenizer = mt.load()
    lines, results = simple_sentences(), {}
    for beams in BEAMS:
        search = replace(network.search_defaults, beam_size=beams)
        mt.generate(network, tokenizer, lines, search)
        mt.generate(network, tokenizer, lines[0], search)
        calls = {
            "at once": lambda search=search: mt.generate(network, tokenizer, lines, search),
            "one by one": lambda search=search: [mt.generate(network, tokenizer, line, search) for line in lines[:32]],
        }
        for name, samples in interleave_calls(calls, max(1, repeats // 2)).items():
            count = len(lines) if name == "at once" else 32
            results[f"sentences/s, beam {beams}, {name}"] = round(count / summarise(samples).median, 1)
    seconds, text = time_first_sentence(None, {}, 4)
    results |= {"seconds_to_first_sentence": [round(value, 2) for value in seconds], "first_sentence": text}
    return results | {"dtype": str(network.dtype).removeprefix("mlx.core.")}


def measure_training(device: str, repeats: int) -> dict[str, Any]:
    """Measure seconds per training update of all systems in each compute dtype."""
    results = {}
    for precision in ("float32", "bfloat16") if device == "gpu" else ("float32",):
        print_now(f"training, {precision} ...")
        options = Options(device=device, threads=os.cpu_count() or 1, compute_dtype=precision)
        results[precision] = try_measurement(lambda options=options: speed(options, repeats, UPDATES).data["seconds"])
    return results


def sweep_command_buffers(shape_name: str, device: str, repeats: int, tokens: int) -> Any:
    """Measure and print the speed of a shape with several limits of command buffers."""
    print_now("command buffers ...")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(SHAPES[shape_name], Path(folder) / "model")
        dtype = "float16" if device == "gpu" else "float32"
        arguments = (shape_name, Path(folder) / "model", device, dtype, repeats, tokens)
        rows = try_measurement(measure_limits, *arguments)
    print_now(f"\n## limits of command buffers\n\n{rows if isinstance(rows, dict) else limits_table(rows)}")
    return rows


def format_rows(rows: Any) -> str:
    """Format the result of `measure_rows`, or its error."""
    return str(rows) if isinstance(rows, dict) else rows_table(rows)


def speed_table(shape_results: dict[str, Any]) -> str:
    """Format the speeds of a shape as a table."""
    rows = []
    for row in [*shape_results["speed"], *shape_results.get("peers", {}).get("speed", [])]:
        system_name = row.get("system", f"mlx_transformer, {row.get('numbers')}")
        figures = [row.get("error") or row["tokens_per_second"], row.get("peak_mb") or "-"]
        rows.append((system_name, describe_setting(row["beams"], row["batch"]), *figures))
    return markdown_table(["system", "setting", "tokens/s", "peak MB"], rows)


if __name__ == "__main__":
    main()
