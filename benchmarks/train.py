"""How fast a training step is and what memory it needs, beside mlx.nn.Transformer and torch.nn.Transformer.

    python -m benchmarks.train [--device gpu --compute-dtype bfloat16] [--part loss]

On Linux preload OpenBLAS (see the README). Each system trains the same shape on the same batch; they take turns. Memory
is that of a process of its own, beyond what it has when all is imported.
"""

import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import numpy as np

from benchmarks.conditions import conditions, facts
from benchmarks.generate import attempt
from benchmarks.measure import Goal, goals_table, greatest_foreign, in_turn, set_device, set_threads, summary, table
from benchmarks.peers import torch_device
from benchmarks.random_weights import Result
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.training.train_state import TrainState

OURS, MLX, TORCH = "mlx_transformer", "mlx.nn.Transformer", "torch.nn.Transformer"
RATIOS = {MLX: (1.2, 1.2), TORCH: (0.75, 1.0)}  # how many times as fast as each we must be, and should be
LOSS = {"layers": 1, "vocab": 250_000, "rows": 64, "length": 64}
LOSS_DIMS = (256, 512)
LOSS_GIGABYTES = 2
WARM = 3  # updates before anything is measured: they compile, and allocate what stays
NOTES = """
All: pre-norm, tied embeddings, fixed positions, padding masks, dropout on embeddings, Adam, gradient clipped to norm 1.
- mlx.nn.Transformer drops inside the feed-forward network (wider) and not after it, and its attention has no biases. In
  bfloat16 its weights and Adam's averages are bfloat16 too; the other two keep them in float32.
- torch.nn's layers drop where ours do: outputs of sublayers. On CUDA its Adam is the fused one.
"""
Updates = Callable[[int], float]  # makes so many updates, and waits for them; the last loss


@dataclass(frozen=True)
class Options:
    """What every system is asked for.

    Attributes:
        layers: Of each stack.
        dims: Width.
        heads: Of attention.
        mlp: Width of the feed-forward network.
        vocab: Tokens of the one vocabulary.
        rows: Sentences of the batch.
        length: Tokens of each source and each target.
        dropout: Share that is dropped.
        smoothing: Label smoothing.
        device: "cpu" or "gpu".
        threads: Threads of each system.
        compute_dtype: What to compute in.
        tf32: Whether a GPU may round the factors of float32 products to TF32.
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
        """The model of this shape."""
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
        """How it is trained; no moving average, which the others have not."""
        none = ("no file",)
        asked = {"label_smoothing": self.smoothing, "compute_dtype": self.compute_dtype}
        return TrainingConfig(none, none, "", clip_norm=1.0, ema_decay=0.0, **asked)

    @property
    def batch(self) -> Batch:
        """Random sentences without padding; a target has its start token before it."""
        ids = np.random.default_rng(0).integers(3, self.vocab, (2, self.rows, self.length + 1), np.int32)
        ids[1, :, 0] = self.model.start_id
        return Batch(ids[0, :, 1:], ids[1])


def ours(options: Options) -> Updates:
    """This package."""
    trainer, batch = TrainState(Transformer(options.model), options.recipe), options.batch

    def update(count: int) -> float:
        for _ in range(count):
            loss, _ = trainer.update([batch])
        mx.eval(trainer.state)
        return loss.item()

    return update


def mlx_peer(options: Options) -> Updates:
    """MLX's own Transformer."""
    from benchmarks.mlx_model import MlxTrainer, MlxTransformer

    trainer, batch = MlxTrainer(MlxTransformer(options.model), options.recipe), options.batch

    def update(count: int) -> float:
        for _ in range(count):
            loss = trainer.update(batch)
        mx.eval(trainer.state)
        return loss.item()

    return update


def torch_peer(options: Options) -> Updates:
    """The layers of torch."""
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


SYSTEMS: dict[str, Callable[[Options], Updates]] = {OURS: ours, MLX: mlx_peer, TORCH: torch_peer}


def there(name: str) -> bool:
    """Whether a system is installed."""
    return name != TORCH or importlib.util.find_spec("torch") is not None


def prepare(options: Options) -> None:
    """Set device, threads and precision of products, before anything is computed."""
    os.environ["MLX_ENABLE_TF32"] = str(int(options.tf32))
    set_device(options.device)
    set_threads(options.threads)


def speed(options: Options, repeats: int, updates: int) -> Result:
    """Updates of each system in turn."""
    systems = {name: make(options) for name, make in SYSTEMS.items() if there(name)}
    for update in systems.values():
        update(WARM)
    samples = in_turn({name: lambda update=update: update(updates) for name, update in systems.items()}, repeats)
    seconds = {name: summary(taken).median / updates for name, taken in samples.items()}
    ratios = {name: taken / seconds[OURS] for name, taken in seconds.items()}
    tokens = options.rows * options.length
    rows = [
        (
            name,
            f"{1000 * taken:.2f}",
            f"{tokens / taken:.0f}",
            f"{ratios[name]:.2f}",
            " to ".join(f"{1000 * edge / updates:.2f}" for edge in summary(samples[name])[1:3]),
            greatest_foreign(samples[name]),
        )
        for name, taken in seconds.items()
    ]
    text = table(["system", "ms an update", "target tokens/s", "ours is x as fast", "least to most", "others"], rows)
    goals = [Goal(f"speed / {name}", ratios.get(name), *bars) for name, bars in RATIOS.items()]
    return Result(text + NOTES, goals, {"seconds": seconds})


