"""Memory and speed of fine-tuning with LoRA on float, 8-bit and 4-bit bases, compared with PEFT on torch, on the CPU.

    python -m benchmarks.lora [--steps 3] [--system "4 bits"] [--shape small] [--folder FOLDER]

The model has random weights and by default the shape of NLLB-200 600M. All systems train adapters of the same rank on
the same layers with the same batch, and recompute activations. Each one runs in a process of its own, one after the
other; PEFT needs about 8 GB. Temporary files need 6 GB.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import click
import mlx.core as mx
import numpy as np

import mlx_transformer as mt
from benchmarks.conditions import conditions
from benchmarks.measure import markdown_table, system_cpu_seconds
from benchmarks.train import peak_memory
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.adapters import add_adapter
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained.loading import load_as_stored
from mlx_transformer.storage.safetensors import write_streamed
from mlx_transformer.training.builders import trainable_model
from mlx_transformer.training.train_state import TrainState

RANK, ALPHA = 16, 32.0
DROPOUT, SMOOTHING, LEARNING_RATE = 0.1, 0.1, 1e-4
PEFT = "PEFT, float32"
SYSTEMS = {"4 bits": 4, "8 bits": 8, "float32": None, PEFT: None}  # system -> argument `quantize` of mt.convert
PEFT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
WARMUP_UPDATES = 1  # updates before the measurement: they compile and allocate persistent memory
RESET_PEAK = Path("/proc/self/clear_refs")  # Linux; 5 resets the peak of the resident memory


@dataclass(frozen=True)
class Shape:
    """The sizes of an M2M100 model, as NLLB is one, and of a batch.

    Attributes:
        layers: Layers of each stack.
        dims: Width of the residual stream.
        heads: Attention heads.
        mlp: Width of the feed-forward network.
        vocab: Size of the shared vocabulary.
        rows: Sentences of the batch.
        length: Tokens of each source and each target.
    """

    layers: int
    dims: int
    heads: int
    mlp: int
    vocab: int
    rows: int = 32
    length: int = 32

    @property
    def batch(self) -> Batch:
        """Random sentences without padding; targets begin with the start token."""
        ids = np.random.default_rng(0).integers(4, self.vocab, (2, self.rows, self.length + 1), np.int32)
        ids[1, :, 0] = 2
        return Batch(ids[0, :, 1:], ids[1])


SHAPES = {
    "nllb-600m": Shape(layers=12, dims=1024, heads=16, mlp=4096, vocab=256_206),
    "small": Shape(layers=2, dims=128, heads=2, mlp=256, vocab=3000),
}


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Write a random checkpoint of M2M100 in the format of transformers, in float32, array by array."""
    settings: dict[str, Any] = {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"]}
    settings |= {"vocab_size": shape.vocab, "d_model": shape.dims, "max_position_embeddings": 1024}
    settings |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    settings |= {"dropout": DROPOUT, "attention_dropout": 0.0, "activation_dropout": 0.0}
    settings |= {"scale_embedding": True, "activation_function": "relu", "tie_word_embeddings": True}
    shapes: dict[str, tuple[int, ...]] = {"model.shared.weight": (shape.vocab, shape.dims)}
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        settings |= {f"{side}_layers": shape.layers, f"{side}_attention_heads": shape.heads}
        settings |= {f"{side}_ffn_dim": shape.mlp, f"{side}_layerdrop": 0.0}
        for layer in (f"model.{side}.layers.{number}" for number in range(shape.layers)):
            for name in (f"{attention}.{part}_proj" for attention in attentions for part in ("q", "k", "v", "out")):
                shapes |= {f"{layer}.{name}.weight": (shape.dims, shape.dims), f"{layer}.{name}.bias": (shape.dims,)}
            for name, size in (("fc1", (shape.mlp, shape.dims)), ("fc2", (shape.dims, shape.mlp))):
                shapes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
            for name in (f"{name}_layer_norm" for name in (*attentions, "final")):
                shapes |= {f"{layer}.{name}.{part}": (shape.dims,) for part in ("weight", "bias")}
        shapes |= {f"model.{side}.layer_norm.{part}": (shape.dims,) for part in ("weight", "bias")}

    def random_array(name: str) -> list[mx.array]:
        if name.endswith("norm.weight"):
            return [mx.ones(shapes[name])]
        return [mx.zeros(shapes[name]) if name.endswith("bias") else mx.random.normal(shapes[name], scale=0.02)]

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    mx.random.seed(0)
    write_streamed(folder / "model.safetensors", shapes, mx.float32, random_array)


def training_config(folder: Path) -> TrainingConfig:
    """Return the options of a run that trains an adapter of a model folder, without a moving average."""
    return TrainingConfig(
        train=("no file",),
        valid=("no file",),
        output="no folder",
        init=folder,
        lora_rank=RANK,
        lora_alpha=ALPHA,
        recompute=True,
        dropout=DROPOUT,
        label_smoothing=SMOOTHING,
        learning_rate=LEARNING_RATE,
        warmup_steps=1,
        schedule="constant",
        ema_decay=0.0,
    )


def our_model(folder: Path) -> Transformer:
    """Load a model folder and add an adapter, as a training run does."""
    config = training_config(folder)
    model = trainable_model(load_as_stored(folder)[0], config)
    model.freeze()
    add_adapter(model, cast(AdapterConfig, config.adapter))
    mx.eval(model.parameters())
    return model


def make_ours(folder: Path, shape: Shape) -> Callable[[], float]:
    """Return a function that runs an update of mlx_transformer and returns the loss."""
    state, batch = TrainState(our_model(folder), training_config(folder)), shape.batch

    def update() -> float:
        loss, _ = state.update([batch])
        mx.eval(state.state)
        return cast(float, loss.item())

    return update


def peft_model(folder: Path) -> Any:
    """Load a checkpoint with transformers and add an adapter of PEFT."""
    import peft
    import torch
    from transformers import M2M100ForConditionalGeneration

    base = M2M100ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PEFT_TARGETS)).train()


