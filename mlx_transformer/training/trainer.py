"""Training runs: corpora to a folder with the best and the last model, validation, a log, exact resume."""

import json
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer import __version__
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.serialization import to_dict
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import Batch, BatchPosition, iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.metrics import check_sacrebleu
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.builders import build_model_and_tokenizer
from mlx_transformer.training.run_directory import (
    RunDirectory,
    checkpoint_step,
    load_run_options,
    validation_checkpoints,
)
from mlx_transformer.training.signals import Interruption, defer_signals
from mlx_transformer.training.step_metrics import StepMetrics
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.validation import Validator

logger = logging.getLogger(__name__)
LogCallback = Callable[[dict[str, Any]], None]
LogEntry = Callable[..., None]


def train(config: TrainingConfig, report: LogCallback | None = None) -> Path:
    """Train a model, from scratch, from another one, or from where its run was; returns the folder of the best one.

    SIGINT and SIGTERM end a run after the step that is being taken, with a checkpoint; a second one ends it at once.

    Args:
        config: The run.
        report: Called with each entry of the log as it is written: plain data, "event" says what it is about.

    Raises:
        ValueError: If the corpora or the options cannot be used, or if the loss is not finite any more.
        FileNotFoundError: If a corpus or the model to begin with does not exist.
        FileExistsError: If the run folder holds a run already and `resume` is not set.
        OSError: If a checkpoint cannot be written; the one before it is whole.
        KeyboardInterrupt: If SIGINT ended the run (SystemExit: SIGTERM), after the checkpoint was written.
    """
    if config.best_by in ("bleu", "chrf"):
        check_sacrebleu()
    run = RunDirectory(config.output)
    with run.claimed(first=mx.distributed.init().rank() == 0):
        interruption = _train(run, config, report)
    interruption.end()
    return run.best


def _train(run: RunDirectory, config: TrainingConfig, report: LogCallback | None) -> Interruption:
    """Train in a folder that is ours; tells whether somebody asked to end."""
    first = mx.distributed.init().rank() == 0
    if first:
        run.recover()
    if config.resume:
        _check_same_run(config)
    elif run.checkpoints():
        raise FileExistsError(f"{run.folder} holds a run already: resume it, or choose another output.")
    training, validation = (
        ParallelCorpora(specs, split=split, skip_bad_lines=config.skip_bad_lines)
        for specs, split in ((config.train, "train"), (config.valid, "valid"))
    )
    last = run.newest(set_aside=first)
    with model_folder.preserve_random_state():
        mx.random.seed(config.seed)
        model, tokenizer = build_model_and_tokenizer(config, training, last)
        trainer = TrainState(model, config)
        if last is not None:
            trainer.restore(last)
        if trainer.step > config.steps:
            raise ValueError(
                f"steps must not be less than the run has done: {config.steps} is less than {trainer.step}."
            )
        corpora = [_tokenize_corpora(pairs, trainer, tokenizer) for pairs in (training, validation)]
        _check_same_corpora(trainer, corpora)
        validator = Validator(validation, corpora[1], tokenizer, config)
        with _make_logger(run, trainer, report) as record, defer_signals() as interruption:
            Trainer(run, trainer, tokenizer, validator, record, interruption).fit(corpora[0])
    return interruption


def _tokenize_corpora(corpora: ParallelCorpora, trainer: TrainState, tokenizer: Tokenizer) -> TokenizedCorpus:
    """Pairs as ids, without those that are too long for the run or for the model."""
    config, model = trainer.config, trainer.model.config
    prefix = tokenizer.config.source_prefix
    limit = min(config.max_length, model.encoder.max_length, model.decoder.max_length)
    corpus = TokenizedCorpus.build(corpora, tokenizer, limit, source_prefix=prefix, folder=config.output)
    if corpora.skipped:
        names = ", ".join(spec.text for spec in corpora.specs)
        logger.warning("%d bad lines of %s were skipped.", corpora.skipped, names)
    return corpus


def _check_same_run(config: TrainingConfig) -> None:
    """Refuse to resume with options that would make it another run."""
    former = load_run_options(config.output)
    ending = former.schedule in ("cosine", "linear")
    free = {"output", "resume", "keep", *([] if ending else ["steps"])}
    old, new = to_dict(former), to_dict(config)
    if changed := [name for name, value in new.items() if value != old[name] and name not in free]:
        raise ValueError(
            f"A run goes on with its own options, but {', '.join(changed)} differ from {config.output}/options.toml; "
            f"only {'keep' if ending else 'keep and steps'} may."
        )


def _check_same_corpora(trainer: TrainState, corpora: list[TokenizedCorpus]) -> None:
    """Refuse to resume on other data than the run began with."""
    now = [corpus.fingerprint for corpus in corpora]
    if trainer.progress.setdefault("corpora", now) != now:
        raise ValueError(
            "A run goes on with the corpora that it began with, but what they hold has changed: put the files back, or "
            "start another run, with init to keep what was learned."
        )


@contextmanager
def _make_logger(run: RunDirectory, trainer: TrainState, report: LogCallback | None) -> Iterator[LogEntry]:
    """Prepare the run folder, and give the function that writes an entry of its log."""
    if trainer.group.rank() == 0:
        run.begin(trainer.config, trainer.step, environment_info())
    with run.log.open("a", encoding="utf-8") as log:

        def record(event: str, **values: Any) -> None:
            entry = {"event": event, "step": trainer.step, **values}
            try:
                log.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
                log.flush()
            except OSError as error:
                raise OSError(f"{run.log} could not be written: make room, then resume. {error}") from error
            if report is not None:
                report(entry)

        yield record