def memory(options: Options) -> Result:
    """The peak of each system, in a process of its own."""
    peaks = {name: alone(name, options) for name in SYSTEMS if there(name)}
    rows = [(name, f"{peak / 1e6:.0f}", f"{peak / peaks[OURS]:.2f}") for name, peak in peaks.items()]
    goals = [
        Goal(f"peak memory / {name}", peaks[OURS] / peaks[name] if name in peaks else None, 1, 1, lower=True)
        for name in RATIOS
    ]
    return Result(table([f"{WARM} updates", "peak MB", "x ours"], rows), goals, {"bytes": peaks})


def loss(options: Options) -> Result:
    """The peak of an update with a large vocabulary, beyond weights and Adam's two averages of each."""
    rows, goals, found = [], [], {}
    for dims in LOSS_DIMS:
        large = replace(options, **LOSS, dims=dims, mlp=4 * dims, heads=dims // 64)
        state = 3 * 4 * Transformer(large.model).num_parameters
        peak = alone(OURS, large, updates=1)
        beyond = (peak - state) / 1e9
        rows.append((dims, f"{peak / 1e9:.2f}", f"{state / 1e9:.2f}", f"{beyond:.2f}"))
        name = f"{large.vocab} tokens, {large.rows * large.length} target tokens, width {dims}: GB beyond state"
        goals.append(Goal(name, beyond, LOSS_GIGABYTES, LOSS_GIGABYTES, lower=True))
        found[dims] = {"peak": peak, "state": state}
    logits = 4 * LOSS["vocab"] * LOSS["rows"] * LOSS["length"] / 1e9
    text = table(["width", "peak GB", "weights and Adam, GB", "beyond them, GB"], rows)
    return Result(f"{text}\nThe logits alone would be {logits:.1f} GB.\n", goals, found)


def alone(name: str, options: Options, updates: int = WARM) -> int:
    """Bytes that updates of a system add to a fresh process."""
    program = "import sys; from benchmarks.train import measure_peak; measure_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", program, name, json.dumps(asdict(options)), str(updates)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.splitlines()[-1])


def measure_peak(name: str, options: str, updates: str) -> None:
    """Make updates, and print what they added to the peak of this process: on a GPU, to that of its arrays."""
    asked = Options(**json.loads(options))
    prepare(asked)
    if name == TORCH:
        import torch  # so that it is no part of what is measured

        torch.zeros(1)
    mx.eval(mx.zeros(1) + 1)
    before = process_peak()
    SYSTEMS[name](asked)(int(updates))
    if asked.device == "cpu":
        print(process_peak() - before)
    elif name == TORCH:
        print(torch.cuda.max_memory_allocated())
    else:
        print(mx.get_peak_memory())


def process_peak() -> int:
    """Bytes of memory that this process had at most; what getrusage tells begins with the parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def shape_options(command: Callable) -> Callable:
    """An option of the command for each field of Options."""
    choices = {"device": ["cpu", "gpu"], "compute_dtype": ["float32", "float16", "bfloat16"]}
    for field in reversed(fields(Options)):
        name = field.name.replace("_", "-")
        kind = click.Choice(choices[field.name]) if field.name in choices else None
        flag = f"--{name}/--no-{name}" if field.default is False else f"--{name}"
        command = click.option(flag, type=kind, default=field.default, show_default=True)(command)
    return command


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(["speed", "memory", "loss"]), help="Default all.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Updates of a call.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True), help="Write all figures there too.")
@shape_options
def main(parts: tuple[str, ...], repeats: int, steps: int, file: str | None, **asked: Any) -> None:
    """Measure training steps: all parts, or those asked for."""
    options = Options(**asked)
    prepare(options)
    known = {"repeats": repeats, "steps": steps} | asked | versions(options.device)
    print(conditions(**known), flush=True)
    found: dict[str, Any] = {}
    goals: list[Goal] = []
    measures = {"speed": lambda: speed(options, repeats, steps), "memory": lambda: memory(options)}
    measures["loss"] = lambda: loss(options)
    for part in parts or measures:
        result = attempt(measures[part])
        print(f"\n## {part}\n\n{result.text}", flush=True)
        found[part] = result.data
        goals += result.goals
    print(f"\n## Goals\n\n{goals_table(goals)}")
    if file:
        told = [goal._asdict() | {"reached": goal.reached(goal.goal)} for goal in goals]
        Path(file).write_text(json.dumps({"conditions": facts() | known, "parts": found, "goals": told}, indent=1))


def versions(device: str) -> dict[str, str]:
    """The version of torch, and the GPU where one is used."""
    found = {"torch": importlib.metadata.version("torch") if there(TORCH) else "absent"}
    return found | ({"gpu": str(mx.device_info().get("device_name", "not known"))} if device == "gpu" else {})


if __name__ == "__main__":
    main()
