"""Parts of the generation benchmark that use random weights: throughput, growth, kernels, host synchronisations."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import mlx_transformer as mt
from benchmarks import kernels
from benchmarks.measure import (
    Goal,
    Result,
    Sample,
    Timing,
    interleave_calls,
    is_undisturbed,
    markdown_table,
    max_other_load,
    summarise,
    time_call,
)
from benchmarks.peers import Ours, System, available_systems, load_mlx_examples_model
from benchmarks.shapes import SHAPES, Shape, distinct_token_counts, outputs_vary, random_sources, write_checkpoint

SOURCE_LENGTH, TOKENS = 24, 32
NEAR_WINDOW, FAR_WINDOW = (8, 24), (504, 520)  # windows around positions 16 and 512
# (beams, batch) -> peer -> goal and aim for our speed divided by the peer's.
RATIOS: dict[tuple[int, int], dict[str, tuple[float | None, float]]] = {
    (1, 1): {"transformers": (1.15, 1.4), "mlx-examples T5": (1.15, 1.4)},
    (1, 16): {"transformers": (1.2, 1.5)},
    (4, 1): {"transformers": (1.3, 1.6)},
    (4, 8): {"transformers": (1.0, 1.3), "CTranslate2 float32": (None, 1.0)},
}


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        scratch: A folder for checkpoints.
        examples: The folder t5 of mlx-examples, if available.
        dtype: The dtype in which all systems compute.
        device: "cpu" or "gpu".
        threads: Threads of each system.
        repeats: Calls of each system for each figure.
        settings: Pairs of beam size and batch size.
        tokens: New tokens of each output.
    """

    scratch: Path
    examples: Path | None
    dtype: str
    device: str
    threads: int
    repeats: int
    settings: list[tuple[int, int]]
    tokens: int = TOKENS

    def folder(self, shape: Shape) -> Path:
        """Return the folder of a shape's checkpoint, which is written at the first call."""
        folder = self.scratch / f"{shape.family}-{shape.layers}-{shape.dims}"
        if not folder.exists():
            write_checkpoint(shape, folder)
        return folder

    def available_systems(self, shape: Shape) -> tuple[list[System], list[str]]:
        """See `peers.available_systems`."""
        return available_systems(shape, self.folder(shape), self.dtype, self.device, self.threads, self.examples)


def describe_setting(beams: int, batch: int) -> str:
    """Return a short description of a setting."""
    return f"{'greedy' if beams == 1 else f'beam {beams}'}, batch {batch}"


