"""The speed that memory allows: bytes that a decode step must read, over the bandwidths of Apple's chips.

    python -m benchmarks.roofline [--shape marian | --model FOLDER] [--beam-size 4] [--batch 8] [--length 32]

A step reads the decoder's weights and the output layer once for all rows, and the keys and values of every sentence and
beam. No step can be faster than that; small models are slower still, for each of their kernels must be launched.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import mlx.nn as nn
from mlx.utils import tree_flatten

import mlx_transformer as mt
from benchmarks.conditions import conditions, facts
from benchmarks.kernels import as_on_a_gpu, step_kernels
from benchmarks.measure import table
from benchmarks.shapes import SHAPES, random_sources, write_checkpoint
from mlx_transformer.config.model import ModelConfig

# Peak GB/s; 70 to 85 % of it can be reached. From pages that collect them, not from the vendor's: M1 to M4 agree in two
# of these, M3 Ultra and M5 are approximate, and M5 Pro and Max are not known. "fewer cores": the smaller GPU of two.
CHIPS = {
    "M1": 68,
    "M1 Pro": 200,
    "M1 Max": 400,
    "M1 Ultra": 800,
    "M2": 100,
    "M2 Pro": 200,
    "M2 Max": 400,
    "M2 Ultra": 800,
    "M3": 100,
    "M3 Pro": 150,
    "M3 Max, fewer cores": 300,
    "M3 Max": 400,
    "M3 Ultra": 800,
    "M4": 120,
    "M4 Pro": 273,
    "M4 Max, fewer cores": 410,
    "M4 Max": 546,
    "M5": 150,
}


@dataclass(frozen=True)
class Format:
    """How numbers are stored.

    Attributes:
        itemsize: Bytes of a number that is not quantised, keys and values among them.
        bits: Bits of a quantised weight, None where none are.
        group_size: Quantised weights that share a scale and an offset.
    """

    itemsize: int
    bits: int | None = None
    group_size: int = 64

    def matrix(self, numbers: int) -> int:
        """Bytes of the numbers of a linear layer or an embedding."""
        if self.bits is None:
            return numbers * self.itemsize
        return numbers * self.bits // 8 + 2 * numbers // self.group_size * self.itemsize


FORMATS = {"float32": Format(4), "float16": Format(2), "8-bit": Format(2, 8), "4-bit": Format(2, 4)}


@dataclass(frozen=True)
class Work:
    """What is generated.

    Attributes:
        batch: Sentences.
        beams: Beams of each.
        source_length: Tokens of each source.
        length: Tokens of each beam so far.
    """

    batch: int = 1
    beams: int = 1
    source_length: int = 24
    length: int = 32


def step_bytes(config: ModelConfig, form: Format, work: Work) -> dict[str, int]:
    """Bytes that a decode step reads, by what they are; activations are left out, they stay near the processor."""
    stack = config.decoder
    width = stack.num_heads * (config.head_dims or config.dims // stack.num_heads)
    key_values = 2 * width * stack.num_layers * form.itemsize
    return {
        "layers": stack.num_layers * layer_bytes(config, form, width) + outer_bytes(config, form),
        "output": form.matrix(config.target_vocab_size * config.dims)
        + config.output_bias * config.target_vocab_size * form.itemsize,
        "cross keys and values": work.batch * work.source_length * key_values,
        "self keys and values": work.batch * work.beams * work.length * key_values,
    }


def layer_bytes(config: ModelConfig, form: Format, width: int) -> int:
    """The weights of a decoder layer but for the keys and values of cross-attention, which are made once a source."""
    dims, mlp = config.dims, config.decoder.mlp_dims
    out_bias = config.attention_bias if config.attention_out_bias is None else config.attention_out_bias
    inner = 1 + config.gated_mlp
    vectors = 4 * config.attention_bias * width + 2 * out_bias * dims  # queries, keys, values; queries; twice output
    vectors += config.mlp_bias * (inner * mlp + dims)
    vectors += 3 * norm_numbers(config)
    tables = config.decoder.bias_each_layer * relative_numbers(config)
    matrices = 4 * form.matrix(dims * width) + 2 * form.matrix(width * dims)
    return matrices + (inner + 1) * form.matrix(dims * mlp) + (vectors + tables) * form.itemsize


def outer_bytes(config: ModelConfig, form: Format) -> int:
    """The decoder's weights outside its layers; of tables of tokens and positions a step reads next to nothing."""
    stack = config.decoder
    norms = (stack.final_norm + (stack.embedding_norm != "none")) * norm_numbers(config)
    return (norms + (not stack.bias_each_layer) * relative_numbers(config)) * form.itemsize


