"""Training runs: the training loop with validation, a log and checkpoints to resume from."""

import json
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_transformer import __version__, blas
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.serialization import to_dict
from mlx_transformer.config.training import TrainingConfig, split_corpora
from mlx_transformer.data.augmentation import AugmentedCorpora, Rates
from mlx_transformer.data.batch_sampler import PositionedBatch, iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.messages import short_repr
from mlx_transformer.metrics import check_sacrebleu
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.builders import build_model_and_tokenizer
from mlx_transformer.training.run_directory import (
    CORPUS_OPTIONS,
    RunDirectory,
    checkpoint_step,
    load_run_options,
    validation_checkpoints,
    with_absolute_paths,
)
from mlx_transformer.training.signals import Interruption, defer_signals
from mlx_transformer.training.step_metrics import StepMetrics, TrainingStep
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.validation import Validation, Validator

logger = logging.getLogger(__name__)
BAD_LINE_REMEDY = "correct it, or skip such lines with --skip-bad-lines (skip_bad_lines=True)"
LogCallback = Callable[[dict[str, Any]], bool | None]
StepCallback = Callable[[TrainingStep], bool | None]
ValidationCallback = Callable[[Validation], bool | None]
EventLogger = Callable[..., None]  # log_event(event, **values)


class Callbacks(NamedTuple):
    """Functions to call during training, see `train`."""

    report: LogCallback | None = None
    on_step: StepCallback | None = None
    on_validation: ValidationCallback | None = None


def train(
    config: TrainingConfig,
    report: LogCallback | None = None,
    *,
    on_step: StepCallback | None = None,
    on_validation: ValidationCallback | None = None,
) -> Path:
    """Train or fine-tune a model, or resume a run; return the folder of the best model.

    SIGINT and SIGTERM stop the run after the current step, with a checkpoint; a second signal stops it at once. So does
    a callback that returns False, after which this function returns the best model, or the last one if none was
    validated. An exception of a callback is raised after the checkpoint was written; no other callback is called
    meanwhile. The run can be resumed.

    Args:
        config: Options of the run.
        report: Called with each log entry as it is written: a dict of plain data, whose "event" names its kind.
        on_step: Called after each step. Training waits for the step to have its loss, which costs a GPU some speed.
        on_validation: Called after each validation, when its checkpoint was written.

    Raises:
        ValueError: If the corpora or the options are invalid, or if the loss becomes NaN or infinite.
        FileNotFoundError: If a corpus or the initial model does not exist.
        FileExistsError: If the run folder already holds a run and `resume` is not set.
        OSError: If a checkpoint cannot be written; the previous one is still intact.
        KeyboardInterrupt: If SIGINT stopped the run (SystemExit: SIGTERM), after the checkpoint was written.
    """
    if config.best_by in ("bleu", "chrf"):
        check_sacrebleu()
    run_directory = RunDirectory(config.output)
    with run_directory.lock(is_main_process=mx.distributed.init().rank() == 0):
        interruption = _train(run_directory, config, Callbacks(report, on_step, on_validation))
    interruption.raise_error()
    return run_directory.best if run_directory.best.exists() else run_directory.last


