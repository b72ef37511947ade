"""mlx.nn.Transformer as a peer of the training benchmarks, with a compiled training step as in MLX's documentation."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch
from mlx_transformer.model.positions import sinusoidal_positions
from mlx_transformer.model.precision import parse_dtype


class MlxTransformer(nn.Module):
    """mlx.nn.Transformer, pre-norm, with embeddings shared by source, target and output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pad_id, self.scale = config.pad_id, config.dims**0.5
        self.embedding = nn.Embedding(config.source_vocab_size, config.dims)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            config.dims,
            config.encoder.num_heads,
            config.encoder.num_layers,
            config.decoder.num_layers,
            config.encoder.mlp_dims,
            config.dropout,
        )
        self._positions = sinusoidal_positions(max(config.encoder.max_length, config.decoder.max_length), config.dims)

    def __call__(self, source: mx.array, target: mx.array) -> mx.array:
        """Return the logits of the next target tokens, (batch, target_length, vocab)."""
        mask = (source != self.pad_id)[:, None, None]
        return self.embedding.as_linear(self.transformer(self.embed(source), self.embed(target), mask, "causal", mask))

    def embed(self, ids: mx.array) -> mx.array:
        """Return scaled embeddings plus positional encodings, (batch, length, dims)."""
        x = self.embedding(ids) * self.scale
        return self.dropout(x + self._positions[: ids.shape[1]].astype(x.dtype))


class MlxTrainer:
    """Compiled training step: Adam, clipping, label smoothing. Weights and moments have the compute dtype."""

    def __init__(self, model: MlxTransformer, config: TrainingConfig) -> None:
        model.set_dtype(parse_dtype(config.compute_dtype))
        self.model, self.config = model.train(), config
        self.optimizer = optim.Adam(config.learning_rate, betas=[0.9, 0.98], eps=1e-9, bias_correction=True)
        self.optimizer.init(model.trainable_parameters())
        self.state = [model.state, self.optimizer.state, mx.random.state]
        self.compiled_step = partial(mx.compile, inputs=self.state, outputs=self.state)(self._step)

    def update(self, batch: Batch) -> mx.array:
        """Make one optimizer update; return the loss without evaluating it."""
        loss = self.compiled_step(mx.array(batch.source), mx.array(batch.target))
        mx.async_eval(loss, self.state)
        return loss

    def _step(self, source: mx.array, target: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(self.model, self._loss)(source, target)
        gradients, _ = optim.clip_grad_norm(gradients, self.config.clip_norm)
        self.optimizer.update(self.model, gradients)
        return loss

    def _loss(self, source: mx.array, target: mx.array) -> mx.array:
        logits, labels = self.model(source, target[:, :-1]).astype(mx.float32), target[:, 1:]
        losses = nn.losses.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        mask = labels != self.model.pad_id
        return (losses * mask).sum() / mask.sum()
