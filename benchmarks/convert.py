"""Time and memory of converting and of loading a checkpoint, beside transformers on the same files.

    python -m benchmarks.convert [--size nllb] [--folder FOLDER]

The checkpoint has random numbers and the shape of NLLB-200 600M. Each measurement is a process of its own; before it
the files are read once, so that they come from the system's cache, and what was written goes to the disk.
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

# Size -> dims, layers, heads, width of the feed-forward network, pieces, and bytes that a shard should have at most.
SIZES = {"nllb": (1024, 12, 16, 4096, 256206, 2**30), "tiny": (64, 2, 4, 128, 1000, 2**18)}
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
KINDS = {"safetensors": "sharded safetensors", "bin": "one .bin"}
# What is measured -> who does it, what is imported before, and the program; `source` and `destination` are folders.
OURS = "import mlx_transformer as mt; mt.load"
THEIRS = "from transformers import M2M100ForConditionalGeneration as Model"
JOBS = {
    ("convert", "mlx_transformer"): (OURS, "mt.convert(source, destination)"),
    ("convert", "transformers"): (THEIRS, "Model.from_pretrained(source).save_pretrained(destination)"),
    ("load", "mlx_transformer"): (OURS, "model, _ = mt.load(source)"),
    ("load", "transformers"): (THEIRS, "model = Model.from_pretrained(source)"),
    ("load and read all", "mlx_transformer"): (
        f"{OURS}; import mlx.core as mx, mlx.utils",
        "model, _ = mt.load(source); mx.eval([a.sum() for _, a in mlx.utils.tree_flatten(model.parameters())])",
    ),
    ("load and read all", "transformers"): (
        THEIRS,
        "model = Model.from_pretrained(source); sums = [array.sum().item() for array in model.parameters()]",
    ),
}
NOTES = """
Ratios are to mlx_transformer. Times leave imports out; peaks count them, and the pages of mapped files that were read.
convert: transformers loads and saves; mlx_transformer also hashes the files, and waits until all is on the disk.
load: transformers maps safetensors, so it reads numbers only as they are used; the last task uses them all.
"""
CHILD = """
import json, os, resource, sys, time
source, destination = sys.argv[1:]
def peak():  # what getrusage tells begins with the parent's memory on Linux
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
@click.option("--peer/--no-peer", default=True, help="Measure transformers too, and .bin files, which torch writes.")
@click.option("--folder", type=click.Path(file_okay=False, exists=True), help="Where to put files: on a disk.")
def main(size: str, rounds: int, peer: bool, folder: str | None) -> None:
    """Measure what converting and loading a random checkpoint costs; medians over rounds."""
    peer = peer and all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    peers = {name: importlib.metadata.version(name) for name in ("torch", "transformers")} if peer else {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        sources = {kind: Path(scratch) / kind for kind in (KINDS if peer else ["safetensors"])}
        make_checkpoints(sources, *SIZES[size])
        sizes = {kind: sum(path.stat().st_size for path in weights(source)) for kind, source in sources.items()}
        print(conditions(size=size, rounds=rounds, files="warm", **peers))
        found: dict[tuple[str, str, str], list[list[float]]] = {}
        for _ in range(rounds):
            for (task, who), job in JOBS.items():
                for kind, source in sources.items():
                    if peer or who == "mlx_transformer":
                        found.setdefault((task, kind, who), []).append(measure(source, Path(scratch) / "made", *job))
    report({key: list(map(median, zip(*rows, strict=True))) for key, rows in found.items()}, sizes)


def report(found: dict[tuple[str, str, str], list[float]], sizes: dict[str, int]) -> None:
    """Print a table: a row for each measurement, with the ratios of theirs to ours."""
    print("| task | from | by | s | ratio | s, on the disk | ratio | peak MB | ratio | of the file | before it MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (task, kind, who), (*costs, before) in found.items():
        ours = found[task, kind, "mlx_transformer"]
        ratios = [f"{cost / own:.2f}" for cost, own in zip(costs, ours, strict=False)]
        shown = [f"{costs[0]:.2f}", f"{costs[1]:.2f}", f"{costs[2] / 1e6:.0f}"]
        cells = " | ".join(f"{cost} | {ratio}" for cost, ratio in zip(shown, ratios, strict=True))
        file = f"{KINDS[kind]}, {sizes[kind] / 1e6:.0f} MB"
        print(f"| {task} | {file} | {who} | {cells} | {costs[2] / sizes[kind]:.2f} | {before / 1e6:.0f} |")
    print(NOTES)


def measure(source: Path, destination: Path, imports: str, program: str) -> list[float]:
    """What a program costs in a process of its own.

    Returns:
        Seconds, seconds until what it wrote is on the disk, bytes of memory at the peak, and those before it began.
    """
    shutil.rmtree(destination, ignore_errors=True)
    os.sync()
    for path in weights(source):
        with path.open("rb") as file:
            while file.read(2**24):
                pass
    command = [sys.executable, "-c", CHILD.format(imports=imports, program=program), source, destination]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{program} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def weights(source: Path) -> list[Path]:
    """The files of weights of a checkpoint."""
    return sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])


def make_checkpoints(
    sources: dict[str, Path], dims: int, layers: int, heads: int, mlp: int, vocab: int, most: int
) -> None:
    """Write the same random numbers as each kind of checkpoint."""
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
    write_shards(sources["safetensors"], shapes(dims, layers, mlp, vocab), most)
    if "bin" in sources:
        subprocess.run([sys.executable, "-c", SAVE_BIN % (TABLES,), *sources.values()], check=True)


def shapes(dims: int, layers: int, mlp: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """The tensors of an NLLB-200 without experts."""
    found: dict[str, tuple[int, ...]] = {"model.shared.weight": (vocab, dims)}
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        norms = [f"{side}.layer_norm"]
        for layer in (f"{side}.layers.{number}" for number in range(layers)):
            linears = {f"{name}.{part}_proj": (dims, dims) for name in attentions for part in ("q", "k", "v", "out")}
            for name, shape in (linears | {"fc1": (mlp, dims), "fc2": (dims, mlp)}).items():
                found |= {f"model.{layer}.{name}.weight": shape, f"model.{layer}.{name}.bias": shape[:1]}
            norms += [f"{layer}.{name}_layer_norm" for name in (*attentions, "final")]
        found |= {f"model.{norm}.{leaf}": (dims,) for norm in norms for leaf in ("weight", "bias")}
    return found


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], most: int) -> None:
    """Write random numbers as shards of at most so many bytes, or of one tensor, with an index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and 4 * sum(map(np.prod, [*shards[-1].values(), shape])) > most:
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