def _train(run_directory: RunDirectory, config: TrainingConfig, callbacks: Callbacks) -> Interruption:
    """Train in a locked run folder; return the interruption, which holds what stopped the run, if anything did."""
    is_main_process = mx.distributed.init().rank() == 0
    if is_main_process:
        if mx.default_device() == mx.cpu and (advice := blas.speed_advice()):
            logger.warning(advice)
        run_directory.recover()
    options: dict[str, Any] = {"skip_bad_lines": config.skip_bad_lines, "remedy": BAD_LINE_REMEDY}
    in_memory = {
        name: ParallelCorpora(pairs, split=name, **options)
        for name in CORPUS_OPTIONS
        if (pairs := split_corpora(name, vars(config)[name])[1])
    }
    if config.resume:
        _check_same_options(config)
    else:
        run_directory.check_new(in_memory)
    rates = Rates(*(vars(config)[name] for name in Rates._fields))
    train_pairs = AugmentedCorpora(config.train, rates, config.seed, split="train", **options)
    valid_pairs = ParallelCorpora(config.valid, split="valid", **options)
    config = with_absolute_paths(config)
    wait_for_all_processes()  # all have checked the folder, before the main process writes to it
    checkpoint = run_directory.latest_checkpoint(set_aside_damaged=is_main_process)
    with model_folder.preserve_random_state():
        mx.random.seed(config.seed)
        logger.info("Reading the corpora" if checkpoint is None and config.init is None else "Loading the model")
        model, tokenizer = build_model_and_tokenizer(config, train_pairs, checkpoint)
        state = TrainState(model, config)
        if checkpoint is not None:
            state.restore(checkpoint)
            _forget_lost_best(run_directory, state)
        if state.step > config.steps:
            raise ValueError(f"steps must be at least the run's {state.step} finished steps, not {config.steps}.")
        logger.info("Tokenising the corpora")
        corpora = [_tokenize_corpora(pairs, state, tokenizer) for pairs in (train_pairs, valid_pairs)]
        _check_same_corpora(state, corpora)
        if checkpoint is None and config.adapter is None:  # an adapter has no tokenizer
            longest, ratio = corpora[0].usual_lengths()
            tokenizer.config = replace(
                tokenizer.config,
                max_sentence_tokens=longest,
                min_length_ratio=round(ratio, 3),
                recase=config.recase or tokenizer.config.recase,
            )
        validator = Validator(valid_pairs, corpora[1], tokenizer, config)
        with (
            defer_signals() as interruption,
            _open_log(run_directory, state, in_memory, callbacks.report, interruption) as log_event,
        ):
            Trainer(run_directory, state, tokenizer, validator, log_event, interruption, callbacks).fit(corpora[0])
    return interruption


def wait_for_all_processes() -> None:
    """Return when every process of a distributed run has called this function."""
    mx.eval(mx.distributed.all_sum(mx.array(1), stream=mx.cpu))


def _forget_lost_best(run_directory: RunDirectory, state: TrainState) -> None:
    """Let the next validation write best/ again if it is missing or damaged."""
    if state.group.rank() == 0 and "best_score" in state.progress and not run_directory.check_best():
        del state.progress["best_score"]
        if state.group.size() == 1:  # several processes must agree on whether they validate
            state.progress.pop("validated")


def _tokenize_corpora(corpora: ParallelCorpora, state: TrainState, tokenizer: Tokenizer) -> TokenizedCorpus:
    """Tokenise pairs, without those that are too long for the run or the model."""
    config, model = state.config, state.model.config
    prefix = tokenizer.config.source_prefix
    max_tokens = min(config.max_length, model.encoder.max_length, model.require_decoder().max_length)
    corpus = TokenizedCorpus.build(corpora, tokenizer, max_tokens, source_prefix=prefix, folder=config.output)
    if corpora.skipped:
        names = ", ".join(spec.text for spec in corpora.specs)
        logger.warning("Skipped %d bad lines of %s.", corpora.skipped, names)
    return corpus


def _check_same_options(config: TrainingConfig) -> None:
    """Raise ValueError if a run would resume with options other than its own."""
    original = load_run_options(config.output)
    fixed_length = original.schedule in ("cosine", "linear")
    # The contents of the corpora must be the same, not their paths, nor that of the base of an adapter.
    changeable = {"output", "resume", "keep", "train", "valid", *([] if fixed_length else ["steps"])}
    if config.adapter is not None:
        changeable.add("init")
    old, new = to_dict(with_absolute_paths(original)), to_dict(with_absolute_paths(config))
    if changed := [name for name, value in new.items() if value != old[name] and name not in changeable]:
        values = ", ".join(f"{name} was {short_repr(old[name])} and is {short_repr(new[name])}" for name in changed)
        raise ValueError(
            f"A run resumes with its own options, those of {config.output}/options.toml, but {values}; "
            f"only {'keep' if fixed_length else 'keep, steps'} and the paths of the corpora may change."
        )


