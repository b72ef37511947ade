"""Generation and memory by the limits of Metal's command buffers; each pair of limits runs in a process of its own.

MLX reads the limits once. `benchmarks.mac` runs this; on other back ends than Metal, the limits have no effect or
another one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlx.core as mx

from benchmarks.measure import interleave_calls, markdown_table, set_device, summarise
from benchmarks.peers import Ours
from benchmarks.random_weights import SOURCE_LENGTH, describe_setting, generate_call
from benchmarks.shapes import SHAPES, random_sources
from mlx_transformer.environment import COMMAND_BUFFER_LIMITS

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ((1, 1), (4, 1), (4, 16))  # beams and batch


class Limits(NamedTuple):
    """Limits of a command buffer: kernels, and millions of elements of their inputs."""

    kernels: int
    elements: int


# The first two are MLX's own: of basic and Pro chips, and of Max and Ultra chips.
PAIRS = ((40, 40), (50, 50), (100, 100), (200, 200), (1000, 50), (1000, 400), (2000, 2000))
LIMITS = tuple(Limits(*pair) for pair in PAIRS)


def measure_limits(
    shape: str, folder: Path, device: str, dtype: str, repeats: int, tokens: int
) -> list[dict[str, Any]]:
    """Return tokens per second and peak memory of each pair of limits."""
    arguments = [shape, str(folder), device, dtype, str(repeats), str(tokens)]
    rows = []
    for limits in LIMITS:
        command = [sys.executable, "-m", "benchmarks.command_buffers", *arguments]
        variables = os.environ | dict(zip(COMMAND_BUFFER_LIMITS, map(str, limits), strict=True))
        result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        rows.append(limits._asdict() | json.loads(result.stdout.splitlines()[-1]))
    return rows


def limits_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `measure_limits`."""
    return markdown_table([*rows[0]], [row.values() for row in rows])


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("device")
@click.argument("dtype")
@click.argument("repeats", type=int)
@click.argument("tokens", type=int)
def main(shape: str, folder: Path, device: str, dtype: str, repeats: int, tokens: int) -> None:
    """Print tokens per second and peak memory with the limits of this process as JSON."""
    set_device(device)
    system = Ours(SHAPES[shape], folder, dtype)
    results = {}
    for beams, batch in SETTINGS:
        call = generate_call(system, random_sources(SHAPES[shape], batch, SOURCE_LENGTH), beams, tokens)
        call()  # trace and compile
        setting = describe_setting(beams, batch)
        seconds = summarise(interleave_calls({setting: call}, repeats)[setting]).median
        results[f"tokens/s, {setting}"] = round(batch * tokens / seconds, 1)
    print(json.dumps(results | {"peak MB": round(mx.get_peak_memory() / 1e6, 1)}))


if __name__ == "__main__":
    main()
