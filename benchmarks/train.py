"""Speed and memory of a training step, compared with mlx.nn.Transformer and torch.nn.Transformer.

    python -m benchmarks.train [--device gpu --compute-dtype bfloat16] [--part loss]

On Linux install OpenBLAS (see docs/performance.md). All systems train the same shape on the same batch, in turn.
Memory is measured in a separate process for each system, without the memory of imports.
"""

import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np

from benchmarks.conditions import conditions, environment
from benchmarks.generate import try_part
from benchmarks.measure import (
    Goal,
    Result,
    goals_table,
    interleave_calls,
    markdown_table,
    max_other_load,
    set_device,
    set_threads,
    summarise,
)
from benchmarks.peers import torch_device
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.train_state import TrainState

OURS, MLX, TORCH = "mlx_transformer", "mlx.nn.Transformer", "torch.nn.Transformer"
RATIOS = {MLX: (1.2, 1.2), TORCH: (0.75, 1.0)}  # peer -> goal and aim for our speed divided by the peer's
LARGE_VOCABULARY = {"layers": 1, "vocab": 250_000, "rows": 64, "length": 64}
LOSS_DIMS = (256, 512)
MAX_LOSS_GIGABYTES = 2
WARMUP_UPDATES = 3  # updates before the measurement: they compile and allocate persistent memory
NOTES = """
All systems: pre-norm, tied embeddings, sinusoidal positions, padding masks, dropout of embeddings, Adam, gradients
clipped to norm 1.
- mlx.nn.Transformer applies dropout inside the feed-forward network instead of after it, and its attention has no
  biases. In bfloat16 its weights and Adam's moments are bfloat16 too; the other two keep them in float32.
- torch.nn applies dropout to the outputs of sublayers, as we do. On CUDA it uses fused Adam.
"""
Updates = Callable[[int], float]  # runs a number of updates and returns the last loss


@dataclass(frozen=True)
class Options:
    """Shape, batch and device of a measurement; each field is an option of the command.

    Attributes:
        layers: Layers of each stack.
        dims: Width of the residual stream.
        heads: Attention heads.
        mlp: Width of the feed-forward network.
        vocab: Size of the shared vocabulary.
        rows: Sentences of the batch.
        length: Tokens of each source and each target.
        dropout: Dropout rate.
        smoothing: Label smoothing.
        device: "cpu" or "gpu".
        threads: Threads of each system.
        compute_dtype: Dtype of the computation.
        tf32: Whether a GPU may use TF32 in float32 matrix products.
    """

    layers: int = 3
    dims: int = 256
    heads: int = 4
    mlp: int = 1024
    vocab: int = 8000
    rows: int = 64
    length: int = 24
    dropout: float = 0.1
    smoothing: float = 0.1
    device: str = "cpu"
    threads: int = 2
    compute_dtype: str = "float32"
    tf32: bool = False

    @property
    def model(self) -> ModelConfig:
        """The configuration of the model."""
        stack = StackConfig(
            num_layers=self.layers,
            num_heads=self.heads,
            mlp_dims=self.mlp,
            norm_first=True,
            final_norm=True,
            max_length=self.length,
        )
        return ModelConfig(self.vocab, self.vocab, self.dims, stack, stack, dropout=self.dropout)

    @property
    def recipe(self) -> TrainingConfig:
        """The configuration of the training, without a moving average, which the peers do not have."""
        return TrainingConfig(
            train=("no file",),
            valid=("no file",),
            output="no folder",
            label_smoothing=self.smoothing,
            compute_dtype=self.compute_dtype,
            clip_norm=1.0,
            ema_decay=0.0,
        )

    @property
    def batch(self) -> Batch:
        """Random sentences without padding; targets begin with the start token."""
        ids = np.random.default_rng(0).integers(3, self.vocab, (2, self.rows, self.length + 1), np.int32)
        ids[1, :, 0] = self.model.start_id
        return Batch(ids[0, :, 1:], ids[1])


