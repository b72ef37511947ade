"""Speed limits set by memory: bytes that a decode step reads, divided by the bandwidth of Apple's chips.

    python -m benchmarks.roofline [--shape marian | --model FOLDER] [--beam-size 4] [--batch 8] [--length 32]

A step reads the decoder's weights and the output layer once for the whole batch, and the keys and values of every
sentence and beam. This bounds the speed from above; small models are limited by kernel launches before they reach it.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import mlx.nn as nn
from mlx.utils import tree_flatten

import mlx_transformer as mt
from benchmarks.conditions import conditions, environment
from benchmarks.kernels import count_step_kernels, simulate_gpu_kernels
from benchmarks.measure import markdown_table
from benchmarks.shapes import SHAPES, random_sources, write_checkpoint
from mlx_transformer.config.model import ModelConfig

# Peak bandwidth in GB/s; 70 to 85 % is achievable. Figures are from third-party lists: two of them agree on M1 to M4,
# M3 Ultra and M5 are approximate, M5 Pro and Max are unknown. "fewer cores" is the smaller of two GPU variants.
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
    """A storage format of weights.

    Attributes:
        itemsize: Bytes of an unquantised number, including keys and values.
        bits: Bits of a quantised weight; None if weights are not quantised.
        group_size: Number of quantised weights that share a scale and a bias.
    """

    itemsize: int
    bits: int | None = None
    group_size: int = 64

    def matrix_bytes(self, count: int) -> int:
        """Return the bytes of the matrix of a linear layer or an embedding with `count` numbers."""
        if self.bits is None:
            return count * self.itemsize
        return count * self.bits // 8 + 2 * count // self.group_size * self.itemsize


FORMATS = {"float32": Format(4), "float16": Format(2), "8-bit": Format(2, 8), "4-bit": Format(2, 4)}


@dataclass(frozen=True)
class Workload:
    """The sizes of a decode step.

    Attributes:
        batch: Number of sentences.
        beams: Beams of each sentence.
        source_length: Tokens of each source.
        length: Tokens of each beam so far.
    """

    batch: int = 1
    beams: int = 1
    source_length: int = 24
    length: int = 32


def step_bytes(config: ModelConfig, number_format: Format, workload: Workload) -> dict[str, int]:
    """Return the bytes that a decode step reads, by kind; activations are ignored, as they stay in caches."""
    stack = config.decoder
    projection_dims = stack.num_heads * (config.head_dims or config.dims // stack.num_heads)
    key_values = 2 * projection_dims * stack.num_layers * number_format.itemsize
    rows = workload.batch * workload.beams
    if config.decoder_self_attention == "attention":
        self_state = rows * workload.length * key_values
    else:  # one state for each row, in float32, of which that of average attention has a count
        self_state = rows * (config.dims + (config.average_attention is not None)) * stack.num_layers * 4
    return {
        "layers": stack.num_layers * layer_bytes(config, number_format, projection_dims)
        + non_layer_bytes(config, number_format),
        "output": number_format.matrix_bytes(config.target_vocab_size * config.dims)
        + config.output_bias * config.target_vocab_size * number_format.itemsize,
        "cross keys and values": workload.batch * workload.source_length * key_values,
        "self keys and values": self_state,
    }


def layer_bytes(config: ModelConfig, number_format: Format, projection_dims: int) -> int:
    """Return the bytes of a decoder layer without the projections of cross-attention that are used once per source."""
    dims, stack, average = config.dims, config.decoder, config.average_attention
    out_bias = config.attention_bias if config.attention_out_bias is None else config.attention_out_bias
    has_output = config.attention_projection
    # Biases of the query and output projection of cross-attention, then of self-attention or its alternative.
    vectors = config.attention_bias * projection_dims + has_output * out_bias * dims
    matrices = (1 + has_output) * number_format.matrix_bytes(dims * projection_dims)
    if config.decoder_self_attention == "ssru":
        vectors += (1 + config.ssru_projection) * dims
        matrices += (2 + config.ssru_projection) * number_format.matrix_bytes(dims * dims)
    elif average is not None:
        weights, biases = mlp_sizes(dims, average.mlp_dims, average.mlp_layers) if average.mlp_dims else (0, 0)
        vectors += config.mlp_bias * biases + 2 * average.gated * dims
        matrices += number_format.matrix_bytes(weights + 2 * average.gated * dims * dims)
    else:
        vectors += 3 * config.attention_bias * projection_dims + has_output * out_bias * dims
        matrices += (3 + has_output) * number_format.matrix_bytes(dims * projection_dims)
    weights, biases = mlp_sizes(dims, stack.mlp_dims, stack.mlp_layers, num_inputs=1 + config.gated_mlp)
    vectors += config.mlp_bias * biases
    vectors += 3 * num_norm_weights(config)
    tables = stack.bias_each_layer * num_relative_bias_weights(config)
    matrices += number_format.matrix_bytes(weights)
    return matrices + (vectors + tables) * number_format.itemsize


def mlp_sizes(dims: int, width: int, num_layers: int, num_inputs: int = 1) -> tuple[int, int]:
    """Return the numbers of weights and of biases of a feed-forward network."""
    num_hidden = num_layers - 2
    return ((num_inputs + 1) * dims + num_hidden * width) * width, (num_inputs + num_hidden) * width + dims


def non_layer_bytes(config: ModelConfig, number_format: Format) -> int:
    """Return the bytes of the decoder outside its layers, without embeddings, of which a step reads only a few rows."""
    stack = config.decoder
    norms = (stack.final_norm + (stack.embedding_norm != "none")) * num_norm_weights(config)
    return (norms + (not stack.bias_each_layer) * num_relative_bias_weights(config)) * number_format.itemsize


def num_norm_weights(config: ModelConfig) -> int:
    """Return the number of weights of a normalisation."""
    return (1 + config.norm_bias) * config.dims


def num_relative_bias_weights(config: ModelConfig) -> int:
    """Return the number of weights of a table of relative position biases."""
    stack = config.decoder
    return stack.num_buckets * stack.num_heads if stack.positions == "relative" else 0


def loaded_bytes(model: mt.Transformer) -> dict[str, int]:
    """Return the bytes of those arrays of a loaded model that a step reads."""
    layers = [
        array.nbytes
        for name, array in tree_flatten(model.decoder.parameters())
        if not name.startswith("positions")
        and "cross_attention.key" not in name
        and "cross_attention.value" not in name
    ]
    output_layer: nn.Module = model.output if "output" in model else output_embedding(model)
    output = sum(array.nbytes for _, array in tree_flatten(output_layer.parameters()))
    if "output_bias" in model:
        output += model.output_bias.nbytes
    return {"layers": sum(layers), "output": output}


def output_embedding(model: mt.Transformer) -> nn.Module:
    """Return the embedding that a tied output layer shares."""
    return model.source_embedding if model.config.share_embeddings else model.target_embedding


def max_tokens_per_second(gigabytes_per_second: float, total: int, batch: int) -> float:
    """Return the limit set by a bandwidth; a step yields one token for each sentence, whatever the beam size."""
    return gigabytes_per_second * 1e9 / total * batch


@click.command()
@click.option("--model", help="A trained model; default: the bundled one.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Use a shape with random weights instead.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--beam-size", "beams", type=click.IntRange(1), default=1, show_default=True)
@click.option("--source-length", type=click.IntRange(1), default=24, show_default=True)
@click.option("--length", type=click.IntRange(1), default=32, show_default=True, help="Tokens of each output so far.")
def main(model: str | None, shape: str | None, batch: int, beams: int, source_length: int, length: int) -> None:
    """Print the bytes of a decode step in several formats and the tokens per second that each chip's memory allows."""
    workload = Workload(batch, beams, source_length, length)
    with tempfile.TemporaryDirectory() as scratch:
        if shape:
            write_checkpoint(SHAPES[shape], Path(scratch))
        path = scratch if shape else model
        network = mt.load_model(path)
        print(conditions(model=shape or (Path(model).name if model else "bundled"), **vars(workload)))
        print(f"\n{bytes_table(network, workload)}\n{speed_limits_table(network.config, workload)}")
        print(kernels_text(path, workload))


