"""What is told of a run while it goes on: loss, speed, memory and time left; and that the loss is a number still."""

import math
import time
from typing import Any

import mlx.core as mx

from mlx_transformer.data import Batch, Position
from mlx_transformer.trainer import Trainer

Read = list[tuple[Position, Batch]]


class Meter:
    """Counts steps between two lines of the log."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._unchecked: tuple[int, Read, mx.array] | None = None
        self._restart()

    def _restart(self) -> None:
        """Forget the steps so far and start the clock."""
        self.started = time.perf_counter()
        self.tokens = 0
        self.losses: list[mx.array] = []
        mx.reset_peak_memory()

    def add(self, read: Read, results: tuple[mx.array, mx.array]) -> None:
        """Count a step, which need not have been computed yet, and check the one before it, which has.

        Raises:
            ValueError: If the loss of that one is not finite.
        """
        self.check()
        loss, self.norm = results
        self._unchecked = self.trainer.step, read, loss
        self.losses.append(loss)
        pad_id = self.trainer.model.config.pad_id
        self.tokens += sum(int((batch.target[:, 1:] != pad_id).sum()) for _, batch in read)

    def check(self) -> None:
        """Wait for the last step.

        Raises:
            ValueError: If its loss is not finite.
        """
        if self._unchecked is not None:
            step, read, loss = self._unchecked
            self._unchecked = None
            if not mx.isfinite(loss).item():
                raise ValueError(diverged(step, read, self.trainer))

    def read(self) -> dict[str, Any]:
        """Mean loss, speed and so on since the last reading.

        Raises:
            ValueError: If the loss is not finite.
        """
        self.check()
        trainer, steps = self.trainer, self.trainer.config.steps
        loss = float(mx.stack(self.losses).mean())
        seconds = time.perf_counter() - self.started
        scale = {name: value.item() for name, value in trainer.scaling.items() if name == "scale"}
        values = {
            "steps": steps,
            "loss": loss,
            "perplexity": math.exp(min(loss, 100)),
            "tokens_per_second": self.tokens * trainer.group.size() / seconds,
            "learning_rate": trainer.optimizer.learning_rate.item(),
            "gradient_norm": self.norm.item(),
            "memory": mx.get_peak_memory(),
            "seconds_left": (steps - trainer.step) * seconds / len(self.losses),
        }
        self._restart()
        return values | {f"loss_{name}": value for name, value in scale.items()}

    def pass_over(self, seconds: float) -> None:
        """Do not count time that was spent on something else than steps."""
        self.started += seconds


def diverged(step: int, read: Read, trainer: Trainer) -> str:
    """Where a loss stopped being a number, and what likely made it so."""
    config = trainer.config
    where = "; ".join(
        f"batch {place.number} of epoch {place.epoch} ({' x '.join(map(str, batch.source.shape))} source tokens, pairs "
        f"{', '.join(str(i) for i in place.members[:3])}{' and so on' if len(place.members) > 3 else ''}, from 0)"
        for place, batch in read
    )
    if config.compute_dtype == "float16":
        likely = "float16 overflowed: compute in bfloat16 or float32"
    elif step <= config.warmup_steps or not config.clip_norm:
        likely = "the steps were too large: lower learning_rate, raise warmup_steps, or set clip_norm to 1"
    else:
        likely = "the steps were too large: lower learning_rate"
    return f"The loss is not finite any more at step {step}, {where}. Likely {likely}; last/ holds the model before."
