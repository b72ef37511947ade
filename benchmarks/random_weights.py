"""Parts of the benchmark of generation that need no trained model: throughput, growth, kernels, reads by the host."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import mlx_transformer as mt
from benchmarks import kernels
from benchmarks.measure import Goal, Sample, Timing, greatest_foreign, in_turn, summary, table, timed, undisturbed
from benchmarks.peers import Ours, System, load_example, systems
from benchmarks.shapes import SHAPES, Shape, random_sources, variation, varied, write_checkpoint

SOURCE_LENGTH, TOKENS = 24, 32
NEAR, FAR = (8, 24), (504, 520)  # windows around positions 16 and 512
# (beams, batch) -> beside whom -> how many times as fast we must be, and should be.
RATIOS: dict[tuple[int, int], dict[str, tuple[float | None, float]]] = {
    (1, 1): {"transformers": (1.15, 1.4), "mlx-examples T5": (1.15, 1.4)},
    (1, 16): {"transformers": (1.2, 1.5)},
    (4, 1): {"transformers": (1.3, 1.6)},
    (4, 8): {"transformers": (1.0, 1.3), "CTranslate2 float32": (None, 1.0)},
}


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        scratch: A folder for checkpoints.
        examples: The folder t5 of mlx-examples, if there is one.
        dtype: What all systems compute in.
        device: "cpu" or "gpu".
        threads: Threads of each system.
        repeats: Calls of each system for a figure.
        settings: Pairs of beams and batch.
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
        """The checkpoint of a shape, written when it is first asked for."""
        folder = self.scratch / f"{shape.kind}-{shape.layers}-{shape.dims}"
        if not folder.exists():
            write_checkpoint(shape, folder)
        return folder

    def systems(self, shape: Shape) -> tuple[list[System], list[str]]:
        """See `peers.systems`."""
        return systems(shape, self.folder(shape), self.dtype, self.device, self.threads, self.examples)


@dataclass(frozen=True)
class Result:
    """What a part found.

    Attributes:
        text: Tables and notes in Markdown.
        goals: Its goals.
        data: The same figures as plain data.
    """

    text: str
    goals: list[Goal]
    data: Any


def describe(beams: int, batch: int) -> str:
    """A setting in words."""
    return f"{'greedy' if beams == 1 else f'beam {beams}'}, batch {batch}"


def agreement(outputs: list[list[int]], reference: list[list[int]]) -> float:
    """The share of positions with the same token."""
    pairs = [(a, b) for row, other in zip(outputs, reference, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def throughput(name: str, options: Options) -> Result:
    """Target tokens a second, the encoder included, beside the peers; a time counts only with the right tokens."""
    shape = SHAPES[name]
    found, notes = options.systems(shape)
    rows, goals, data = [], [], []
    for beams, batch in options.settings:
        able = [system for system in found if system.can(beams, batch)]
        source = random_sources(shape, batch, SOURCE_LENGTH)
        outputs = {system.name: system.generate(source, beams, options.tokens) for system in able}
        reference = outputs[(able[1] if len(able) > 1 else able[0]).name]
        notes.append(f"{describe(beams, batch)}: {distinct(reference)}.")
        calls = {system.name: caller(system, source, beams, options.tokens) for system in able}
        samples = in_turn(calls, options.repeats)
        shares = {system.name: agreement(outputs[system.name], reference) for system in able}
        right = {system.name: not system.exact or shares[system.name] == 1 for system in able}
        timings = {who: summary(taken) for who, taken in samples.items()}
        for who, timing in timings.items():
            speeds = [batch * options.tokens / seconds for seconds in (timing.median, timing.most, timing.least)]
            row = {"setting": describe(beams, batch), "system": who, "tokens_per_second": speeds[0]}
            row |= {"least": speeds[1], "most": speeds[2], "ours_over_it": ratio(timings, right, who)}
            row |= {"same_tokens": shares[who], "counts": right[who]}
            row |= {"calls": timing.counted, "discarded": timing.discarded, "foreign": greatest_foreign(samples[who])}
            data.append(row)
            rows.append(throughput_row(row))
        goals += throughput_goals(name, beams, batch, timings, right)
    header = [
        "setting",
        "system",
        "tokens/s",
        "least to most",
        "ours / it",
        "same tokens",
        "calls (discarded)",
        "others",
    ]
    return Result(table(header, rows) + "\n" + "".join(f"- {note}\n" for note in notes), goals, data)


def throughput_row(row: dict[str, Any]) -> list[str]:
    """A line of the table; what does not count is in brackets."""
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


def distinct(outputs: list[list[int]]) -> str:
    """What the check of the weights found."""
    least, middle, most = variation(outputs)
    verdict = "outputs vary" if varied(outputs) else "OUTPUTS DO NOT VARY, so equal tokens prove little"
    return f"{least} to {most} distinct tokens of {len(outputs[0])}, median {middle}: {verdict}"


def caller(system: System, source: np.ndarray, beams: int, tokens: int) -> Callable[[], Any]:
    """A call of a system."""
    return lambda: system.generate(source, beams, tokens)


def ratio(timings: dict[str, Timing], right: dict[str, bool], who: str) -> float | None:
    """How many times as fast we are as another; None where either has other tokens."""
    ours = next(iter(timings))
    return timings[who].median / timings[ours].median if right[ours] and right[who] else None


def throughput_goals(
    name: str, beams: int, batch: int, timings: dict[str, Timing], right: dict[str, bool]
) -> list[Goal]:
    """The goals of a setting, beside all peers that are there."""
    goals = []
    for peer, (goal, aim) in RATIOS.get((beams, batch), {}).items():
        who = next((who for who in timings if who.startswith(peer)), None)
        if who is not None:
            words = f"{name}, {describe(beams, batch)}: speed / {who}"
            goals.append(Goal(words, ratio(timings, right, who), goal, aim))
    return goals


def growth(name: str, options: Options) -> Result:
    """Time per token around position 512 over that around position 16, greedy, one source."""
    shape = SHAPES[name]
    found, notes = options.systems(shape)
    source = random_sources(shape, 1, SOURCE_LENGTH)
    found[0].stamps(source, FAR[1])  # traces all capacities
    pairs: dict[str, list[tuple[dict[int, float], Sample]]] = {system.name: [] for system in found}
    for _ in range(max(2, options.repeats // 2)):
        for system in found:
            pairs[system.name].append(timed(lambda system=system: system.stamps(source, FAR[1])))
    data = {}
    for who, calls in pairs.items():
        kept = [stamps for stamps, sample in calls if undisturbed(sample)]
        discarded = len(calls) - len(kept)
        windows = [[window(stamps, edges) for stamps in kept or [s for s, _ in calls]] for edges in (NEAR, FAR)]
        near, far = map(median, windows)
        data[who] = {"near_ms": near, "far_ms": far, "growth": far / near, "disturbed": discarded, "calls": len(calls)}
    rows = [
        (who, f"{d['near_ms']:.2f}", f"{d['far_ms']:.2f}", f"{d['growth']:.2f}", f"{d['calls']} ({d['disturbed']})")
        for who, d in data.items()
    ]
    text = table(["system", "ms/token at 16", "at 512", "growth", "calls (disturbed)"], rows)
    goal = Goal(f"{name}: time per token at 512 / at 16", data[found[0].name]["growth"], 1.2, 1.05, lower=True)
    return Result(text + "\n" + "".join(f"- {note}\n" for note in notes), [goal], data)


def window(stamps: dict[int, float], edges: tuple[int, int]) -> float:
    """Milliseconds per token between two tokens."""
    return (stamps[edges[1]] - stamps[edges[0]]) / (edges[1] - edges[0]) * 1e3


def count_kernels(name: str, options: Options) -> Result:
    """Kernels of one decode step, as the CPU builds it and as a GPU would, beside the T5 of mlx-examples."""
    shape, rows, data, goals = SHAPES[name], [], [], []
    source = random_sources(shape, 1, SOURCE_LENGTH)

    def folder(layers: int) -> Path:
        return options.folder(replace(shape, layers=layers))

    def ours(beams: int) -> Callable[[int], Any]:
        return lambda layers: kernels.step_kernels(mt.load(folder(layers))[0], source, beams, (shape.eos_id,))

    counts = {f"mlx_transformer, beam {beams}": ours(beams) for beams in (1, 4)}
    if shape.kind == "t5" and options.examples is not None:
        examples = options.examples
        counts["mlx-examples T5"] = lambda layers: kernels.example_step_kernels(
            load_example(examples, folder(layers) / "config.json"), source
        )
    for built, context in (("as it is here", nullcontext), ("as on a GPU", kernels.as_on_a_gpu)):
        totals = {}
        for who, count in counts.items():
            with context():
                whole, layer, outside = kernels.by_layer(count, shape.layers)
            totals[who] = whole.total()
            rows.append((who, built, whole.total(), layer.total(), outside.total()))
            data.append({"system": who, "built": built, "total": whole.total(), "layer": layer, "outside": outside})
        if "mlx-examples T5" in totals:
            share = totals["mlx_transformer, beam 1"] / totals["mlx-examples T5"]
            goals.append(Goal(f"{name}, kernels of a greedy step {built} / mlx-examples T5", share, 0.6, 0.4, True))
    text = table(["system", "built", "kernels of a step", "in each layer", "outside the layers"], rows)
    return Result(text, goals, data)


def reads(name: str, options: Options) -> Result:
    """How often the host waits for the device, for each generated token and for each step."""
    shape = SHAPES[name]
    system = Ours(shape, options.folder(shape), options.dtype)
    rows, goals, data = [], [], []
    for beams, batch in options.settings:
        source = random_sources(shape, batch, SOURCE_LENGTH)
        with kernels.counted_reads() as found:
            outputs = system.generate(source, beams, options.tokens)
        if found is None:
            return Result(
                "- Left out: decoding.beam_search has no function `to_host` through which all reads go.\n",
                [],
                [],
            )
        tokens = sum(map(len, outputs))
        row = {"setting": describe(beams, batch), "reads": found["reads"], "steps": found["steps"], "tokens": tokens}
        data.append(row)
        rows.append([*row.values(), f"{found['reads'] / tokens:.3f}", f"{found['reads'] / found['steps']:.3f}"])
        if batch == 1:  # with more sentences there are more tokens to a read, which says nothing
            words = f"{name}, {describe(beams, batch)}: reads by the host / token"
            goals.append(Goal(words, found["reads"] / tokens, 0.25, 0.1, lower=True))
    return Result(table(["setting", "reads", "steps", "tokens", "reads/token", "reads/step"], rows), goals, data)