def _check_same_corpora(state: TrainState, corpora: list[TokenizedCorpus]) -> None:
    """Raise ValueError if a run would resume on other data than it started with."""
    fingerprints = [corpus.fingerprint for corpus in corpora]
    if state.progress.setdefault("corpora", fingerprints) != fingerprints:
        raise ValueError(
            "A run resumes on its own corpora, but their contents have changed: restore the files or pairs, or start "
            "another run from the best model with init."
        )


@contextmanager
def _open_log(
    run_directory: RunDirectory,
    state: TrainState,
    pairs: Mapping[str, ParallelCorpora],
    report: LogCallback | None,
    interruption: Interruption,
) -> Iterator[EventLogger]:
    """Prepare the run folder, which holds pairs in memory, and yield a function that appends an event to its log."""
    if state.group.rank() == 0:
        run_directory.prepare(state.config, state.step, environment_info(), pairs)
    with run_directory.log_file.open("a", encoding="utf-8") as log:

        def log_event(event: str, **values: Any) -> None:
            entry = {"event": event, "step": state.step, **values}
            try:
                log.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
                log.flush()
            except OSError as error:
                raise OSError(
                    f"{run_directory.log_file} could not be written: free some space, then resume. {error}"
                ) from error
            if report is not None:
                interruption.call(report, entry)

        yield log_event


