"""Training runs: corpora to a folder with the best and the last model, validation, a log, exact resume."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer import checkpoint
from mlx_transformer.config import ModelConfig, SearchConfig, StackConfig
from mlx_transformer.data import Batch, Corpus, batches, read_pairs
from mlx_transformer.evaluation import check_sacrebleu, corpus_scores, exact_match, group_references, has_sacrebleu
from mlx_transformer.fields import from_dict, to_dict
from mlx_transformer.generation import generate
from mlx_transformer.loss import token_losses
from mlx_transformer.model import Transformer
from mlx_transformer.recipe import PRESETS, TrainingConfig
from mlx_transformer.tokenizer import Tokenizer
from mlx_transformer.trainer import Trainer

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


def train(config: TrainingConfig, report: Report | None = None) -> Path:
    """Train a model, from scratch or from where its run was; returns the folder of the best one.

    Args:
        config: The run.
        report: Called with each entry of the log as it is written: plain data, "event" says what it is about.

    Raises:
        ValueError: If the corpora or the options cannot be used, or if the loss is not finite any more.
        FileNotFoundError: If a corpus does not exist.
        FileExistsError: If the run folder holds a run already and `resume` is not set.
    """
    if config.best_by == "bleu":
        check_sacrebleu()
    run = Path(config.output)
    last, best = run / "last", run / "best"
    checkpoint.recover(last)
    checkpoint.recover(best)
    if config.resume:
        _check_same_run(config)
    elif last.exists():
        raise FileExistsError(f"{run} holds a run already: resume it, or choose another output.")
    training, validation = _read(config.train, "train", config), _read(config.valid, "valid", config)
    tokenizer = Tokenizer.load(last) if config.resume else _train_tokenizer(training, config)
    with checkpoint.same_random_state():
        mx.random.seed(config.seed)
        search = SearchConfig(suppress_ids=(tokenizer.start_id,))
        trainer = Trainer(Transformer(model_config(config, tokenizer), search), config)
        if config.resume:
            trainer.restore(last)
        if trainer.step > config.steps:
            raise ValueError(
                f"steps must not be less than the run has done: {config.steps} is less than {trainer.step}."
            )
        with _log(run, trainer, report) as record:
            _loop(trainer, tokenizer, training, validation, record)
    return best


@contextmanager
def _log(run: Path, trainer: Trainer, report: Report | None) -> Iterator[Callable[..., None]]:
    """Prepare the run folder, and give the function that writes an entry of its log."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "log.jsonl"
    entries = path.read_text().splitlines(keepends=True) if trainer.step else []
    if trainer.group.rank() == 0:
        _replace_text(run / "options.json", json.dumps(to_dict(trainer.config), indent=2) + "\n")
        # What a run did after its last checkpoint it does again.
        _replace_text(path, "".join(line for line in entries if json.loads(line)["step"] <= trainer.step))
    with path.open("a") as log:

        def record(event: str, **values: Any) -> None:
            entry = {"event": event, "step": trainer.step, **values}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if report is not None:
                report(entry)

        yield record


