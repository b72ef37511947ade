"""Time and memory of converting and loading a checkpoint, compared with transformers on the same files.

    python -m benchmarks.convert [--size nllb] [--folder FOLDER]

The checkpoint has random weights and the shape of NLLB-200 600M. Each measurement runs in a separate process; before it
the files are read once, so that they are in the page cache, and pending writes are flushed to disk.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import click
import mlx.core as mx
import numpy as np

from benchmarks.conditions import conditions
from mlx_transformer.storage.safetensors import write_streamed

# Size -> dims, layers, heads, feed-forward width, vocabulary size and maximum bytes of a shard.
SIZES = {"nllb": (1024, 12, 16, 4096, 256206, 2**30), "tiny": (64, 2, 4, 128, 1000, 2**18)}
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
PEERS = ("torch", "transformers")
FORMATS = {"safetensors": "sharded safetensors", "bin": "one .bin"}
# (task, system) -> imports, which are not timed, and the timed program; `source` and `destination` are folders.
OURS = "import mlx_transformer as mt; mt.load"
THEIRS = "from transformers import M2M100ForConditionalGeneration as Model"
JOBS = {
    ("convert", "mlx_transformer"): (OURS, "mt.convert(source, destination)"),
    ("convert", "transformers"): (THEIRS, "Model.from_pretrained(source).save_pretrained(destination)"),
    ("load", "mlx_transformer"): (OURS, "model = mt.load_model(source)"),
    ("load", "transformers"): (THEIRS, "model = Model.from_pretrained(source)"),
    ("load and read all", "mlx_transformer"): (
        f"{OURS}; import mlx.core as mx, mlx.utils",
        "model = mt.load_model(source); mx.eval([a.sum() for _, a in mlx.utils.tree_flatten(model.parameters())])",
    ),
    ("load and read all", "transformers"): (
        THEIRS,
        "model = Model.from_pretrained(source); sums = [array.sum().item() for array in model.parameters()]",
    ),
}
NOTES = """
Ratios are to mlx_transformer. Times exclude imports; peaks include them and the pages of mapped files that were read.
convert: transformers loads and saves; mlx_transformer also hashes the files and syncs the result to disk.
load: transformers maps safetensors and reads weights only when they are used; the last task uses all of them.
"""
CHILD = """
import json, os, resource, sys, time
source, destination = sys.argv[1:]
def peak():  # on Linux getrusage would include the parent's memory
    if os.path.exists("/proc/self/status"):
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{imports}
before, started = peak(), time.perf_counter()
{program}
done = time.perf_counter()
os.sync()
print(json.dumps([done - started, time.perf_counter() - started, peak(), before]))
"""
SAVE_BIN = """
import sys, torch
from safetensors.torch import load_file
from pathlib import Path
source, destination = map(Path, sys.argv[1:])
state = {name: value for path in sorted(source.glob("*.safetensors")) for name, value in load_file(path).items()}
state |= dict.fromkeys(%r, state["model.shared.weight"])
torch.save(state, destination / "pytorch_model.bin")
"""


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="nllb", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--peer/--no-peer",
    "with_transformers",
    default=True,
    help="Also measure transformers, and .bin files, which need torch.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True),
    help="Folder for temporary files; it should be on a disk.",
)
def main(size: str, rounds: int, with_transformers: bool, folder: str | None) -> None:
    """Measure time and memory of converting and loading a random checkpoint; medians over rounds."""
    with_transformers = with_transformers and all(map(importlib.util.find_spec, PEERS))
    versions = {name: importlib.metadata.version(name) for name in PEERS} if with_transformers else {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        sources = {name: Path(scratch) / name for name in (FORMATS if with_transformers else ["safetensors"])}
        make_checkpoints(sources, *SIZES[size])
        sizes = {name: sum(path.stat().st_size for path in weight_files(source)) for name, source in sources.items()}
        print(conditions(size=size, rounds=rounds, files="warm", **versions))
        results: dict[tuple[str, str, str], list[list[float]]] = {}
        for _ in range(rounds):
            for (task, system), job in JOBS.items():
                for file_format, source in sources.items():
                    if with_transformers or system == "mlx_transformer":
                        row = measure(source, Path(scratch) / "destination", *job)
                        results.setdefault((task, file_format, system), []).append(row)
    report({key: list(map(median, zip(*rows, strict=True))) for key, rows in results.items()}, sizes)


def report(results: dict[tuple[str, str, str], list[float]], sizes: dict[str, int]) -> None:
    """Print a table with a row for each measurement and its ratios to ours."""
    print("| task | source | system | s | ratio | s, on disk | ratio | peak MB | ratio | peak / file | MB before |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (task, file_format, system), (*costs, before) in results.items():
        ours = results[task, file_format, "mlx_transformer"]
        ratios = [f"{cost / our_cost:.2f}" for cost, our_cost in zip(costs, ours, strict=False)]
        formatted = [f"{costs[0]:.2f}", f"{costs[1]:.2f}", f"{costs[2] / 1e6:.0f}"]
        cells = " | ".join(f"{cost} | {ratio}" for cost, ratio in zip(formatted, ratios, strict=True))
        file = f"{FORMATS[file_format]}, {sizes[file_format] / 1e6:.0f} MB"
        print(f"| {task} | {file} | {system} | {cells} | {costs[2] / sizes[file_format]:.2f} | {before / 1e6:.0f} |")
    print(NOTES)


def measure(source: Path, destination: Path, imports: str, program: str) -> list[float]:
    """Run a program in a separate process.

    Returns:
        Seconds, seconds until its output is on disk, peak memory in bytes, and memory in bytes before it started.
    """
    shutil.rmtree(destination, ignore_errors=True)
    os.sync()
    for path in weight_files(source):
        with path.open("rb") as file:
            while file.read(2**24):
                pass
    command = [sys.executable, "-c", CHILD.format(imports=imports, program=program), source, destination]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise click.ClickException(f"{program} failed: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def weight_files(source: Path) -> list[Path]:
    """Return the weight files of a checkpoint."""
    return sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])


def make_checkpoints(
    sources: dict[str, Path], dims: int, layers: int, heads: int, mlp: int, vocab: int, max_shard_bytes: int
) -> None:
    """Write the same random weights as a checkpoint of each format."""
    settings = {
        "model_type": "m2m_100",
        "architectures": ["M2M100ForConditionalGeneration"],
        "dtype": "float32",
        "vocab_size": vocab,
        "d_model": dims,
        "max_position_embeddings": 1024,
        "activation_function": "relu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    for side in ("encoder", "decoder"):
        settings |= {f"{side}_layers": layers, f"{side}_attention_heads": heads, f"{side}_ffn_dim": mlp}
    for source in sources.values():
        source.mkdir()
        (source / "config.json").write_text(json.dumps(settings))
    write_shards(sources["safetensors"], tensor_shapes(dims, layers, mlp, vocab), max_shard_bytes)
    if "bin" in sources:
        subprocess.run([sys.executable, "-c", SAVE_BIN % (TABLES,), *sources.values()], check=True)


def tensor_shapes(dims: int, layers: int, mlp: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a dense NLLB-200."""
    tensors: dict[str, tuple[int, ...]] = {"model.shared.weight": (vocab, dims)}
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        norms = [f"{side}.layer_norm"]
        for layer in (f"{side}.layers.{number}" for number in range(layers)):
            linears = {f"{name}.{part}_proj": (dims, dims) for name in attentions for part in ("q", "k", "v", "out")}
            for name, shape in (linears | {"fc1": (mlp, dims), "fc2": (dims, mlp)}).items():
                tensors |= {f"model.{layer}.{name}.weight": shape, f"model.{layer}.{name}.bias": shape[:1]}
            norms += [f"{layer}.{name}_layer_norm" for name in (*attentions, "final")]
        tensors |= {f"model.{norm}.{leaf}": (dims,) for norm in norms for leaf in ("weight", "bias")}
    return tensors


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], max_shard_bytes: int) -> None:
    """Write random weights as shards of at most `max_shard_bytes`, or of one larger tensor, with an index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and 4 * sum(map(np.prod, [*shards[-1].values(), shape])) > max_shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    generator, index = np.random.default_rng(0), {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_streamed(
            path, shard, mx.float32, lambda name: [mx.array(generator.random(shapes[name], np.float32) / 10 - 0.05)]
        )
        index |= dict.fromkeys(shard, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


if __name__ == "__main__":
    main()