def environment_info() -> dict[str, str]:
    """Return the command, versions and device that a run used."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "mlx_transformer": __version__,
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(mx.default_device()),
    }


class Trainer:
    """The training loop: updates, logs, validates and saves until the last step, or until it is asked to stop."""

    def __init__(
        self,
        run_directory: RunDirectory,
        state: TrainState,
        tokenizer: Tokenizer,
        validator: Validator,
        log_event: EventLogger,
        interruption: Interruption,
        callbacks: Callbacks,
    ) -> None:
        self.run_directory, self.state, self.tokenizer, self.config = run_directory, state, tokenizer, state.config
        self.validator, self.interruption = validator, interruption
        self.is_main_process = state.group.rank() == 0  # the only one that logs, validates and saves
        self.log_event = log_event if self.is_main_process else lambda event, **values: None
        self.callbacks = callbacks if self.is_main_process else Callbacks()
        self.metrics = StepMetrics(state)

    def fit(self, corpus: TokenizedCorpus) -> None:
        """Train until the last step, until patience runs out, or until a signal or a callback asks to stop."""
        state, config = self.state, self.config
        sizes = {"parameters": state.model.num_parameters, "pairs": len(corpus), "too_long": corpus.num_dropped}
        settings = {"config": to_dict(config), "search": to_dict(state.model.search_defaults)}
        self.log_event("start", **sizes, steps=config.steps, **settings, conditions=environment_info())
        if state.step == config.steps and state.progress.get("validated") != state.step:
            self._validate()  # stopped at what is now the last step
        logger.info("Compiling the first step")
        updates, first_step = self._train_steps(corpus), state.step + 1
        while state.step < config.steps and not self._out_of_patience:
            self.metrics.add(*next(updates))
            if self.callbacks.on_step is not None:
                self._call(self.callbacks.on_step, self.metrics.latest_step())
            is_last = state.step == config.steps
            if state.step % config.log_every == 0 or is_last:
                self.log_event("step", **self.metrics.flush())
            elif state.step == first_step:
                self.metrics.check_finite()  # waits for the step
                logger.info("Training; loss and speed are shown every %d steps", config.log_every)
            if state.step % config.valid_every == 0 or is_last:
                self._validate()
            if self._stop_requested():
                return self._stop()
        reason = "patience" if self._out_of_patience else "steps"
        self.log_event("end", reason=reason, best_score=state.progress.get("best_score"))

    def _train_steps(
        self, corpus: TokenizedCorpus
    ) -> Iterator[tuple[list[PositionedBatch], tuple[mx.array, mx.array]]]:
        """Run one step after another; yield its batches, and its loss and gradient norm."""
        # The position in the data depends only on the step, so a resumed run skips what it has already read. With
        # several processes (mlx.launch) each reads its share of the batches.
        config, rank, size = self.config, self.state.group.rank(), self.state.group.size()
        skip = self.state.step * config.accumulate * size + rank
        stream = iterate_batches(corpus, config.batch_tokens, config.seed, skip=skip, every=size)
        while batches := list(islice(stream, config.accumulate)):
            yield batches, self.state.update([batch for _, batch in batches])

    def _call(self, callback: Callable[[Any], bool | None], report: TrainingStep | Validation) -> None:
        """Call a callback, and do not count its time."""
        started = time.perf_counter()
        self.interruption.call(callback, report)
        self.metrics.exclude_time(time.perf_counter() - started)

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.state.progress.get("stale", 0)

    def _stop_requested(self) -> bool:
        requested = self.interruption.requested
        if self.state.group.size() == 1:
            return requested
        # All processes must stop at the same step, or some would wait for the others forever.
        return bool(mx.distributed.all_sum(mx.array(int(requested)), group=self.state.group, stream=mx.cpu))

    def _validate(self) -> None:
        """Validate, write last/ and, if the model is the best so far, best/."""
        progress, group = self.state.progress, self.state.group
        progress["validated"] = self.state.step
        logger.info("Validating")
        if self.is_main_process:
            started = time.perf_counter()
            self.metrics.check_finite()  # before last/ is replaced
            model = self.state.eval_model(self._checkpoints_to_average())
            try:
                results = self.validator.measure(model)
            except FloatingPointError:
                raise ValueError(self.metrics.divergence_message()) from None
            improved = self._save_validated(model, results)
            self.log_event("validation", **results, best=improved)
            self.metrics.exclude_time(time.perf_counter() - started)
            if self.callbacks.on_validation is not None:
                self._call(self.callbacks.on_validation, Validation(self.state.step, is_best=improved, **results))
        if group.size() > 1:  # all processes need the count, to stop together
            stale = progress.get("stale", 0) if self.is_main_process else 0
            progress["stale"] = int(mx.distributed.all_sum(mx.array(stale), group=group, stream=mx.cpu))

    def _save_validated(self, model: Transformer, results: dict[str, Any]) -> bool:
        """Save a checkpoint, and the model if it is the best so far; return whether it is."""
        progress = self.state.progress
        scores = results | {"loss": -results["loss"], "accuracy": results["token_accuracy"]}
        score = scores[self.config.best_by]
        improved = score > progress.get("best_score", -math.inf)
        if improved:
            self.run_directory.save_best(model, self.tokenizer)
            progress["best_score"] = score
        progress["stale"] = 0 if improved else progress.get("stale", 0) + 1
        self._save_checkpoint()
        return improved

    def _checkpoints_to_average(self) -> Sequence[Path]:
        """The earlier checkpoints to average with the current weights."""
        checkpoints = validation_checkpoints(self.run_directory.checkpoints(), self.config.valid_every)
        return checkpoints[: self.config.average_checkpoints - 1]

    def _save_checkpoint(self) -> None:
        def write(folder: Path) -> None:
            self.state.write(folder, self.tokenizer)

        # Losses since the last log entry, for the next one.
        self.state.progress["losses"] = [float(loss) for loss in self.metrics.losses]
        try:
            self.run_directory.save_checkpoint(write, self.config.keep, self.config.valid_every)
        except OSError as error:
            intact = [f"that of step {checkpoint_step(path)} is intact" for path in self.run_directory.checkpoints()]
            raise OSError(
                f"The checkpoint of step {self.state.step} could not be written, "
                f"{intact[0] if intact else 'and there is no earlier one'}: free some space, then resume. {error}"
            ) from error

    def _stop(self) -> None:
        """Save a checkpoint, unless this step already has one."""
        if self.is_main_process:
            checkpoints = self.run_directory.checkpoints()
            if not checkpoints or checkpoint_step(checkpoints[0]) < self.state.step:
                self.metrics.check_finite()
                self._save_checkpoint()
        self.log_event("stopped", signal=self.interruption.signal)