def _replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def model_config(config: TrainingConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model that a run trains: pre-norm, tied output, of the preset's size."""
    size = PRESETS[config.preset]
    stack = StackConfig(
        num_layers=size.layers,
        num_heads=size.dims // 64,
        mlp_dims=size.mlp_dims,
        norm_first=True,
        final_norm=True,
        # One row more than the longest sentence: the decoder reads the start token before it.
        max_length=config.max_length + 1,
    )
    return ModelConfig(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        dims=size.dims,
        encoder=stack,
        decoder=stack,
        share_embeddings=tokenizer.shared,
        dropout=config.dropout,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        start_id=tokenizer.start_id,
    )


def validate(model: Transformer, corpus: Corpus, batch_tokens: int) -> dict[str, float]:
    """Loss without label smoothing (nats a token) and share of tokens predicted right, by teacher forcing."""
    measure = model.compiled(_measures)
    totals = mx.zeros(3)
    for batch in batches(corpus, batch_tokens):
        totals = totals + measure(mx.array(batch.source), mx.array(batch.target))
        mx.async_eval(totals)
    loss, correct, tokens = np.array(totals).tolist()
    return {"loss": loss / tokens, "token_accuracy": correct / tokens}


def _measures(model: Transformer, source: mx.array, target: mx.array) -> mx.array:
    """Sum of losses, number of tokens predicted right, number of tokens."""
    logits, wanted = model(source, target[:, :-1]), target[:, 1:]
    real = wanted != model.config.pad_id
    correct = (logits.argmax(axis=-1) == wanted) & real
    return mx.stack([(token_losses(logits, wanted) * real).sum(), correct.sum(), real.sum()])


def _read(specs: tuple[str, ...], split: str, config: TrainingConfig) -> list[tuple[str, str]]:
    read = [read_pairs(spec, split=split, skip_bad_lines=config.skip_bad_lines) for spec in specs]
    if skipped := sum(part.skipped for part in read):
        logger.warning("%d bad lines of %s were skipped.", skipped, ", ".join(specs))
    return [pair for part in read for pair in part.pairs]


def _train_tokenizer(pairs: list[tuple[str, str]], config: TrainingConfig) -> Tokenizer:
    sources, targets = zip(*pairs, strict=True)
    return Tokenizer.train(sources, targets, config.vocab_size, shared=config.shared_vocabulary)


def read_options(run: str | Path) -> TrainingConfig:
    """The options of a run that was started.

    Raises:
        FileNotFoundError: If there is no run with a checkpoint.
        ValueError: If its options.json is damaged.
    """
    path = Path(run) / "options.json"
    if not (Path(run) / "last").exists() or not path.exists():
        raise FileNotFoundError(f"There is no run to resume in {run}: start one, without resume.")
    return from_dict(TrainingConfig, checkpoint.read_json(path), str(path))


def _check_same_run(config: TrainingConfig) -> None:
    """Refuse to resume with options that would make it another run."""
    former = replace(read_options(config.output), output=config.output, steps=config.steps, resume=config.resume)
    if former != config:
        changed = [name for name, value in to_dict(config).items() if value != to_dict(former)[name]]
        raise ValueError(
            f"A run goes on with its own options, but {', '.join(changed)} differ from {config.output}/options.json; "
            "only steps may."
        )


def _stream(corpus: Corpus, config: TrainingConfig) -> Iterator[Batch]:
    """The batches of one epoch after the other, without end."""
    for epoch in count():
        yield from batches(corpus, config.batch_tokens, seed=config.seed, epoch=epoch)


def _loop(
    trainer: Trainer,
    tokenizer: Tokenizer,
    training: list[tuple[str, str]],
    validation: list[tuple[str, str]],
    record: Callable[..., None],
) -> None:
    """Update, log, validate and save until the last step."""
    config = trainer.config
    corpus = Corpus.build(training, tokenizer, config.max_length)
    valid_corpus = Corpus.build(validation, tokenizer, config.max_length)
    if trainer.group.rank() == 0:
        sizes = {"parameters": trainer.model.num_parameters, "pairs": len(corpus), "too_long": corpus.dropped}
        record("start", **sizes, config=to_dict(config))
    meter = Meter(config.steps)
    # The position in the data follows from the step alone: a resumed run passes over what was read. Of several
    # processes (mlx.launch) each takes its share of the batches.
    rank, size = trainer.group.rank(), trainer.group.size()
    for batch in islice(_stream(corpus, config), trainer.step * size + rank, config.steps * size, size):
        meter.add(batch, trainer.update(batch))
        if rank > 0:
            continue  # the first process alone logs, validates and saves
        if trainer.step % config.log_every == 0 or trainer.step == config.steps:
            record("step", **meter.read(trainer))
        if trainer.step % config.valid_every == 0 or trainer.step == config.steps:
            started = time.perf_counter()
            averaged = trainer.averaged()
            results: dict[str, Any] = validate(averaged, valid_corpus, config.batch_tokens)
            check_finite(results["loss"], trainer.step)  # before last/ is replaced
            results |= _translate(averaged, tokenizer, validation, config.bleu_sentences)
            record("validation", **results, best=_keep(trainer, tokenizer, averaged, results))
            meter.started += time.perf_counter() - started


def _keep(trainer: Trainer, tokenizer: Tokenizer, averaged: Transformer, results: dict[str, float]) -> bool:
    """Write last/, and best/ where the results are the best so far; says whether they are."""
    run = Path(trainer.config.output)
    scores = {"accuracy": results["token_accuracy"], "loss": -results["loss"], "bleu": results.get("bleu", 0.0)}
    score = scores[trainer.config.best_by]
    improved = score > trainer.best_score
    if improved:
        trainer.best_score = score
        checkpoint.save(run / "best", averaged, tokenizer)
    trainer.save(run / "last", tokenizer)
    return improved


def _translate(
    model: Transformer, tokenizer: Tokenizer, pairs: list[tuple[str, str]], sentences: int
) -> dict[str, float]:
    """Greedy translations of the first sentences beside their references."""
    if not sentences:
        return {}
    sources, references = group_references(pairs)
    sources, references = sources[:sentences], references[:sentences]
    hypotheses = generate(model, tokenizer, sources)
    if not has_sacrebleu():
        return {"exact_match": exact_match(hypotheses, references)}
    scores = corpus_scores(hypotheses, references)
    return {name: scores[name] for name in ("bleu", "chrf", "exact_match")}


def check_finite(loss: float, step: int) -> None:
    """Stop a run that has diverged.

    Raises:
        ValueError: If the loss is not finite.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"The loss is not finite any more at step {step}: lower learning_rate, or raise warmup_steps; "
            "last/ holds the model before."
        )


class Meter:
    """What the log says of the steps since it was last read."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._restart()

    def _restart(self) -> None:
        """Forget the steps so far and start the clock."""
        self.started = time.perf_counter()
        self.tokens = 0
        self.losses: list[mx.array] = []

    def add(self, batch: Batch, results: tuple[mx.array, mx.array]) -> None:
        """Count a step; nothing is evaluated."""
        loss, self.norm = results
        self.losses.append(loss)
        self.tokens += int((batch.target[:, 1:] != Tokenizer.pad_id).sum())

    def read(self, trainer: Trainer) -> dict[str, float]:
        """Mean loss and speed since the last reading.

        Raises:
            ValueError: If the loss is not finite.
        """
        loss = float(mx.stack(self.losses).mean())
        check_finite(loss, trainer.step)
        seconds = time.perf_counter() - self.started
        values = {
            "steps": self.steps,
            "loss": loss,
            "tokens_per_second": self.tokens / seconds,
            "learning_rate": trainer.optimizer.learning_rate.item(),
            "gradient_norm": self.norm.item(),
            "seconds_left": (self.steps - trainer.step) * seconds / len(self.losses),
        }
        self._restart()
        return values
