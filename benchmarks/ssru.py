"""Speed, size and memory of a student with an SSRU beside a decoder with self-attention, with and without a shortlist.

    python -m benchmarks.ssru

Random weights in the shape of Firefox's small students. The end token is suppressed, so all targets are equally long.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.measure import interleave_calls, markdown_table, max_other_load, set_device, set_threads, summarise
from mlx_transformer.model.precision import parse_dtype

STACK = mt.StackConfig(num_layers=6, num_heads=8, mlp_dims=1536, max_length=512)
STUDENT = mt.ModelConfig(32000, 32000, dims=256, encoder=STACK, decoder=replace(STACK, num_layers=2))
KINDS = ("attention", "ssru")


def make_student(kind: str, dtype: str) -> mt.Transformer:
    """Return a student with random weights, ready to generate."""
    mx.random.seed(0)
    model = mt.Transformer(replace(STUDENT, decoder_self_attention=kind))
    model.set_dtype(parse_dtype(dtype))
    model.eval()
    mx.eval(model.parameters())
    return model


def generate(model: mt.Transformer, source: mx.array, tokens: int, beams: int, shortlist: np.ndarray | None) -> None:
    """Generate the same number of tokens for all sources."""
    search = mt.SearchConfig(beam_size=beams, max_tokens=tokens, suppress_ids=model.config.eos_ids)
    mt.generate_ids(model, source, search, scores=False, shortlist=shortlist)


def peak_memory(call: Callable[[], None]) -> float:
    """Return the peak of MLX's memory in a call, in MB."""
    mx.clear_cache()
    mx.reset_peak_memory()
    call()
    return mx.get_peak_memory() / 1e6


@click.command()
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 64), help="Sentences; repeatable.")
@click.option("--beams", default=1, help="Beams.")
@click.option("--source-tokens", default=24, help="Tokens of each source.")
@click.option("--tokens", default=32, help="Tokens of each target.")
@click.option("--shortlist-size", default=2048, help="Tokens of the shortlist.")
@click.option("--dtype", default="float32", help="Data type.")
@click.option("--device", default="cpu", help="cpu or gpu.")
@click.option("--threads", default=1, help="Threads of the BLAS.")
@click.option("--repeats", default=5, help="Calls of each kind that count.")
def main(
    batches: tuple[int, ...],
    beams: int,
    source_tokens: int,
    tokens: int,
    shortlist_size: int,
    dtype: str,
    device: str,
    threads: int,
    repeats: int,
) -> None:
    """Measure and print the tables."""
    set_device(device)
    set_threads(threads)
    settings = {"beams": beams, "source": source_tokens, "tokens": tokens, "shortlist": shortlist_size, "dtype": dtype}
    click.echo(conditions(**settings))
    models = {kind: make_student(kind, dtype) for kind in KINDS}
    rng = np.random.default_rng(0)
    shortlist = np.sort(rng.choice(np.arange(3, STUDENT.target_vocab_size), shortlist_size, replace=False))
    rows = []
    for batch in batches:
        source = mx.array(rng.integers(3, STUDENT.source_vocab_size, (batch, source_tokens)), mx.int32)
        calls = {
            (kind, name): partial(generate, model, source, tokens, beams, ids)
            for kind, model in models.items()
            for name, ids in (("none", None), (str(shortlist_size), shortlist))
        }
        memory = {names: peak_memory(call) for names, call in calls.items()}  # compiles, too
        for (kind, name), samples in interleave_calls(calls, repeats).items():
            timing = summarise(samples)
            speed = batch * tokens / timing.median
            peak = f"{memory[kind, name]:.0f}"
            step = f"{1e3 * timing.median / tokens:.2f}"
            rows.append([batch, kind, name, step, f"{speed:.0f}", peak, timing.calls, max_other_load(samples)])
    columns = ["batch", "decoder", "shortlist", "ms per step", "tokens per second", "peak MB", "calls", "other load"]
    click.echo(markdown_table(columns, rows))
    for kind, model in models.items():
        size = sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6
        cache = sum(layer.nbytes for layer in model.new_cache(1, 64).layers) / 1e3
        click.echo(f"{kind}: {model.num_parameters} parameters, {size:.1f} MB, cache of 64 positions {cache:.0f} kB")


if __name__ == "__main__":
    main()
