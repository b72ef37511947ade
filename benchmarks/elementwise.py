"""Time of activations, softmax, log-sum-exp and top-k on a CPU: MLX's own functions, and those of this package.

    python -m benchmarks.elementwise [--rows 32] [--vocab 32001] [--mlp-dims 2048] [--repeats 50]

Rows are sentences x beams of a decode step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import click
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.conditions import conditions
from benchmarks.measure import interleave_calls, markdown_table, set_device, summarise
from mlx_transformer.model import exponential
from mlx_transformer.model.reductions import top_k

CANDIDATES = 8  # of a search with 4 beams
Function = Callable[[mx.array], mx.array]


class Comparison(NamedTuple):
    """A function of MLX and this package's function with the same result.

    Attributes:
        name: What they compute.
        mlx: MLX's function.
        ours: This package's.
        columns: "mlp" or "vocab", for functions of hidden values or logits.
    """

    name: str
    mlx: Function
    ours: Function
    columns: str


COMPARISONS = (
    Comparison("silu", nn.silu, exponential.silu, "mlp"),
    Comparison("gelu", nn.gelu, exponential.gelu, "mlp"),
    Comparison("gelu_tanh", nn.gelu_approx, exponential.gelu_tanh, "mlp"),
    Comparison("quick_gelu", nn.gelu_fast_approx, exponential.quick_gelu, "mlp"),
    Comparison("softmax", lambda x: mx.softmax(x, axis=-1), exponential.softmax, "mlp"),
    Comparison("logsumexp", lambda x: mx.logsumexp(x, axis=-1, keepdims=True), exponential.logsumexp, "vocab"),
    Comparison(
        f"the {CANDIDATES} largest",
        lambda x: mx.sort(mx.topk(x, CANDIDATES, axis=-1), axis=-1)[:, ::-1],
        lambda x: top_k(x, CANDIDATES)[0],
        "vocab",
    ),
)


def compare_functions(rows: int, sizes: dict[str, int], repeats: int) -> list[dict[str, Any]]:
    """Return the milliseconds of each pair of functions, and the largest difference of their results."""
    table = []
    for comparison in COMPARISONS:
        x = mx.random.normal((rows, sizes[comparison.columns]), scale=3, key=mx.random.key(0))
        mx.eval(x)
        functions = {"MLX": mx.compile(comparison.mlx), "ours": mx.compile(comparison.ours)}
        results = [np.array(function(x)) for function in functions.values()]
        samples = interleave_calls({name: evaluate_call(call, x) for name, call in functions.items()}, repeats)
        milliseconds = {f"{name}, ms": round(summarise(taken).median * 1e3, 3) for name, taken in samples.items()}
        difference = f"{np.abs(results[0] - results[1]).max():.0e}"
        table.append({"function": comparison.name, **milliseconds, "largest difference": difference})
    return table


def evaluate_call(function: Function, x: mx.array) -> Callable[[], None]:
    """Return a function that computes another function of x."""
    return lambda: mx.eval(function(x))


@click.command()
@click.option("--rows", type=click.IntRange(1), default=32, show_default=True)
@click.option("--vocab", type=click.IntRange(CANDIDATES), default=32001, show_default=True)
@click.option("--mlp-dims", type=click.IntRange(1), default=2048, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=50, show_default=True)
def main(rows: int, vocab: int, mlp_dims: int, repeats: int) -> None:
    """Print the time of each function of MLX and of this package's."""
    set_device("cpu")
    print(conditions(rows=rows, vocab=vocab, mlp_dims=mlp_dims, repeats=repeats))
    table = compare_functions(rows, {"vocab": vocab, "mlp": mlp_dims}, repeats)
    print(markdown_table([*table[0]], [row.values() for row in table]), end="")


if __name__ == "__main__":
    main()
