"""Optimizers and learning rate schedules."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from mlx_transformer.config.training import TrainingConfig

# Factor of the peak learning rate after warm-up, from the step and from the progress after warm-up (0 to 1).
SCHEDULES: dict[str, Callable[[mx.array, mx.array, int], mx.array]] = {
    "inverse_sqrt": lambda step, progress, warmup: mx.sqrt(warmup / step),  # Vaswani et al. 2017, section 5.3
    "cosine": lambda step, progress, warmup: 0.5 * (1 + mx.cos(mx.pi * progress)),  # Loshchilov and Hutter 2017
    "linear": lambda step, progress, warmup: 1 - progress,
    "constant": lambda step, progress, warmup: mx.ones_like(progress),
}
Schedule = Callable[[mx.array], mx.array]


def make_schedule(config: TrainingConfig) -> Schedule:
    """Return the learning rate as a function of the number of finished updates: linear warm-up, then the schedule."""
    warmup, decay = config.warmup_steps, SCHEDULES[config.schedule]

    def learning_rate(step: mx.array) -> mx.array:
        step = step.astype(mx.float32) + 1
        progress = mx.clip((step - warmup) / max(config.steps - warmup, 1), 0, 1)
        return config.learning_rate * mx.minimum(step / warmup, decay(step, progress, warmup))

    return learning_rate


LARGE_PARAMETER = 2**20  # elements


class Adam(optim.Adam):
    """Adam (Kingma and Ba 2015) with a lower memory peak for large parameters."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """See `mlx.optimizers.Optimizer`."""
        updated = super().apply_single(gradient, parameter, state)
        if parameter.size < LARGE_PARAMETER:
            return updated
        # One fused kernel would allocate new memory for both moments and the weight: compute the weight after them.
        first, second = mx.depends([state["m"], state["v"]], [gradient])
        corrections = [1 - beta ** self.step.astype(mx.float32) for beta in self.betas]
        scale = mx.sqrt(second / corrections[1]) + self.eps
        return parameter - self.learning_rate * (first / corrections[0]) / scale


def _adam(config: TrainingConfig, schedule: Schedule) -> optim.Optimizer:
    return Adam(schedule, betas=list(config.betas), eps=1e-9, bias_correction=True)


def _adafactor(config: TrainingConfig, schedule: Schedule) -> optim.Optimizer:
    return optim.Adafactor(schedule, scale_parameter=False, relative_step=False)  # only the schedule sets the rate


def _lion(config: TrainingConfig, schedule: Schedule) -> optim.Optimizer:
    return optim.Lion(schedule, betas=list(config.betas))


# TrainState applies decoupled weight decay (Loshchilov and Hutter 2019), so adamw is adam here.
OPTIMIZERS = {"adam": _adam, "adamw": _adam, "adafactor": _adafactor, "lion": _lion}


def make_optimizer(config: TrainingConfig) -> optim.Optimizer:
    """Return the optimizer of a run, with its learning rate schedule."""
    return OPTIMIZERS[config.optimizer](config, make_schedule(config))