def make_ours(options: Options) -> Updates:
    """Return updates of mlx_transformer."""
    trainer, batch = TrainState(Transformer(options.model), options.recipe), options.batch

    def update(count: int) -> float:
        for _ in range(count):
            loss, _ = trainer.update([batch])
        mx.eval(trainer.state)
        return loss.item()

    return update


def make_mlx_peer(options: Options) -> Updates:
    """Return updates of mlx.nn.Transformer."""
    from benchmarks.mlx_model import MlxTrainer, MlxTransformer

    trainer, batch = MlxTrainer(MlxTransformer(options.model), options.recipe), options.batch

    def update(count: int) -> float:
        for _ in range(count):
            loss = trainer.update(batch)
        mx.eval(trainer.state)
        return loss.item()

    return update


def make_torch_peer(options: Options) -> Updates:
    """Return updates of torch.nn.Transformer's layers."""
    import torch

    from benchmarks.torch_model import TorchTrainer, TorchTransformer

    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    device = torch_device(torch, options.device)
    trainer, batch = TorchTrainer(TorchTransformer(options.model), options.recipe, device), options.batch

    def update(count: int) -> float:
        for _ in range(count):
            loss, _ = trainer.update([batch])
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return update


SYSTEMS: dict[str, Callable[[Options], Updates]] = {OURS: make_ours, MLX: make_mlx_peer, TORCH: make_torch_peer}


def is_installed(name: str) -> bool:
    """Return whether a system is installed."""
    return name != TORCH or importlib.util.find_spec("torch") is not None


def set_up_device(options: Options) -> None:
    """Set device, threads and precision of matrix products; call it before any computation."""
    os.environ["MLX_ENABLE_TF32"] = str(int(options.tf32))
    set_device(options.device)
    set_threads(options.threads)


def speed(options: Options, repeats: int, updates: int, names: Iterable[str] = (OURS, MLX, TORCH)) -> Result:
    """Measure updates of systems in turn, ours among them."""
    systems = {name: SYSTEMS[name](options) for name in names if is_installed(name)}
    for update in systems.values():
        update(WARMUP_UPDATES)
    samples = interleave_calls(
        {name: lambda update=update: update(updates) for name, update in systems.items()}, repeats
    )
    seconds = {name: summarise(taken).median / updates for name, taken in samples.items()}
    ratios = {name: update_seconds / seconds[OURS] for name, update_seconds in seconds.items()}
    tokens = options.rows * options.length
    rows = [
        (
            name,
            f"{1000 * update_seconds:.2f}",
            f"{tokens / update_seconds:.0f}",
            f"{ratios[name]:.2f}",
            " to ".join(f"{1000 * edge / updates:.2f}" for edge in summarise(samples[name])[1:3]),
            max_other_load(samples[name]),
        )
        for name, update_seconds in seconds.items()
    ]
    text = markdown_table(["system", "ms/update", "target tokens/s", "speedup of ours", "range", "other load"], rows)
    goals = [Goal(f"speed / {name}", ratios.get(name), *bars) for name, bars in RATIOS.items()]
    return Result(text + NOTES, goals, {"seconds": seconds})


def memory(options: Options) -> Result:
    """Measure the peak memory of each system in a separate process."""
    peaks = {name: peak_in_subprocess(name, options) for name in SYSTEMS if is_installed(name)}
    rows = [(name, f"{peak / 1e6:.0f}", f"{peak / peaks[OURS]:.2f}") for name, peak in peaks.items()]
    goals = [
        Goal(f"peak memory / {name}", peaks[OURS] / peaks[name] if name in peaks else None, 1, 1, lower=True)
        for name in RATIOS
    ]
    return Result(markdown_table([f"{WARMUP_UPDATES} updates", "peak MB", "x ours"], rows), goals, {"bytes": peaks})


