"""Metrics of training steps for the log: loss, speed, memory and time left; stops a run whose loss is not finite."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer.data.batch_sampler import Batch, BatchPosition, PositionedBatch
from mlx_transformer.training.train_state import TrainState


@dataclass(frozen=True)
class TrainingStep:
    """A finished step of training.

    Attributes:
        step: Its number, counted from 1.
        steps: Number of steps of the run.
        loss: Mean loss of its batches per target token, in nats, with label smoothing.
        learning_rate: Its learning rate.
        gradient_norm: Norm of its gradient before clipping; None if it overflowed (in float16).
        tokens_per_second: Target tokens per second since the last log entry.
        seconds_left: Estimated time to the end of the run, without validations.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    tokens_per_second: float
    seconds_left: float


class StepMetrics:
    """Accumulates the metrics of the steps between two log entries."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self._latest: tuple[int, list[PositionedBatch]] = (state.step, [])
        self._unchecked_loss: mx.array | None = None
        self._reset()
        # Losses that a stopped run had not yet logged.
        self.losses += [mx.array(loss) for loss in state.progress.pop("losses", [])]

    def _reset(self) -> None:
        self.started = time.perf_counter()
        self.num_tokens = self.num_steps = 0
        self.losses: list[mx.array] = []
        mx.reset_peak_memory()

    def add(self, batches: list[PositionedBatch], results: tuple[mx.array, mx.array]) -> None:
        """Add a step, whose results need not be evaluated yet, and check the loss of the previous step.

        Args:
            batches: The batches of the step.
            results: Its loss and gradient norm.

        Raises:
            ValueError: If the loss of the previous step is NaN or infinite.
        """
        self.check_finite()
        self._unchecked_loss, self.grad_norm = results
        self._latest = self.state.step, batches
        self.losses.append(self._unchecked_loss)
        self.num_steps += 1
        pad_id = self.state.model.config.pad_id
        self.num_tokens += sum(int((batch.target[:, 1:] != pad_id).sum()) for _, batch in batches)

    def check_finite(self) -> None:
        """Wait for the latest step and check its loss.

        Raises:
            ValueError: If the loss is NaN or infinite.
        """
        if self._unchecked_loss is not None and not mx.isfinite(self._unchecked_loss).item():
            raise ValueError(self.divergence_message())
        self._unchecked_loss = None

    def latest_step(self) -> TrainingStep:
        """Wait for the latest step and return its metrics.

        Raises:
            ValueError: If its loss is NaN or infinite.
        """
        self.check_finite()
        return self._measure(self.losses[-1])

    def _measure(self, loss: mx.array) -> TrainingStep:
        state, steps, grad_norm = self.state, self.state.config.steps, float(self.grad_norm)
        seconds = time.perf_counter() - self.started
        return TrainingStep(
            step=state.step,
            steps=steps,
            loss=float(loss),
            learning_rate=float(state.optimizer.learning_rate),
            gradient_norm=grad_norm if math.isfinite(grad_norm) else None,
            tokens_per_second=self.num_tokens * state.group.size() / seconds,
            seconds_left=(steps - state.step) * seconds / self.num_steps,
        )

    def flush(self) -> dict[str, Any]:
        """Return the metrics since the previous call, and start again from zero.

        Raises:
            ValueError: If the loss is NaN or infinite, or gradients overflow at every loss scale.
        """
        self.check_finite()
        mean = self._measure(mx.stack(self.losses).mean())
        loss_scaling = self.state.loss_scaling
        scale = {"loss_scale": float(loss_scaling["scale"])} if loss_scaling else {}
        if scale.get("loss_scale") == 1 and mean.gradient_norm is None:
            raise ValueError(self.divergence_message())
        memory, perplexity = mx.get_peak_memory(), math.exp(min(mean.loss, 100))
        self._reset()
        return asdict(mean) | {"perplexity": perplexity, "memory": memory} | scale

    def exclude_time(self, seconds: float) -> None:
        """Do not count time that was spent on something other than training steps."""
        self.started += seconds

    def divergence_message(self) -> str:
        """Return an error message with the step and batch at which training diverged, and the likely cause."""
        (step, batches), config = self._latest, self.state.config
        where = "; ".join(describe_batch(position, batch) for position, batch in batches)
        if config.compute_dtype == "float16":
            cause = "float16 overflowed: compute in bfloat16 or float32"
        elif step <= config.warmup_steps or not config.clip_norm:
            cause = "the steps were too large: lower learning_rate, raise warmup_steps, or set clip_norm to 1"
        else:
            cause = "the steps were too large: lower learning_rate"
        previous = "; last/ holds an earlier model" if (Path(config.output) / "last").exists() else ""
        return f"The loss became NaN or infinite at step {step}, {where}. Likely cause: {cause}{previous}."


def describe_batch(position: BatchPosition, batch: Batch) -> str:
    """Return the position and shape of a batch, and the indices of its first pairs, for error messages."""
    more = ", ..." * (len(position.pair_indices) > 3)
    pairs = ", ".join(map(str, position.pair_indices[:3])) + more
    shape = " x ".join(map(str, batch.source.shape))
    return (
        f"batch {position.batch_index} of epoch {position.epoch} ({shape} source tokens, pairs {pairs}, counted from 0)"
    )
