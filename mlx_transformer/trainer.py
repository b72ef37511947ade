"""One training step: gradients, optimizer and moving average, compiled; and all the state that it changes."""

import json
import math
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_map_with_path

from mlx_transformer import checkpoint
from mlx_transformer.data import Batch
from mlx_transformer.layout import join, split
from mlx_transformer.loss import batch_loss
from mlx_transformer.model import Transformer
from mlx_transformer.recipe import TrainingConfig
from mlx_transformer.tokenizer import Tokenizer


def inverse_square_root(step: mx.array, learning_rate: float, warmup_steps: int) -> mx.array:
    """The schedule of Vaswani et al. 2017, section 5.3, by its highest rate, reached after `warmup_steps`."""
    step = step.astype(mx.float32) + 1
    return learning_rate * mx.minimum(step / warmup_steps, mx.sqrt(warmup_steps / step))


class Trainer:
    """Everything that changes in a run, and the compiled step that changes it."""

    def __init__(self, model: Transformer, config: TrainingConfig) -> None:
        self.model = model
        self.config = config
        self.step = 0
        self.best_score = -math.inf
        self.group = mx.distributed.init()
        rate = partial(inverse_square_root, learning_rate=config.learning_rate, warmup_steps=config.warmup_steps)
        self.optimizer = optim.Adam(rate, betas=[0.9, 0.98], eps=1e-9, bias_correction=True)
        self.optimizer.init(model.trainable_parameters())
        self.average = tree_map(mx.array, model.trainable_parameters())
        self._averaged = checkpoint.blank(model.config, model.search_defaults, model.tasks.values())
        self.state = [model.state, self.optimizer.state, self.average, mx.random.state]
        self._pending: tuple[mx.array, ...] = ()
        self._compiled_step = mx.compile(self._step, inputs=self.state, outputs=self.state)

    def _step(self, source: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
        # Of several processes each weighs as much as it has real tokens, as if they were one batch.
        real = (target[:, 1:] != self.model.config.pad_id).sum().astype(mx.float32)
        share = real * self.group.size() / mx.distributed.all_sum(real, group=self.group)
        value_and_grad = nn.value_and_grad(self.model, lambda *batch: share * batch_loss(*batch))
        loss, gradients = value_and_grad(self.model, source, target, self.config.label_smoothing)
        gradients = nn.average_gradients(gradients, self.group)
        gradients, norm = optim.clip_grad_norm(gradients, self.config.clip_norm)
        self.optimizer.update(self.model, gradients)
        # Early on a long average would remember the random start: let its horizon grow with the steps.
        step = self.optimizer.step.astype(mx.float32)
        decay = mx.minimum(self.config.ema_decay, (1 + step) / (10 + step))

        def blend(kept: mx.array, new: mx.array) -> mx.array:
            return decay * kept + (1 - decay) * new

        self.average.update(tree_map(blend, self.average, self.model.trainable_parameters()))
        return loss, norm

    def update(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """One optimizer update; returns loss and gradient norm, not yet evaluated."""
        # Dropout depends on the seed and the step alone, so that a resumed run needs no saved random state.
        mx.random.seed((self.config.seed << 32) + self.step * self.group.size() + self.group.rank())
        self.model.train()
        results = self._compiled_step(mx.array(batch.source), mx.array(batch.target))
        self.step += 1
        mx.async_eval(results, self.state)
        # Prepare the next batch while this step runs, but run no further ahead.
        mx.eval(self._pending)
        self._pending = results
        return results

    def averaged(self) -> Transformer:
        """The model to validate and keep: with the moving average of the weights, ready to generate.

        It is always the same model, so that what was compiled for it serves again.
        """
        self._averaged.update(self.model.parameters())
        self._averaged.update(self.average)
        self._averaged.eval()
        return self._averaged

    def save(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Write a model folder that also holds all that is needed to go on from here."""
        with checkpoint.replacing(folder) as new:
            checkpoint.write(new, self.model, tokenizer)
            arrays = split({"optimizer": self.optimizer.state, "average": self.average})
            checkpoint.write_arrays(new / "training.safetensors", arrays)
            progress = {"step": self.step, "best_score": self.best_score}
            (new / "training.json").write_text(json.dumps(progress) + "\n")

    def restore(self, folder: Path) -> None:
        """Go back to where `save` was called."""
        checkpoint.read_weights(self.model, folder / "model.safetensors")
        arrays = join(checkpoint.read_arrays(folder / "training.safetensors"))
        # Frozen modules have empty places in the state, which a file of arrays does not: fill the state that is there.
        state = {"optimizer": self.optimizer.state, "average": self.average}
        state = tree_map_with_path(lambda name, _: arrays[name], state)
        self.optimizer.state.update(state["optimizer"])
        self.average.update(state["average"])
        progress = checkpoint.read_json(folder / "training.json")
        self.step, self.best_score = progress["step"], progress["best_score"]