def make_peft(folder: Path, shape: Shape) -> Callable[[], float]:
    """Return a function that runs an update of PEFT on torch and returns the loss."""
    import torch

    model = peft_model(folder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9)
    source, target = (torch.from_numpy(array).long() for array in shape.batch)
    mask = torch.ones_like(source)

    def update() -> float:
        output = model(input_ids=source, attention_mask=mask, decoder_input_ids=target[:, :-1], use_cache=False)
        loss = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1), target[:, 1:].flatten(), label_smoothing=SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return cast(float, loss.item())

    return update


def measure_system(name: str, folder: str, shape_name: str, steps: str) -> None:
    """Run updates and print the memory and the times of this process as JSON."""
    mx.set_default_device(mx.cpu)
    shape = SHAPES[shape_name]
    if name == PEFT:  # on its default, a thread for each core
        import peft  # noqa: F401  # imported first, so that its memory is not measured
        import transformers.models.m2m_100.modeling_m2m_100  # noqa: F401
    update = (make_peft if name == PEFT else make_ours)(Path(folder), shape)
    loading = peak_memory()
    if RESET_PEAK.exists():
        RESET_PEAK.write_text("5")
    mx.reset_peak_memory()
    losses, seconds, cpu_seconds = [], [], []
    for _ in range(WARMUP_UPDATES + int(steps)):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(update())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    figures = {"loading": loading, "training": peak_memory(), "mlx": mx.get_peak_memory(), "losses": losses}
    print(json.dumps(figures | {"seconds": seconds, "cpu_seconds": cpu_seconds, "cpu": time.process_time()}))


def measure_in_subprocess(name: str, folder: Path, shape_name: str, steps: int) -> dict[str, Any]:
    """Return the result of `measure_system` in a process of its own."""
    program = "import sys; from benchmarks.lora import measure_system; measure_system(*sys.argv[1:])"
    command = [sys.executable, "-c", program, name, str(folder), shape_name, str(steps)]
    before = system_cpu_seconds()
    # Threads of OpenMP that spin while they wait would make torch many times slower where other programs run.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise click.ClickException(f"{name} failed: {result.stderr.strip().splitlines()[-1]}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return figures | {"other": other_load(before, system_cpu_seconds(), figures["cpu"])}


def other_load(before: tuple[float, float] | None, after: tuple[float, float] | None, own: float) -> str:
    """Return the share of all cores' time that other programs used, or "unknown"."""
    if before is None or after is None:
        return "unknown"
    busy, total = after[0] - before[0] - own, after[1] - before[1]
    return f"{max(busy, 0) / total:.0%}"


def row(name: str, figures: dict[str, Any], tokens: int) -> tuple[object, ...]:
    """Return a system's row of the table."""
    seconds, cpu_seconds = (median(figures[key][WARMUP_UPDATES:]) for key in ("seconds", "cpu_seconds"))
    sizes = (figures[key] / 1e9 for key in ("loading", "training", "mlx"))
    losses = figures["losses"]
    return (
        name,
        *(f"{size:.2f}" if size else "-" for size in sizes),
        f"{seconds:.1f}",
        f"{cpu_seconds:.1f}",
        f"{tokens / seconds:.1f}",
        f"{losses[0]:.3f} to {losses[-1]:.3f}",
        figures["other"],
    )


HEADER = [
    "system",
    "loading GB",
    "updates GB",
    "MLX GB",
    "s/update",
    "CPU s/update",
    "target tokens/s",
    "loss",
    "other load",
]


@click.command()
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="Updates that are measured.")
@click.option("--shape", "shape_name", type=click.Choice(list(SHAPES)), default="nllb-600m", show_default=True)
@click.option("--system", "systems", multiple=True, type=click.Choice(list(SYSTEMS)), help="Repeatable; default: all.")
@click.option("--folder", type=click.Path(file_okay=False, exists=True), help="Folder for temporary files.")
def main(steps: int, shape_name: str, systems: tuple[str, ...], folder: str | None) -> None:
    """Measure the peak of the resident memory while loading and in updates, and the speed of updates."""
    shape = SHAPES[shape_name]
    mx.set_default_device(mx.cpu)
    systems = systems or tuple(SYSTEMS)
    packages = ("torch", "transformers", "peft") if PEFT in systems else ()
    versions = {name: importlib.metadata.version(name) for name in packages}
    settings = {"shape": shape_name, "rank": RANK, "rows": shape.rows, "length": shape.length, "steps": steps}
    print(conditions(**settings, **versions), flush=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint, base = Path(scratch) / "checkpoint", Path(scratch) / "base"
        write_checkpoint(checkpoint, shape)
        for name in systems:
            if name != PEFT:
                mt.convert(checkpoint, base, quantize=SYSTEMS[name], force=True)
            figures = measure_in_subprocess(name, checkpoint if name == PEFT else base, shape_name, steps)
            rows.append(row(name, figures, shape.rows * shape.length))
            print(f"{name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