def loss(options: Options) -> Result:
    """Measure the peak memory of an update with a large vocabulary, without weights and Adam's two moments."""
    rows, goals, results = [], [], {}
    for dims in LOSS_DIMS:
        large = replace(options, **LARGE_VOCABULARY, dims=dims, mlp=4 * dims, heads=dims // 64)
        state = 3 * 4 * Transformer(large.model).num_parameters
        peak = peak_in_subprocess(OURS, large, updates=1)
        extra = (peak - state) / 1e9
        rows.append((dims, f"{peak / 1e9:.2f}", f"{state / 1e9:.2f}", f"{extra:.2f}"))
        name = f"{large.vocab} tokens, {large.rows * large.length} target tokens, width {dims}: GB beyond state"
        goals.append(Goal(name, extra, MAX_LOSS_GIGABYTES, MAX_LOSS_GIGABYTES, lower=True))
        results[dims] = {"peak": peak, "state": state}
    logits = 4 * LARGE_VOCABULARY["vocab"] * LARGE_VOCABULARY["rows"] * LARGE_VOCABULARY["length"] / 1e9
    text = markdown_table(["width", "peak GB", "weights and Adam, GB", "beyond, GB"], rows)
    return Result(f"{text}\nThe logits alone would be {logits:.1f} GB.\n", goals, results)


def peak_in_subprocess(name: str, options: Options, updates: int = WARMUP_UPDATES) -> int:
    """Return the bytes by which updates of a system raise the peak memory of a fresh process."""
    program = "import sys; from benchmarks.train import measure_peak; measure_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", program, name, json.dumps(asdict(options)), str(updates)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr.strip().splitlines()[-1]}")
    return int(result.stdout.splitlines()[-1])


def measure_peak(name: str, options: str, updates: str) -> None:
    """Run updates and print the bytes by which they raised the peak memory of this process, or that of the GPU."""
    parsed = Options(**json.loads(options))
    set_up_device(parsed)
    if name == TORCH:
        import torch  # imported first, so that its memory is not measured

        torch.zeros(1)
    mx.eval(mx.zeros(1) + 1)
    before = peak_memory()
    SYSTEMS[name](parsed)(int(updates))
    if parsed.device == "cpu":
        print(peak_memory() - before)
    elif name == TORCH:
        print(torch.cuda.max_memory_allocated())
    else:
        print(mx.get_peak_memory())


def peak_memory() -> int:
    """Return the peak memory of this process in bytes; on Linux getrusage would include the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def option_flags(command: Callable) -> Callable:
    """Add an option to a command for each field of `Options`."""
    choices = {"device": ["cpu", "gpu"], "compute_dtype": ["float32", "float16", "bfloat16"]}
    for field in reversed(fields(Options)):
        name = field.name.replace("_", "-")
        kind = click.Choice(choices[field.name]) if field.name in choices else None
        flag = f"--{name}/--no-{name}" if field.default is False else f"--{name}"
        command = click.option(flag, type=kind, default=field.default, show_default=True)(command)
    return command


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(["speed", "memory", "loss"]), help="Repeatable; default: all."
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Updates of each call.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, writable=True), help="Also write all figures to this file."
)
@option_flags
def main(parts: tuple[str, ...], repeats: int, steps: int, json_file: str | None, **values: Any) -> None:
    """Measure training steps: all parts, or those of --part."""
    options = Options(**values)
    set_up_device(options)
    settings = {"repeats": repeats, "steps": steps} | values | versions(options.device)
    print(conditions(**settings), flush=True)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    measures = {"speed": lambda: speed(options, repeats, steps), "memory": lambda: memory(options)}
    measures["loss"] = lambda: loss(options)
    for part in parts or measures:
        result = try_part(measures[part])
        print(f"\n## {part}\n\n{result.text}", flush=True)
        results[part] = result.data
        goals += result.goals
    print(f"\n## Goals\n\n{goals_table(goals)}")
    if json_file:
        goal_entries = [goal._asdict() | {"reached": goal.reached(goal.goal)} for goal in goals]
        Path(json_file).write_text(
            json.dumps({"conditions": environment() | settings, "parts": results, "goals": goal_entries}, indent=1)
        )


def versions(device: str) -> dict[str, str]:
    """Return the version of torch and, if one is used, the name of the GPU."""
    facts = {"torch": importlib.metadata.version("torch") if is_installed(TORCH) else "absent"}
    return facts | ({"gpu": str(mx.device_info().get("device_name", "unknown"))} if device == "gpu" else {})


if __name__ == "__main__":
    main()
