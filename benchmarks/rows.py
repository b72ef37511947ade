"""Time of a matrix product by the number of rows, as in a decode step: sentences x beams times the decoder's weights.

    python -m benchmarks.rows [--device gpu] [--dims 512] [--mlp-dims 2048] [--repeats 5]

Kernels for few rows, and tiles for many, make the time a staircase: `mlx_transformer.decoding.batch_sizes` follows it.
`benchmarks.mac` runs this too.
"""

from collections.abc import Callable
from typing import Any

import click
import mlx.core as mx

from benchmarks.conditions import conditions
from benchmarks.measure import interleave_calls, markdown_table, set_device, summarise

ROWS = (1, 2, 4, 8, 12, 15, 16, 24, 32, 48, 63, 64, 96, 128)
LAYERS = 12  # pairs of matrices, one after the other, so that their weights do not stay in a small cache
BITS = 8
FORMATS = ("float32", "float16", f"{BITS} bits")


def measure_rows(dims: int, mlp_dims: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Return the microseconds of two products, dims to mlp_dims and back, by the number of rows and the format."""
    formats = FORMATS if device == "gpu" else FORMATS[:1]  # the CPU computes in float32
    rows = []
    for count in ROWS:
        calls = {name: products_call(name, count, dims, mlp_dims) for name in formats}
        for call in calls.values():
            call()  # compile
        samples = interleave_calls(calls, repeats)
        microseconds = {name: round(summarise(samples[name]).median / LAYERS * 1e6, 1) for name in formats}
        rows.append({"rows": count, **microseconds})
    return rows


def products_call(name: str, rows: int, dims: int, mlp_dims: int) -> Callable[[], None]:
    """Return a function that multiplies rows by the weights of all layers, each product depending on the former."""
    dtype = mx.float32 if name == "float32" else mx.float16
    shapes = [(mlp_dims, dims), (dims, mlp_dims)] * LAYERS
    weights = [mx.random.normal(shape, scale=shape[1] ** -0.5).astype(dtype) for shape in shapes]
    quantized = [mx.quantize(weight, bits=BITS) for weight in weights] if name not in ("float32", "float16") else None
    source = mx.random.normal((rows, dims)).astype(dtype)
    mx.eval(weights, quantized or [], source)

    def call() -> None:
        x = source
        for weight in quantized or weights:
            x = mx.quantized_matmul(x, *weight, bits=BITS) if quantized else x @ weight.T
        mx.eval(x)

    return call


def rows_table(rows: list[dict[str, Any]]) -> str:
    """Format the result of `measure_rows`."""
    return markdown_table([*rows[0]], [row.values() for row in rows])


@click.command()
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Default: the GPU if available.")
@click.option("--dims", default=512, show_default=True)
@click.option("--mlp-dims", default=2048, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def main(device: str | None, dims: int, mlp_dims: int, repeats: int) -> None:
    """Print the time of two matrix products by the number of rows."""
    device = device or ("gpu" if mx.is_available(mx.gpu) else "cpu")
    set_device(device)
    print(conditions(dims=dims, mlp_dims=mlp_dims))
    print(rows_table(measure_rows(dims, mlp_dims, repeats, device)), end="")


if __name__ == "__main__":
    main()