def agreement(outputs: list[list[int]], reference: list[list[int]]) -> float:
    """Return the share of positions with the same token."""
    pairs = [(a, b) for row, other in zip(outputs, reference, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def throughput(shape_name: str, options: Options) -> Result:
    """Measure target tokens per second of all systems, encoder included; only times with correct tokens count."""
    shape = SHAPES[shape_name]
    systems, notes = options.available_systems(shape)
    rows, goals = [], []
    for beams, batch in options.settings:
        source = random_sources(shape, batch, SOURCE_LENGTH)
        results, variation = compare_systems(systems, source, beams, options.tokens, options.repeats)
        notes.append(f"{describe_setting(beams, batch)}: {variation}.")
        rows += results
        goals += throughput_goals(shape_name, beams, batch, results)
    header = [
        "setting",
        "system",
        "tokens/s",
        "range",
        "ours / it",
        "same tokens",
        "calls (discarded)",
        "other load",
    ]
    text = markdown_table(header, map(throughput_row, rows))
    return Result(text + "\n" + "".join(f"- {note}\n" for note in notes), goals, rows)


def compare_systems(
    systems: list[System], source: np.ndarray, beams: int, tokens: int, repeats: int
) -> tuple[list[dict[str, Any]], str]:
    """Measure systems in turn after a first call of each; return the figures of each and how varied its tokens are.

    Args:
        systems: The systems, ours first and the one whose tokens are the reference second.
        source: Token ids, int32 (batch, length).
        beams: Beam size.
        tokens: New tokens of each output.
        repeats: Calls of each system.
    """
    supported = [system for system in systems if system.supports(beams, len(source))]
    outputs = {system.name: system.generate(source, beams, tokens) for system in supported}
    reference = outputs[supported[:2][-1].name]
    calls = {system.name: generate_call(system, source, beams, tokens) for system in supported}
    samples = interleave_calls(calls, repeats)
    timings = {system_name: summarise(taken) for system_name, taken in samples.items()}
    shares = {system_name: agreement(ids, reference) for system_name, ids in outputs.items()}
    valid = {system.name: not system.exact or shares[system.name] == 1 for system in supported}
    rows = []
    for system_name, timing in timings.items():
        speeds = [len(source) * tokens / seconds for seconds in (timing.median, timing.slowest, timing.fastest)]
        equal = [ids == other for ids, other in zip(outputs[system_name], reference, strict=True)]
        row = {"setting": describe_setting(beams, len(source)), "system": system_name, "tokens_per_second": speeds[0]}
        row |= {"least": speeds[1], "most": speeds[2], "ours_over_it": speed_ratio(timings, valid, system_name)}
        row |= {"same_tokens": shares[system_name], "same_sequences": sum(equal) / len(equal)}
        row |= {"counts": valid[system_name], "calls": timing.calls, "discarded": timing.discarded}
        rows.append(row | {"foreign": max_other_load(samples[system_name])})
    return rows, describe_variation(reference)


def throughput_row(row: dict[str, Any]) -> list[str]:
    """Return a row of the table; speeds that do not count are in brackets."""
    speed = f"{row['tokens_per_second']:.1f}"
    return [
        row["setting"],
        row["system"],
        speed if row["counts"] else f"({speed})",
        f"{row['least']:.1f} to {row['most']:.1f}",
        "-" if row["ours_over_it"] is None else f"{row['ours_over_it']:.2f}",
        f"{row['same_tokens']:.1%}",
        f"{row['calls']} ({row['discarded']})",
        row["foreign"],
    ]


def describe_variation(outputs: list[list[int]]) -> str:
    """Return how varied outputs are, as a sentence."""
    minimum, middle, maximum = distinct_token_counts(outputs)
    verdict = "outputs vary" if outputs_vary(outputs) else "OUTPUTS DO NOT VARY, so equal tokens prove little"
    return f"{minimum} to {maximum} distinct tokens of {len(outputs[0])}, median {middle}: {verdict}"


def generate_call(system: System, source: np.ndarray, beams: int, tokens: int) -> Callable[[], Any]:
    """Return a function that generates from a source."""
    return lambda: system.generate(source, beams, tokens)


def speed_ratio(timings: dict[str, Timing], valid: dict[str, bool], system_name: str) -> float | None:
    """Return our speed divided by another system's; None if the tokens of either are wrong."""
    ours = next(iter(timings))
    return timings[system_name].median / timings[ours].median if valid[ours] and valid[system_name] else None


def throughput_goals(shape_name: str, beams: int, batch: int, rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals of a setting for all available peers, from the rows of `compare_systems`."""
    goals = []
    for peer, (goal, aim) in RATIOS.get((beams, batch), {}).items():
        row = next((row for row in rows if row["system"].startswith(peer)), None)
        if row is not None:
            goal_name = f"{shape_name}, {describe_setting(beams, batch)}: speed / {row['system']}"
            goals.append(Goal(goal_name, row["ours_over_it"], goal, aim))
    return goals


def growth(shape_name: str, options: Options) -> Result:
    """Measure time per token around position 512 divided by that around position 16, greedy, one source."""
    shape = SHAPES[shape_name]
    systems, notes = options.available_systems(shape)
    source = random_sources(shape, 1, SOURCE_LENGTH)
    systems[0].token_timestamps(source, FAR_WINDOW[1])  # traces all cache capacities
    pairs: dict[str, list[tuple[dict[int, float], Sample]]] = {system.name: [] for system in systems}
    for _ in range(max(2, options.repeats // 2)):
        for system in systems:
            pairs[system.name].append(time_call(lambda system=system: system.token_timestamps(source, FAR_WINDOW[1])))
    data = {}
    for system_name, calls in pairs.items():
        undisturbed = [timestamps for timestamps, sample in calls if is_undisturbed(sample)]
        discarded = len(calls) - len(undisturbed)
        counted = undisturbed or [timestamps for timestamps, _ in calls]
        near, far = (
            median(ms_per_token(timestamps, window) for timestamps in counted) for window in (NEAR_WINDOW, FAR_WINDOW)
        )
        data[system_name] = {
            "near_ms": near,
            "far_ms": far,
            "growth": far / near,
            "disturbed": discarded,
            "calls": len(calls),
        }
    rows = [
        (
            system_name,
            f"{d['near_ms']:.2f}",
            f"{d['far_ms']:.2f}",
            f"{d['growth']:.2f}",
            f"{d['calls']} ({d['disturbed']})",
        )
        for system_name, d in data.items()
    ]
    text = markdown_table(["system", "ms/token at 16", "at 512", "growth", "calls (disturbed)"], rows)
    goal = Goal(f"{shape_name}: time per token at 512 / at 16", data[systems[0].name]["growth"], 1.2, 1.05, lower=True)
    return Result(text + "\n" + "".join(f"- {note}\n" for note in notes), [goal], data)


def ms_per_token(timestamps: dict[int, float], window: tuple[int, int]) -> float:
    """Return the milliseconds per token between the first and the last token of a window."""
    first, last = window
    return (timestamps[last] - timestamps[first]) / (last - first) * 1e3


def kernels_per_step(shape_name: str, options: Options) -> Result:
    """Count the kernels of a decode step as built for this device and for a GPU, also of the T5 of mlx-examples."""
    shape, rows, data, goals = SHAPES[shape_name], [], [], []
    source = random_sources(shape, 1, SOURCE_LENGTH)

    def folder(layers: int) -> Path:
        return options.folder(replace(shape, layers=layers))

    def ours(beams: int) -> Callable[[int], Any]:
        return lambda layers: kernels.count_step_kernels(mt.load_model(folder(layers)), source, beams, (shape.eos_id,))

    counts = {f"mlx_transformer, beam {beams}": ours(beams) for beams in (1, 4)}
    if shape.family == "t5" and options.examples is not None:
        examples = options.examples
        counts["mlx-examples T5"] = lambda layers: kernels.count_mlx_examples_step_kernels(
            load_mlx_examples_model(examples, folder(layers) / "config.json"), source
        )
    for built, context in (("on this device", nullcontext), ("as on a GPU", kernels.simulate_gpu_kernels)):
        totals = {}
        for system_name, count in counts.items():
            with context():
                total, layer, outside = kernels.split_by_layer(count, shape.layers)
            totals[system_name] = total.total()
            rows.append((system_name, built, total.total(), layer.total(), outside.total()))
            data.append(
                {"system": system_name, "built": built, "total": total.total(), "layer": layer, "outside": outside}
            )
        if "mlx-examples T5" in totals:
            share = totals["mlx_transformer, beam 1"] / totals["mlx-examples T5"]
            goals.append(
                Goal(f"{shape_name}, kernels of a greedy step {built} / mlx-examples T5", share, 0.6, 0.4, True)
            )
    text = markdown_table(["system", "built", "kernels of a step", "in each layer", "outside the layers"], rows)
    return Result(text, goals, data)


def host_reads(shape_name: str, options: Options) -> Result:
    """Count how often the host waits for the device, per generated token and per step."""
    shape = SHAPES[shape_name]
    system = Ours(shape, options.folder(shape), options.dtype)
    rows, goals, data = [], [], []
    for beams, batch in options.settings:
        source = random_sources(shape, batch, SOURCE_LENGTH)
        with kernels.count_host_reads() as counts:
            outputs = system.generate(source, beams, options.tokens)
        if counts is None:
            return Result("- Skipped: decoding.running_search has no function `to_host`.\n", [], [])
        tokens = sum(map(len, outputs))
        row = {
            "setting": describe_setting(beams, batch),
            "reads": counts["reads"],
            "steps": counts["steps"],
            "tokens": tokens,
        }
        data.append(row)
        rows.append([*row.values(), f"{counts['reads'] / tokens:.3f}", f"{counts['reads'] / counts['steps']:.3f}"])
        if batch == 1:  # a larger batch has more tokens per read, so its ratio has no goal
            goal_name = f"{shape_name}, {describe_setting(beams, batch)}: reads by the host / token"
            goals.append(Goal(goal_name, counts["reads"] / tokens, 0.25, 0.1, lower=True))
    return Result(
        markdown_table(["setting", "reads", "steps", "tokens", "reads/token", "reads/step"], rows), goals, data
    )
