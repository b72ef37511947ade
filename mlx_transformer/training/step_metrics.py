"""What is told of a run while it goes on: loss, speed, memory and time left; and that the loss is a number still."""

import math
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer.data.batch_sampler import Batch, BatchPosition
from mlx_transformer.training.train_state import TrainState

HostMetrics = list[tuple[BatchPosition, Batch]]


class StepMetrics:
    """Counts steps between two lines of the log."""

    def __init__(self, trainer: TrainState) -> None:
        """Begin with the losses that a stopped run had not yet told."""
        self.trainer = trainer
        self._latest: tuple[int, HostMetrics] = (trainer.step, [])
        self._unchecked: mx.array | None = None
        self._restart()
        self.losses += [mx.array(loss) for loss in trainer.progress.pop("losses", [])]

    def _restart(self) -> None:
        """Forget the steps so far and start the clock."""
        self.started = time.perf_counter()
        self.tokens = self.steps = 0
        self.losses: list[mx.array] = []
        mx.reset_peak_memory()

    def add(self, read: HostMetrics, results: tuple[mx.array, mx.array]) -> None:
        """Count a step, which need not have been computed yet, and check the one before it, which has.

        Raises:
            ValueError: If the loss of that one is not finite.
        """
        self.check()
        self._unchecked, self.norm = results
        self._latest = self.trainer.step, read
        self.losses.append(self._unchecked)
        self.steps += 1
        pad_id = self.trainer.model.config.pad_id
        self.tokens += sum(int((batch.target[:, 1:] != pad_id).sum()) for _, batch in read)

    def check(self) -> None:
        """Wait for the last step.

        Raises:
            ValueError: If its loss is not finite.
        """
        if self._unchecked is not None and not mx.isfinite(self._unchecked).item():
            raise ValueError(self.diverged())
        self._unchecked = None

    def read(self) -> dict[str, Any]:
        """Mean loss, speed and so on since the last reading.

        Raises:
            ValueError: If the loss is not finite, or no gradient is finite any more.
        """
        self.check()
        trainer, steps = self.trainer, self.trainer.config.steps
        loss, norm = float(mx.stack(self.losses).mean()), float(self.norm)
        seconds = time.perf_counter() - self.started
        scale = {"loss_scale": float(trainer.scaling["scale"])} if trainer.scaling else {}
        if scale.get("loss_scale") == 1 and not math.isfinite(norm):
            raise ValueError(self.diverged())
        values = {
            "steps": steps,
            "loss": loss,
            "perplexity": math.exp(min(loss, 100)),
            "tokens_per_second": self.tokens * trainer.group.size() / seconds,
            "learning_rate": float(trainer.optimizer.learning_rate),
            "gradient_norm": norm if math.isfinite(norm) else None,
            "memory": mx.get_peak_memory(),
            "seconds_left": (steps - trainer.step) * seconds / self.steps,
        }
        self._restart()
        return values | scale

    def pass_over(self, seconds: float) -> None:
        """Do not count time that was spent on something else than steps."""
        self.started += seconds

    def diverged(self) -> str:
        """Where a loss stopped being a number, and what likely made it so."""
        (step, read), config = self._latest, self.trainer.config
        where = "; ".join(describe_batch(place, batch) for place, batch in read)
        if config.compute_dtype == "float16":
            likely = "float16 overflowed: compute in bfloat16 or float32"
        elif step <= config.warmup_steps or not config.clip_norm:
            likely = "the steps were too large: lower learning_rate, raise warmup_steps, or set clip_norm to 1"
        else:
            likely = "the steps were too large: lower learning_rate"
        before = "; last/ holds the model before" if (Path(config.output) / "last").exists() else ""
        return f"The loss is not finite any more at step {step}, {where}. Likely {likely}{before}."


def describe_batch(place: BatchPosition, batch: Batch) -> str:
    """Which batch it is, and the first of its pairs."""
    pairs = ", ".join(str(i) for i in place.members[:3]) + " and so on" * (len(place.members) > 3)
    shape = " x ".join(map(str, batch.source.shape))
    return f"batch {place.number} of epoch {place.epoch} ({shape} source tokens, pairs {pairs}, from 0)"