def norm_numbers(config: ModelConfig) -> int:
    """Numbers of a normalisation."""
    return (1 + config.norm_bias) * config.dims


def relative_numbers(config: ModelConfig) -> int:
    """Numbers of a table of relative positions."""
    stack = config.decoder
    return stack.num_buckets * stack.num_heads if stack.positions == "relative" else 0


def held_bytes(model: mt.Transformer) -> dict[str, int]:
    """Bytes of the arrays that a model really holds, of those that a step reads."""
    layers = [
        array.nbytes
        for name, array in tree_flatten(model.decoder.parameters())
        if not name.startswith("positions")
        and "cross_attention.key" not in name
        and "cross_attention.value" not in name
    ]
    found = {"layers": sum(layers), "output": 0}
    parts: list[nn.Module] = [model.output] if "output" in model else [output_table(model)]
    found["output"] = sum(array.nbytes for part in parts for _, array in tree_flatten(part.parameters()))
    if "output_bias" in model:
        found["output"] += model.output_bias.nbytes
    return found


def output_table(model: mt.Transformer) -> nn.Module:
    """The embedding that a tied output layer is."""
    return model.source_embedding if model.config.share_embeddings else model.target_embedding


def bound(gigabytes_per_second: float, total: int, batch: int) -> float:
    """Tokens a second that a bandwidth allows: a step makes a token for each sentence, whatever its beams."""
    return gigabytes_per_second * 1e9 / total * batch


@click.command()
@click.option("--model", help="A trained model; with neither this nor --shape, the bundled one.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="A shape with random weights instead.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--beam-size", "beams", type=click.IntRange(1), default=1, show_default=True)
@click.option("--source-length", type=click.IntRange(1), default=24, show_default=True)
@click.option("--length", type=click.IntRange(1), default=32, show_default=True, help="Tokens of each output so far.")
def main(model: str | None, shape: str | None, batch: int, beams: int, source_length: int, length: int) -> None:
    """Print bytes of a step in several formats, and tokens a second that each chip's memory allows."""
    work = Work(batch, beams, source_length, length)
    with tempfile.TemporaryDirectory() as scratch:
        if shape:
            write_checkpoint(SHAPES[shape], Path(scratch))
        path = scratch if shape else model
        network, _ = mt.load(path)
        print(conditions(model=shape or (Path(model).name if model else "bundled"), **vars(work)))
        print(f"\n{bytes_table(network, work)}\n{bounds_table(network.config, work)}\n{kernels_text(path, work)}")


def bytes_table(model: mt.Transformer, work: Work) -> str:
    """Megabytes of a step in each format, and what the loaded arrays hold."""
    calculated = {name: step_bytes(model.config, form, work) for name, form in FORMATS.items()}
    parts = list(calculated["float32"])
    rows = [
        (name, *(f"{found[part] / 1e6:.2f}" for part in parts), f"{sum(found.values()) / 1e6:.2f}")
        for name, found in calculated.items()
    ]
    held = held_bytes(model)
    dtype = str(model.dtype).removeprefix("mlx.core.")
    shown = (f"{held['layers'] / 1e6:.2f}", f"{held['output'] / 1e6:.2f}", "-", "-", "-")
    return table(["MB of a step", *parts, "all"], [*rows, (f"as loaded here, {dtype}", *shown)])


def bounds_table(config: ModelConfig, work: Work) -> str:
    """Tokens a second that each chip's memory allows."""
    totals = [sum(step_bytes(config, form, work).values()) for form in FORMATS.values()]
    rows = [
        (chip, speed, *(f"{bound(speed, total, work.batch):.0f}" for total in totals)) for chip, speed in CHIPS.items()
    ]
    return table(["chip", "GB/s", *(f"{name}, tokens/s at most" for name in FORMATS)], rows)


def kernels_text(path: str | None, work: Work) -> str:
    """How many kernels a step launches, as it is here and as on a GPU."""
    counts = []
    for context in (nullcontext, as_on_a_gpu):
        network, _ = mt.load(path)
        config = network.config
        tokens = min(config.source_vocab_size, config.target_vocab_size)
        source = random_sources(SHAPES["t5"], work.batch, min(work.source_length, config.encoder.max_length)) % tokens
        with context():
            counts.append(step_kernels(network, source, work.beams, (config.eos_id,)).total())
    return f"Kernels of a step: {counts[0]} as it is on the {facts()['device']}, {counts[1]} as on a GPU."


if __name__ == "__main__":
    main()
