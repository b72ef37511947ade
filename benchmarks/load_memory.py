"""Peak memory of loading a text encoder in 32, 16, 8 and 4 bits, from a checkpoint or a model folder.

    python -m benchmarks.load_memory [--scale 8] [--folder FOLDER]

The checkpoint has random weights and the shape of the encoder of T5 v1.1 XXL, 4,762 million parameters, with widths and
vocabulary divided by the scale. Each load runs in a process of its own. The CPU dequantises weights when it loads them;
with --keep-quantized it does not, as on a GPU, so that their memory can be measured. glibc keeps freed memory of up to
32 MB for later, in pieces; MALLOC_MMAP_THRESHOLD_=131072 in the environment lets it return it, as other systems do.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import mlx.core as mx

import mlx_transformer as mt
from benchmarks.conditions import conditions
from mlx_transformer.storage.safetensors import write_streamed

SCALES = ("1", "2", "4", "8", "16", "32")  # whose widths can be quantised in groups of 64
LAYERS = 24
HEAD_DIMS = 64
# Precision -> the arguments of `load_model`.
PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"dtype": "bfloat16", "quantize": 8},
    "4 bits": {"dtype": "bfloat16", "quantize": 4},
}
CHILD = """
import json, os, resource, sys
import mlx.core as mx
import mlx_transformer as mt
from mlx.utils import tree_flatten
from mlx_transformer.model import precision
source, options, keep_quantized = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "True"
if keep_quantized:
    precision.dequantize = lambda model: None
def peak():  # on Linux getrusage would include the parent's memory
    if os.path.exists("/proc/self/status"):
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import mlx_transformer.weights.convert
mx.eval(mx.zeros(9) + 1)
before = peak()
mx.reset_peak_memory()
active = mx.get_active_memory()
model = mt.load_model(source, **options)
size = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
print(json.dumps([size, mx.get_peak_memory() - active, peak() - before]))
"""


@click.command()
@click.option("--scale", type=click.Choice(SCALES), default="8", show_default=True, help="Divisor of all widths.")
@click.option("--stored", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--keep-quantized", is_flag=True, help="Do not dequantise weights on the CPU.")
@click.option("--folder", type=click.Path(file_okay=False, exists=True), help="Folder for temporary files.")
def main(scale: str, stored: str, keep_quantized: bool, folder: str | None) -> None:
    """Measure the peak memory of loading a random encoder."""
    threshold = os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")
    print(conditions(scale=scale, stored=stored, keep_quantized=keep_quantized, mmap_threshold=threshold))
    print("| source | precision | result MB | MLX peak / result | resident peak / result |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint, model_folder = Path(scratch) / "checkpoint", Path(scratch) / "model"
        write_encoder(checkpoint, int(scale), mx.float32 if stored == "float32" else mx.bfloat16)
        mt.convert(checkpoint, model_folder)
        for name, source in (("checkpoint", checkpoint), ("model folder", model_folder)):
            for precision in PRECISIONS:
                size, peak, resident = measure(source, precision, keep_quantized)
                print(f"| {name} | {precision} | {size / 1e6:.1f} | {peak / size:.2f} | {resident / size:.2f} |")


def measure(source: Path, precision: str, keep_quantized: bool) -> list[int]:
    """Load a model in a separate process; return the bytes of its arrays, and by how much both peaks grew."""
    options = json.dumps(PRECISIONS[precision])
    command = [sys.executable, "-c", CHILD, source, options, str(keep_quantized)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    if result.returncode:
        raise click.ClickException(f"Loading failed: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def write_encoder(folder: Path, scale: int, dtype: mx.Dtype) -> None:
    """Write a random checkpoint with the shape of the encoder of T5 v1.1 XXL, its widths divided by the scale."""
    dims, mlp, heads, vocab = 4096 // scale, 10240 // scale, 64 // scale, 32128 // scale
    settings = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **{"d_model": dims, "d_ff": mlp, "d_kv": HEAD_DIMS, "num_heads": heads, "vocab_size": vocab},
        **{"num_layers": LAYERS, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    }
    shapes = {"shared.weight": (vocab, dims), "encoder.final_layer_norm.weight": (dims,)}
    for layer in (f"encoder.block.{number}.layer" for number in range(LAYERS)):
        shapes |= {f"{layer}.0.SelfAttention.{name}.weight": (heads * HEAD_DIMS, dims) for name in "qkv"}
        shapes |= {f"{layer}.0.SelfAttention.o.weight": (dims, heads * HEAD_DIMS)}
        shapes |= {f"{layer}.1.DenseReluDense.{name}.weight": (mlp, dims) for name in ("wi_0", "wi_1")}
        shapes |= {f"{layer}.1.DenseReluDense.wo.weight": (dims, mlp)}
        shapes |= {f"{layer}.{number}.layer_norm.weight": (dims,) for number in (0, 1)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    write_streamed(folder / "model.safetensors", shapes, dtype, lambda name: [0.1 * mx.random.normal(shapes[name])])


if __name__ == "__main__":
    main()
