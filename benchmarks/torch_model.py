"""The reference of the training benchmarks: our model, training step and training run, built from torch's layers.

Shape, dropout, initialisation, loss and recipe match ours; the implementation is torch's wherever it has one.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import mlx_transformer as mt
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.serialization import to_dict
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch, iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.model.positions import sinusoidal_positions
from mlx_transformer.training.builders import build_model_and_tokenizer
from mlx_transformer.training.run_directory import RunDirectory
from mlx_transformer.training.validation import Validator
from mlx_transformer.weights.convert import load as convert


class TorchTransformer(nn.Module):
    """torch.nn.TransformerEncoder and TransformerDecoder with embeddings shared by source, target and output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pad_id, self.scale = config.pad_id, math.sqrt(config.dims)
        self.embedding = nn.Embedding(config.source_vocab_size, config.dims)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.TransformerEncoder(
            make_layer(nn.TransformerEncoderLayer, config, config.encoder),
            config.encoder.num_layers,
            final_norm(config, config.encoder),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            make_layer(nn.TransformerDecoderLayer, config, config.decoder),
            config.decoder.num_layers,
            final_norm(config, config.decoder),
        )
        length = max(config.encoder.max_length, config.decoder.max_length)
        self.register_buffer(
            "positions", torch.tensor(np.array(sinusoidal_positions(length, config.dims))), persistent=False
        )
        self.register_buffer("causal_mask", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)
        initialise_weights(self)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next target tokens, (batch, target_length, vocab)."""
        padding, length = source == self.pad_id, target.shape[1]
        memory = self.encoder(self.embed(source), src_key_padding_mask=padding)
        x = self.decoder(
            self.embed(target),
            memory,
            tgt_mask=self.causal_mask[:length, :length],
            tgt_is_causal=True,
            memory_key_padding_mask=padding,
        )
        return functional.linear(x, self.embedding.weight)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scaled embeddings plus positional encodings, (batch, length, dims)."""
        return self.dropout(self.embedding(ids) * self.scale + self.positions[: ids.shape[1]])


def make_layer(layer_class: type[nn.Module], config: ModelConfig, stack: StackConfig) -> nn.Module:
    """Return a layer of torch that applies dropout where ours does."""
    layer = layer_class(
        config.dims,
        stack.num_heads,
        stack.mlp_dims,
        config.dropout,
        config.activation,
        config.norm_eps,
        batch_first=True,
        norm_first=stack.norm_first,
    )
    layer.dropout.p = config.activation_dropout
    for part in layer.children():
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = config.attention_dropout
    return layer


def final_norm(config: ModelConfig, stack: StackConfig) -> nn.LayerNorm | None:
    """Return the normalisation after the last layer, or None."""
    return nn.LayerNorm(config.dims, config.norm_eps) if stack.final_norm else None