def environment_info() -> dict[str, str]:
    """What a run depends on besides its options."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "mlx_transformer": __version__,
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(mx.default_device()),
    }


class Trainer:
    """Update, log, validate and save until the last step, or until somebody asks to end."""

    def __init__(
        self,
        run: RunDirectory,
        trainer: TrainState,
        tokenizer: Tokenizer,
        validator: Validator,
        record: LogEntry,
        interruption: Interruption,
    ) -> None:
        self.run, self.trainer, self.tokenizer, self.config = run, trainer, tokenizer, trainer.config
        self.validator, self.interruption = validator, interruption
        self.first = trainer.group.rank() == 0  # of several processes this one alone logs, validates and saves
        self.record = record if self.first else lambda event, **values: None
        self.meter = StepMetrics(trainer)

    def fit(self, corpus: TokenizedCorpus) -> None:
        """Train to the end."""
        trainer, config = self.trainer, self.config
        sizes = {"parameters": trainer.model.num_parameters, "pairs": len(corpus), "too_long": corpus.dropped}
        self.record("start", **sizes, steps=config.steps, config=to_dict(config), conditions=environment_info())
        if trainer.step == config.steps and trainer.progress.get("validated") != trainer.step:
            self._validate()  # it was stopped here, and is to go no further
        updates = self._updates(corpus)
        while trainer.step < config.steps and not self._stale:
            self.meter.add(*next(updates))
            last = trainer.step == config.steps
            if trainer.step % config.log_every == 0 or last:
                self.record("step", **self.meter.read())
            if trainer.step % config.valid_every == 0 or last:
                self._validate()
            if self._asked_to_end():
                return self._stop()
        self.record("end", reason="patience" if self._stale else "steps", best_score=trainer.progress.get("best_score"))

    def _updates(
        self, corpus: TokenizedCorpus
    ) -> Iterator[tuple[list[tuple[BatchPosition, Batch]], tuple[mx.array, mx.array]]]:
        """Take one step after the other: what was read, and loss and gradient norm."""
        # The position in the data follows from the step alone: a resumed run passes over what was read. Of several
        # processes (mlx.launch) each takes its share of the batches.
        config, rank, size = self.config, self.trainer.group.rank(), self.trainer.group.size()
        skip = self.trainer.step * config.accumulate * size + rank
        placed = iterate_batches(corpus, config.batch_tokens, config.seed, skip=skip, every=size)
        while read := list(islice(placed, config.accumulate)):
            yield read, self.trainer.update([batch for _, batch in read])

    @property
    def _stale(self) -> bool:
        """Whether the best validation is too long ago."""
        return 0 < self.config.patience <= self.trainer.progress.get("stale", 0)

    def _asked_to_end(self) -> bool:
        asked = self.interruption.signal is not None
        if self.trainer.group.size() == 1:
            return asked
        # All processes end at the same step, or some would wait for ever.
        return bool(mx.distributed.all_sum(mx.array(int(asked)), group=self.trainer.group, stream=mx.cpu))

    def _validate(self) -> None:
        """Measure, and write last/ and, where the model is the best so far, best/."""
        progress, group = self.trainer.progress, self.trainer.group
        progress["validated"] = self.trainer.step
        if self.first:
            started = time.perf_counter()
            self.meter.check()  # before last/ is replaced
            model = self.trainer.kept_model(self._earlier())
            try:
                results = self.validator.measure(model)
            except FloatingPointError:
                raise ValueError(self.meter.diverged()) from None
            improved = self._keep(model, results)
            self.record("validation", **results, best=improved)
            self.meter.pass_over(time.perf_counter() - started)
        if group.size() > 1:  # all end together
            stale = progress.get("stale", 0) if self.first else 0
            progress["stale"] = int(mx.distributed.all_sum(mx.array(stale), group=group, stream=mx.cpu))

    def _keep(self, model: Transformer, results: dict[str, Any]) -> bool:
        """Write the model if it is the best so far, which is told, and a checkpoint."""
        progress = self.trainer.progress
        scores = results | {"loss": -results["loss"], "accuracy": results["token_accuracy"]}
        score = scores[self.config.best_by]
        improved = score > progress.get("best_score", -math.inf)
        if improved:
            model_folder.save(self.run.best, model, self.tokenizer)
            progress["best_score"] = score
        progress["stale"] = 0 if improved else progress.get("stale", 0) + 1
        self._save()
        return improved

    def _earlier(self) -> Sequence[Path]:
        """The checkpoints that the model to validate is the mean of, besides the present weights."""
        before = validation_checkpoints(self.run.checkpoints(), self.config.valid_every)
        return before[: self.config.average_checkpoints - 1]

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.trainer.write(folder, self.tokenizer)

        # Those of a line of the log that is yet to come.
        self.trainer.progress["losses"] = [float(loss) for loss in self.meter.losses]
        try:
            self.run.save(write, self.config.keep, self.config.valid_every)
        except OSError as error:
            before = [f"that of step {checkpoint_step(path)} is whole" for path in self.run.checkpoints()[:1]]
            raise OSError(
                f"The checkpoint of step {self.trainer.step} could not be written, "
                f"{before[0] if before else 'and there was none before'}: make room, then resume. {error}"
            ) from error

    def _stop(self) -> None:
        """Save where the run is, unless that was just done."""
        if self.first:
            checkpoints = self.run.checkpoints()
            if not checkpoints or checkpoint_step(checkpoints[0]) < self.trainer.step:
                self.meter.check()
                self._save()
        self.record("stopped", signal=self.interruption.signal)
