"""The state of a training run and its compiled update step: gradients, optimizer and moving average."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_reduce

from mlx_transformer.checkpoints import adapter_folder, model_folder
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.adapters import set_adapter_arrays
from mlx_transformer.model.compilation import with_arrays
from mlx_transformer.model.precision import parse_dtype
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import safetensors
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.training.optimizers import make_optimizer, make_schedule

# In float16 the loss is scaled up, so that small gradients do not underflow (Micikevicius et al. 2018).
INITIAL_LOSS_SCALE, MAX_LOSS_SCALE = 2.0**15, 2.0**24
LOSS_SCALE_INTERVAL = 1000  # updates without overflow after which the scale doubles; an overflow halves it
GradientSums = dict[str, Any]  # gradients, loss and number of tokens, summed over batches


class TrainState:
    """Everything that changes during training, and the compiled step that changes it.

    Attributes:
        model: The model being trained, in float32; parts of it may be frozen, and those may be quantised.
        config: Options of the run.
        step: Number of finished updates.
        ema_weights: Exponential moving average of the trained weights; empty if it is turned off.
        loss_scaling: The loss scale and the number of updates since it last changed; empty unless in float16.
        progress: Further values that a run saves and restores, as plain data.
        state: The arrays that the compiled step reads and writes.
    """

    def __init__(self, model: Transformer, config: TrainingConfig) -> None:
        self.model = model
        self.config = config
        self.step = 0
        self.progress: dict[str, Any] = {}
        self.group = mx.distributed.init()
        self.optimizer, self._schedule = make_optimizer(config), make_schedule(config)
        trained = model.trainable_parameters()
        self.optimizer.init(trained)
        self.ema_weights = tree_map(mx.array, trained) if config.ema_decay else {}
        is_float16 = config.compute_dtype == "float16"
        self.loss_scaling = {"scale": mx.array(INITIAL_LOSS_SCALE), "served": mx.array(0)} if is_float16 else {}
        self.state = [model.state, self.optimizer.state, self.ema_weights, self.loss_scaling, mx.random.state]
        model.recompute = config.recompute
        self._eval_model: Transformer = with_arrays(model, model.state)
        self._dtype = parse_dtype(config.compute_dtype)
        self._previous_results: tuple[mx.array, ...] = ()
        self._compiled_accumulate = self._compile(self.accumulate_gradients)
        self._compiled_apply = self._compile(self.apply_gradients)
        self._compiled_update = self._compile(self.single_batch_update)

    def _compile(self, function: Callable) -> Callable:
        return mx.compile(function, inputs=self.state, outputs=self.state)

    def update(self, batches: Sequence[Batch]) -> tuple[mx.array, mx.array]:
        """Run one optimizer update on one or several batches; return loss and gradient norm, not yet evaluated."""
        self.model.train()
        sums: GradientSums = {}
        for index, batch in enumerate(batches):
            self._seed_dropout(index)
            arrays = mx.array(batch.source), mx.array(batch.target)
            if len(batches) > 1:
                sums = self._compiled_accumulate(sums, *arrays)
                mx.async_eval(sums)
        results = self._compiled_apply(sums) if sums else self._compiled_update(*arrays)
        self.step += 1
        mx.async_eval(results, self.state)
        # The next batch may be prepared while this step runs, but no further ahead.
        mx.eval(self._previous_results)
        self._previous_results = results
        return results

    def _seed_dropout(self, batch_index: int) -> None:
        """Seed dropout from the seed and the number of the batch alone, so that no random state needs saving."""
        batch_number = self.step * self.config.accumulate + batch_index
        mx.random.seed((self.config.seed << 32) + batch_number * self.group.size() + self.group.rank())

    def single_batch_update(self, source: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
        """Run one update on one batch; return loss and gradient norm."""
        return self.apply_gradients(self.accumulate_gradients({}, source, target))

    def accumulate_gradients(self, sums: GradientSums, source: mx.array, target: mx.array) -> GradientSums:
        """Return sums with the gradients, the loss and the number of tokens of a batch added."""
        weights, trained = self.model.parameters(), self.model.trainable_parameters()

        def to_compute_dtype(array: mx.array) -> mx.array:
            return array.astype(self._dtype) if mx.issubdtype(array.dtype, mx.floating) else array

        def loss(trained: dict) -> tuple[mx.array, ...]:
            self.model.update(tree_map(to_compute_dtype, weights))
            self.model.update(tree_map(to_compute_dtype, trained))
            total, tokens = batch_loss(self.model, source, target, self.config.label_smoothing)
            return total * self._loss_factor, total, tokens

        (_, total, tokens), gradients = mx.value_and_grad(loss)(trained)
        self.model.update(weights)
        batch_sums = {"gradients": gradients, "loss": total, "tokens": tokens}
        return tree_map(mx.add, sums, batch_sums) if sums else batch_sums

    @property
    def _loss_factor(self) -> mx.array | float:
        """The factor of the summed loss: with a loss scale, the scale of its mean over a full batch."""
        return self.loss_scaling["scale"] / self.config.batch_tokens if self.loss_scaling else 1.0

    def apply_gradients(self, sums: GradientSums) -> tuple[mx.array, mx.array]:
        """Update weights, optimizer and moving average from summed gradients; return loss and gradient norm."""
        # Divide the sums over all batches and processes, so that every token has the same weight.
        loss, tokens = (mx.distributed.all_sum(sums[name], group=self.group) for name in ("loss", "tokens"))
        gradients = nn.average_gradients(sums["gradients"], self.group)
        tokens = mx.maximum(tokens, 1)
        factor = self.group.size() / (tokens * self._loss_factor)
        squares = tree_reduce(lambda total, array: total + (factor * array).square().sum(), gradients, mx.array(0.0))
        norm = mx.sqrt(squares)
        if self.config.clip_norm:
            factor = factor * mx.minimum(1, self.config.clip_norm / (norm + 1e-6))
        before = self.snapshot() if self.loss_scaling else []
        self._decay_weights()
        self.optimizer.update(self.model, tree_map(lambda array: factor * array, gradients))
        self._update_ema()
        if self.loss_scaling:
            self._skip_on_overflow(before, mx.isfinite(norm))
        return loss / tokens, norm

    def _decay_weights(self) -> None:
        if decay := self.config.weight_decay:
            factor = 1 - decay * self._schedule(self.optimizer.step)
            trained = self.model.trainable_parameters()
            self.model.update(tree_map(lambda array: factor * array if array.ndim > 1 else array, trained))

    def _update_ema(self) -> None:
        # A long average would remember the random initial weights, so the decay grows over the first steps.
        step = self.optimizer.step.astype(mx.float32)
        decay = mx.minimum(self.config.ema_decay, (1 + step) / (10 + step))
        trained = self.model.trainable_parameters() if self.ema_weights else {}
        self.ema_weights.update(tree_map(lambda ema, new: decay * ema + (1 - decay) * new, self.ema_weights, trained))

    def snapshot(self) -> list[dict]:
        """Return the trained weights, the optimizer state and the moving average as they are now."""
        trees = [self.model.trainable_parameters(), self.optimizer.state, self.ema_weights]
        return [tree_map(lambda array: array, tree) for tree in trees]

    def _skip_on_overflow(self, before: list[dict], is_finite: mx.array) -> None:
        """Undo an update whose gradient overflowed, and choose the next loss scale."""
        weights, optimizer, ema_weights = (
            tree_map(lambda new, old: mx.where(is_finite, new, old), *trees)
            for trees in zip(self.snapshot(), before, strict=True)
        )
        self.model.update(weights)
        self.optimizer.state.update(optimizer)
        self.ema_weights.update(ema_weights)
        updates = mx.where(is_finite, self.loss_scaling["served"] + 1, 0)
        doubles = updates == LOSS_SCALE_INTERVAL
        factor = mx.where(is_finite, mx.where(doubles, 2.0, 1.0), 0.5)
        self.loss_scaling["scale"] = mx.clip(self.loss_scaling["scale"] * factor, 1, MAX_LOSS_SCALE)
        self.loss_scaling["served"] = mx.where(doubles, 0, updates)

    def eval_model(self, checkpoints: Iterable[Path] = ()) -> Transformer:
        """Return the model to validate and save, in evaluation mode, with the averaged weights if there are any.

        It is the same object at every call, so that its compiled functions are reused.

        Args:
            checkpoints: Earlier checkpoints whose weights to average with the current ones.
        """
        mean, count = self.ema_weights or self.model.trainable_parameters(), 1
        for folder in checkpoints:
            weights = self._checkpoint_weights(folder)
            mean, count = tree_map(lambda old, new, n=count: old + (new - old) / (n + 1), mean, weights), count + 1
            with safetensors.translate_read_errors(folder):
                mx.eval(mean)
        self._eval_model.update(self.model.parameters())
        self._eval_model.update(mean)
        self._eval_model.eval()
        return self._eval_model

    def _checkpoint_weights(self, folder: Path) -> dict:
        """Read the trained weights of a checkpoint, or their moving average."""
        if self.ema_weights:
            arrays = safetensors.read_arrays(folder / "training.safetensors")
            return _fill_tree({"average": self.ema_weights}, arrays)["average"]
        checkpoint: Transformer = with_arrays(self.model, self.model.state)
        _read_weights(checkpoint, folder)
        return checkpoint.trainable_parameters()

    def write(self, folder: Path, tokenizer: Tokenizer | None) -> None:
        """Write a checkpoint: the files of a model or adapter folder, training.safetensors and training.json."""
        if self.model.adapter is None:
            model_folder.write_model_files(folder, self.model, tokenizer)
        else:
            adapter_folder.write_adapter_files(folder, self.model)
        safetensors.write_arrays(folder / "training.safetensors", dict(tree_flatten(self.extra_state())))
        (folder / "training.json").write_text(json.dumps({"step": self.step} | self.progress) + "\n")

    def restore(self, folder: Path) -> None:
        """Restore the state from a checkpoint."""
        _read_weights(self.model, folder)
        extra = _fill_tree(self.extra_state(), safetensors.read_arrays(folder / "training.safetensors"))
        self.optimizer.state.update(extra["optimizer"])
        self.ema_weights.update(extra["average"])
        self.loss_scaling.update(extra["scaling"])
        with safetensors.translate_read_errors(folder):
            mx.eval(self.state)  # lazy arrays would read their files later, when the folder may have been replaced
        progress = model_folder.read_json(folder / "training.json")
        self.step = progress.pop("step")
        self.progress.update(progress)

    def extra_state(self) -> dict[str, dict]:
        """Return the arrays of a checkpoint other than the model's weights, by their names in training.safetensors."""
        return {"optimizer": self.optimizer.state, "average": self.ema_weights, "scaling": self.loss_scaling}


def _read_weights(model: Transformer, folder: Path) -> None:
    """Read the weights of a checkpoint into a model, or those of its adapter."""
    if model.adapter is None:
        model_folder.read_weights(model, folder / "model.safetensors")
    else:
        file = folder / adapter_folder.ADAPTER_FILE
        set_adapter_arrays(model, safetensors.read_arrays(file), str(file))


def _fill_tree(tree: dict, arrays: dict[str, mx.array]) -> dict:
    """Return a tree of the same structure with arrays looked up by name; frozen modules are empty in both."""
    return tree_map_with_path(lambda name, _: arrays[name], tree)
