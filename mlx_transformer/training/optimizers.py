"""Which optimizer makes updates of gradients, and how its learning rate rises and falls."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from mlx_transformer.config.training import TrainingConfig

# What is left of the highest rate after warm-up, by the step and the share of the steps after warm-up that are done.
SCHEDULES: dict[str, Callable[[mx.array, mx.array, int], mx.array]] = {
    "inverse_sqrt": lambda step, done, warmup: mx.sqrt(warmup / step),  # Vaswani et al. 2017, section 5.3
    "cosine": lambda step, done, warmup: 0.5 * (1 + mx.cos(mx.pi * done)),  # Loshchilov and Hutter 2017
    "linear": lambda step, done, warmup: 1 - done,
    "constant": lambda step, done, warmup: mx.ones_like(done),
}
Schedule = Callable[[mx.array], mx.array]


def make_schedule(config: TrainingConfig) -> Schedule:
    """The rate of an update, by the number of those before it: rising for `warmup_steps`, then falling."""
    warmup, falling = config.warmup_steps, SCHEDULES[config.schedule]

    def rate(step: mx.array) -> mx.array:
        step = step.astype(mx.float32) + 1
        done = mx.clip((step - warmup) / max(config.steps - warmup, 1), 0, 1)
        return config.learning_rate * mx.minimum(step / warmup, falling(step, done, warmup))

    return rate


LARGE_PARAMETER = 2**20  # numbers of a parameter


class Adam(optim.Adam):
    """Adam (Kingma and Ba 2015) that updates large parameters in the memory that they have."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """See `mlx.optimizers.Optimizer`."""
        updated = super().apply_single(gradient, parameter, state)
        if parameter.size < LARGE_PARAMETER:
            return updated
        # Moments and weight in one kernel would all need new memory: let the weight follow when the moments are there.
        first, second = mx.depends([state["m"], state["v"]], [gradient])
        corrections = [1 - beta ** self.step.astype(mx.float32) for beta in self.betas]
        scale = mx.sqrt(second / corrections[1]) + self.eps
        return parameter - self.learning_rate * (first / corrections[0]) / scale


def _adam(config: TrainingConfig, rate: Schedule) -> optim.Optimizer:
    return Adam(rate, betas=list(config.betas), eps=1e-9, bias_correction=True)


def _adafactor(config: TrainingConfig, rate: Schedule) -> optim.Optimizer:
    return optim.Adafactor(rate, scale_parameter=False, relative_step=False)  # the rate is the schedule's


def _lion(config: TrainingConfig, rate: Schedule) -> optim.Optimizer:
    return optim.Lion(rate, betas=list(config.betas))


# Weight decay is apart from all of them (Loshchilov and Hutter 2019): adamw is adam with it.
OPTIMIZERS = {"adam": _adam, "adamw": _adam, "adafactor": _adafactor, "lion": _lion}


def make_optimizer(config: TrainingConfig) -> optim.Optimizer:
    """The optimizer of a run, with its schedule."""
    return OPTIMIZERS[config.optimizer](config, make_schedule(config))