def bytes_table(model: mt.Transformer, workload: Workload) -> str:
    """Format the megabytes of a step in each format, and those of the loaded arrays."""
    calculated = {name: step_bytes(model.config, number_format, workload) for name, number_format in FORMATS.items()}
    parts = list(calculated["float32"])
    rows = [
        (name, *(f"{sizes[part] / 1e6:.2f}" for part in parts), f"{sum(sizes.values()) / 1e6:.2f}")
        for name, sizes in calculated.items()
    ]
    loaded = loaded_bytes(model)
    dtype = str(model.dtype).removeprefix("mlx.core.")
    cells = (f"{loaded['layers'] / 1e6:.2f}", f"{loaded['output'] / 1e6:.2f}", "-", "-", "-")
    return markdown_table(["MB of a step", *parts, "all"], [*rows, (f"as loaded here, {dtype}", *cells)])


def speed_limits_table(config: ModelConfig, workload: Workload) -> str:
    """Format the tokens per second that each chip's memory allows."""
    totals = [sum(step_bytes(config, number_format, workload).values()) for number_format in FORMATS.values()]
    rows = [
        (chip, speed, *(f"{max_tokens_per_second(speed, total, workload.batch):.0f}" for total in totals))
        for chip, speed in CHIPS.items()
    ]
    return markdown_table(["chip", "GB/s", *(f"{name}, tokens/s at most" for name in FORMATS)], rows)


def kernels_text(path: str | None, workload: Workload) -> str:
    """Return a sentence with the number of kernels of a step, on this device and as on a GPU."""
    counts = []
    for context in (nullcontext, simulate_gpu_kernels):
        network = mt.load_model(path)
        config = network.config
        tokens = min(config.source_vocab_size, config.target_vocab_size)
        length = min(workload.source_length, config.encoder.max_length)
        source = random_sources(SHAPES["t5"], workload.batch, length) % tokens
        with context():
            counts.append(count_step_kernels(network, source, workload.beams, (config.eos_id,)).total())
    return f"Kernels of a step: {counts[0]} on the {environment()['device']}, {counts[1]} as on a GPU."


if __name__ == "__main__":
    main()
