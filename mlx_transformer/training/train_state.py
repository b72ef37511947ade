"""One training step: gradients, optimizer and moving average, compiled; and all the state that it changes."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_reduce

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.fused_projections import fuse_projections
from mlx_transformer.model.precision import parse_dtype
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import safetensors
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.optimizers import make_optimizer, make_schedule

# Gradients in float16 are computed of a loss so many times as large, lest small ones vanish (Micikevicius et al. 2018).
INITIAL_LOSS_SCALE, MAX_LOSS_SCALE = 2.0**15, 2.0**24
LOSS_SCALE_INTERVAL = 1000  # without an overflow, then the scale doubles; an overflow halves it
GradientSums = dict[str, Any]  # gradients, loss and number of tokens of some batches, added up


class TrainState:
    """Everything that changes in a run, and the compiled step that changes it.

    Attributes:
        model: The model in training, in float32; parts of it may be frozen.
        config: The run.
        step: Updates so far.
        average: The moving average of the trained weights; empty without one.
        scaling: The factor of the loss, and for how many updates it has served; empty but for float16.
        progress: What else a run must remember, plain data.
    """

    def __init__(self, model: Transformer, config: TrainingConfig) -> None:
        self.model = model
        self.config = config
        self.step = 0
        self.progress: dict[str, Any] = {}
        self.group = mx.distributed.init()
        self.optimizer, self._rate = make_optimizer(config), make_schedule(config)
        trained = model.trainable_parameters()
        self.optimizer.init(trained)
        self.average = tree_map(mx.array, trained) if config.ema_decay else {}
        halves = config.compute_dtype == "float16"
        self.scaling = {"scale": mx.array(INITIAL_LOSS_SCALE), "served": mx.array(0)} if halves else {}
        self.state = [model.state, self.optimizer.state, self.average, self.scaling, mx.random.state]
        model.recompute = config.recompute
        self._kept_model = model_folder.uninitialized_model(model.config, model.search_defaults, model.tasks.values())
        self._dtype = parse_dtype(config.compute_dtype)
        self._pending: tuple[mx.array, ...] = ()
        self._add, self._apply, self._once = (self._compiled(call) for call in (self.add, self.apply, self.once))

    def _compiled(self, function: Callable) -> Callable:
        return mx.compile(function, inputs=self.state, outputs=self.state)

    def update(self, batches: Sequence[Batch]) -> tuple[mx.array, mx.array]:
        """One optimizer update from one or several batches; returns loss and gradient norm, not yet evaluated."""
        self.model.train()
        sums: GradientSums = {}
        for number, batch in enumerate(batches):
            self._seed(number)
            arrays = mx.array(batch.source), mx.array(batch.target)
            if len(batches) > 1:
                sums = self._add(sums, *arrays)
                mx.async_eval(sums)
        results = self._apply(sums) if sums else self._once(*arrays)
        self.step += 1
        mx.async_eval(results, self.state)
        # Prepare the next batch while this step runs, but run no further ahead.
        mx.eval(self._pending)
        self._pending = results
        return results

    def _seed(self, number: int) -> None:
        """Let dropout depend on the seed and on the number of the batch alone: no random state needs to be saved."""
        place = self.step * self.config.accumulate + number
        mx.random.seed((self.config.seed << 32) + place * self.group.size() + self.group.rank())

    def once(self, source: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
        """An update from one batch."""
        return self.apply(self.add({}, source, target))

    def add(self, sums: GradientSums, source: mx.array, target: mx.array) -> GradientSums:
        """Add the gradients of a batch, its loss and its number of tokens."""
        weights, trained = self.model.parameters(), self.model.trainable_parameters()

        def low(array: mx.array) -> mx.array:
            return array.astype(self._dtype)

        def loss(trained: dict) -> tuple[mx.array, ...]:
            self.model.update(tree_map(low, weights))
            self.model.update(tree_map(low, trained))
            total, tokens = batch_loss(self.model, source, target, self.config.label_smoothing)
            return total * self._scale, total, tokens

        (_, total, tokens), gradients = mx.value_and_grad(loss)(trained)
        self.model.update(weights)
        found = {"gradients": gradients, "loss": total, "tokens": tokens}
        return tree_map(mx.add, sums, found) if sums else found

    @property
    def _scale(self) -> mx.array | float:
        """The factor of a sum of losses: where they are scaled, that of their mean over as many as a batch may have."""
        return self.scaling["scale"] / self.config.batch_tokens if self.scaling else 1.0

    def apply(self, sums: GradientSums) -> tuple[mx.array, mx.array]:
        """Update weights, optimizer and average by gradients that were added up; returns loss and gradient norm."""
        # All tokens weigh alike, whichever process and batch they are in: the sums are divided, not means.
        loss, tokens = (mx.distributed.all_sum(sums[name], group=self.group) for name in ("loss", "tokens"))
        summed = nn.average_gradients(sums["gradients"], self.group)
        tokens = mx.maximum(tokens, 1)
        share = self.group.size() / (tokens * self._scale)
        squares = tree_reduce(lambda total, array: total + (share * array).square().sum(), summed, mx.array(0.0))
        norm = mx.sqrt(squares)
        if self.config.clip_norm:
            share = share * mx.minimum(1, self.config.clip_norm / (norm + 1e-6))
        before = self._changing() if self.scaling else []
        self._decay_weights()
        self.optimizer.update(self.model, tree_map(lambda array: share * array, summed))
        self._follow()
        if self.scaling:
            self._take_back(before, mx.isfinite(norm))
        return loss / tokens, norm

    def _decay_weights(self) -> None:
        if decay := self.config.weight_decay:
            kept = 1 - decay * self._rate(self.optimizer.step)
            trained = self.model.trainable_parameters()
            self.model.update(tree_map(lambda array: kept * array if array.ndim > 1 else array, trained))

    def _follow(self) -> None:
        """Let the average follow the weights."""
        # Early on a long average would remember the random start: let its horizon grow with the steps.
        step = self.optimizer.step.astype(mx.float32)
        decay = mx.minimum(self.config.ema_decay, (1 + step) / (10 + step))
        trained = self.model.trainable_parameters() if self.average else {}
        self.average.update(tree_map(lambda kept, new: decay * kept + (1 - decay) * new, self.average, trained))

    def _changing(self) -> list[dict]:
        """What an update changes, as it is now."""
        trees = [self.model.trainable_parameters(), self.optimizer.state, self.average]
        return [tree_map(lambda array: array, tree) for tree in trees]

    def _take_back(self, before: list[dict], finite: mx.array) -> None:
        """Leave all as it was where a gradient overflowed, and choose the scale of the next loss."""
        chosen = [
            tree_map(lambda new, old: mx.where(finite, new, old), *trees)
            for trees in zip(self._changing(), before, strict=True)
        ]
        self.model.update(chosen[0])
        self.optimizer.state.update(chosen[1])
        self.average.update(chosen[2])
        served = mx.where(finite, self.scaling["served"] + 1, 0)
        grown = served == LOSS_SCALE_INTERVAL
        factor = mx.where(finite, mx.where(grown, 2.0, 1.0), 0.5)
        self.scaling["scale"] = mx.clip(self.scaling["scale"] * factor, 1, MAX_LOSS_SCALE)
        self.scaling["served"] = mx.where(grown, 0, served)

    def kept_model(self, earlier: Iterable[Path] = ()) -> Transformer:
        """The model to validate and keep, ready to generate: of the moving average, if there is one.

        It is always the same model, so that what was compiled for it serves again.

        Args:
            earlier: Checkpoints whose weights it is the mean of, together with the present ones.
        """
        mean, count = self.average or self.model.trainable_parameters(), 1
        for folder in earlier:
            kept = self._kept(folder)
            mean, count = tree_map(lambda old, new, n=count: old + (new - old) / (n + 1), mean, kept), count + 1
            mx.eval(mean)
        self._kept_model.update(self.model.parameters())
        self._kept_model.update(mean)
        self._kept_model.eval()
        return self._kept_model

    def _kept(self, folder: Path) -> dict:
        """The trained weights, or their moving average, of a checkpoint."""
        if self.average:
            state = safetensors.read_arrays(folder / "training.safetensors")
            return _fill_tree({"average": self.average}, state)["average"]
        weights = fuse_projections(safetensors.read_arrays(folder / "model.safetensors"))
        return _fill_tree(self.model.trainable_parameters(), weights)

    def write(self, folder: Path, tokenizer: Tokenizer | None) -> None:
        """Write into a folder a model, and beside it all else that is needed to go on from here."""
        model_folder.write_model_files(folder, self.model, tokenizer)
        safetensors.write_arrays(folder / "training.safetensors", dict(tree_flatten(self._beside())))
        (folder / "training.json").write_text(json.dumps({"step": self.step} | self.progress) + "\n")

    def restore(self, folder: Path) -> None:
        """Go back to where `write` was called."""
        model_folder.read_weights(self.model, folder / "model.safetensors")
        state = _fill_tree(self._beside(), safetensors.read_arrays(folder / "training.safetensors"))
        self.optimizer.state.update(state["optimizer"])
        self.average.update(state["average"])
        self.scaling.update(state["scaling"])
        mx.eval(self.state)  # arrays not yet read would be read from a folder that is about to be replaced
        progress = model_folder.read_json(folder / "training.json")
        self.step = progress.pop("step")
        self.progress.update(progress)

    def _beside(self) -> dict[str, dict]:
        return {"optimizer": self.optimizer.state, "average": self.average, "scaling": self.scaling}


def _fill_tree(tree: dict, arrays: dict[str, mx.array]) -> dict:
    """A tree like this one, of arrays by their names; frozen modules have empty places in it, which no file has."""
    return tree_map_with_path(lambda name, _: arrays[name], tree)