def initialise_weights(model: TorchTransformer) -> None:
    """Initialise as our model: Glorot uniform weights for each projection, embeddings scaled by 1/sqrt(dims)."""
    for name, parameter in model.named_parameters():
        if name == "embedding.weight":
            nn.init.normal_(parameter, std=1 / model.scale)
        elif "in_proj_weight" in name:
            for projection in parameter.chunk(3):
                nn.init.xavier_uniform_(projection)
        elif parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class TorchTrainer:
    """Our training step in torch: Adam with a schedule, gradient clipping, label smoothing, checkpoint averaging."""

    def __init__(self, model: TorchTransformer, config: TrainingConfig, device: str = "cpu") -> None:
        self.model, self.config, self.device, self.step = model.to(device).train(), config, device, 0
        self.optimizer = torch.optim.Adam(model.parameters(), betas=config.betas, eps=1e-9, fused=True)
        self.checkpoints: deque[dict[str, torch.Tensor]] = deque(maxlen=config.average_checkpoints)

    def update(self, batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one optimizer update over accumulated batches; return loss and gradient norm without synchronising."""
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * inverse_sqrt_schedule(self.step, self.config.warmup_steps)
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(int((batch.target[:, 1:] != self.model.pad_id).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.loss(batch) / tokens
            loss.backward()
            total += loss.detach()
        limit = self.config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        return total, norm

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the losses of a batch's tokens."""
        source, target = (torch.from_numpy(ids).to(self.device, torch.long, non_blocking=True) for ids in batch)
        compute = vars(torch)[self.config.compute_dtype]
        with torch.autocast(self.device, compute, enabled=compute != torch.float32):
            logits = self.model(source, target[:, :-1])
        return functional.cross_entropy(
            logits.flatten(0, 1).float(),
            target[:, 1:].flatten(),
            ignore_index=self.model.pad_id,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )

    def keep_checkpoint(self) -> None:
        """Keep a copy of the current weights for `averaged_weights`."""
        self.checkpoints.append({name: array.detach().clone() for name, array in self.model.state_dict().items()})

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """Return the mean of the latest kept weights."""
        return {
            name: torch.stack([weights[name] for weights in self.checkpoints]).mean(0) for name in self.checkpoints[0]
        }


def inverse_sqrt_schedule(step: int, warmup_steps: int) -> float:
    """Return the learning rate of a step, from 1, as a share of the peak (Vaswani et al. 2017, section 5.3)."""
    return min(step / warmup_steps, math.sqrt(warmup_steps / step))


def train(config: TrainingConfig, device: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Train like `mlx_transformer.train`, with the same tokenizer, batches, validations, log and selection of the best.

    Validation and search use our code with torch's weights converted to our model.

    Args:
        config: The recipe; fields that this file does not use are ignored.
        device: The torch device.
        report: Called with each entry of the log.

    Raises:
        ValueError: If the shape of torch's converted model differs from ours.
    """
    torch.manual_seed(config.seed)
    run = RunDirectory(config.output)
    training, validation = ParallelCorpora(config.train), ParallelCorpora(config.valid)
    ours, tokenizer = build_model_and_tokenizer(config, training)
    theirs = TorchTransformer(ours.config)
    trainer = TorchTrainer(theirs, config, device)
    corpus, valid = (TokenizedCorpus.build(pairs, tokenizer, config.max_length) for pairs in (training, validation))
    validator = Validator(validation, valid, tokenizer, config)
    with run.log_file.open("w") as log:

        def record(event: str, **values: Any) -> None:
            entry = {"event": event, "step": trainer.step, **values}
            print(json.dumps(entry, ensure_ascii=False), file=log, flush=True)
            report(entry)

        parameters = sum(parameter.numel() for parameter in theirs.parameters())
        record("start", parameters=parameters, pairs=len(corpus), steps=config.steps, config=to_dict(config))
        losses: list[torch.Tensor] = []
        best = -math.inf
        for _, batch in islice(iterate_batches(corpus, config.batch_tokens, config.seed), config.steps):
            losses.append(trainer.update([batch])[0])
            last = trainer.step == config.steps
            if trainer.step % config.log_every == 0 or last:
                learning_rate = trainer.optimizer.param_groups[0]["lr"]
                record("step", loss=torch.stack(losses).mean().item(), learning_rate=learning_rate)
                losses = []
            if trainer.step % config.valid_every == 0 or last:
                trainer.keep_checkpoint()
                load_torch_weights(ours, trainer.averaged_weights(), run.folder / "weights.pt")
                results = validator.measure(ours)
                if improved := results["bleu"] > best:
                    best = results["bleu"]
                    mt.save(run.best, ours, tokenizer)
                record("validation", **results, best=improved)


def load_torch_weights(ours: mt.Transformer, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Load torch's weights into our model by converting a file written by `torch.save`.

    Raises:
        ValueError: If the shape of the converted model differs from ours.
    """
    torch.save({name: array.cpu() for name, array in weights.items()}, file)
    config = ours.config
    settings = {"num_heads": config.encoder.num_heads, "norm_first": config.encoder.norm_first}
    settings |= {name: vars(config)[name] for name in ("activation", "pad_id", "eos_id", "start_id")}
    converted, _ = convert(file, settings=settings | {"max_length": config.encoder.max_length})
    rates = {name: vars(config)[name] for name in ("dropout", "attention_dropout", "activation_dropout")}
    if replace(converted.config, **rates) != config:
        raise ValueError(f"Torch's model must have the shape of ours: {converted.config} is not {config}.")
    ours.update(converted.parameters())
    ours.eval()
