"""Converts torch checkpoints to model folders."""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.checkpoints.replacement import CARD, check_destination, replace_model_folder
from mlx_transformer.config.folder import CONVERSION_VERSION
from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.messages import short_names, shorten
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.precision import (
    DTYPES,
    check_dtype,
    compute_dtype,
    default_dtype,
    parse_dtype,
    prepare_for_inference,
)
from mlx_transformer.model.quantization import quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.model.weights_source import record_source
from mlx_transformer.storage import safetensors
from mlx_transformer.storage.atomic import restore_interrupted_replacement
from mlx_transformer.storage.checksums import WeightsSource, combine_checksums
from mlx_transformer.storage.files import sha256_of
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.assumptions import Assumption
from mlx_transformer.weights.conversion_plan import (
    ConversionPlan,
    ProgressCallback,
    check_convertible,
    parameter_shapes,
    plan_conversion,
)
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.formats.checkpoint import Checkpoint, read_checkpoint
from mlx_transformer.weights.formats.model_archive import unpacked
from mlx_transformer.weights.formats.tensors import quote
from mlx_transformer.weights.generation_config import (
    decoder_start_id,
    read_generation_config,
    search_config,
    task_configs,
    unsupported_settings,
)
from mlx_transformer.weights.sentence_transformers import limit_text_length, read_pooling
from mlx_transformer.weights.source_config import (
    read_config,
    read_joeynmt_options,
    read_marian_search_options,
    read_sibling_options,
    training_options,
)
from mlx_transformer.weights.tokenizers.loading import read_tokenizer
from mlx_transformer.weights.tokenizers.options import TokenizerOptions
from mlx_transformer.weights.tokenizers.user_vocabularies import UserVocabularies

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointOptions:
    """How a checkpoint is read; see `convert`."""

    family: str | None = None
    rename: dict[str, str] | None = None
    ignore: Sequence[str] = ()
    settings: dict[str, Any] | None = None
    weights: str | None = None
    tokenizer: TokenizerOptions | str | Path | None = None


DEFAULT_OPTIONS = CheckpointOptions()


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion found in a checkpoint, and what it assumed.

    Attributes:
        family: The checkpoint's family.
        config: The model's configuration.
        num_tensors: The number of tensors that fit the family.
        prefixes: What stood before the names of layers.
        left_out: Tensors beside the model, which were left out.
        other_weights: Further weights in the file that may be chosen, such as averages: keys, or prefixes of names.
        settings_read: Settings that the options of a training program show, for models of people's own.
        assumptions: Settings that nothing in the checkpoint shows.
        has_tokenizer: Whether the model has a tokenizer.
    """

    family: str
    config: ModelConfig
    num_tensors: int
    prefixes: tuple[str, ...]
    left_out: tuple[str, ...]
    other_weights: tuple[str, ...]
    settings_read: dict[str, Any]
    assumptions: tuple[Assumption, ...]
    has_tokenizer: bool


@dataclass
class PreparedCheckpoint:
    """A checkpoint that is ready to be converted.

    Attributes:
        plan: The model's configuration and the source of each parameter.
        search: The search of its generation settings.
        tasks: The tasks that it was trained for.
        tokenizer: Its tokenizer, None if it has none.
        other_weights: The keys of state dicts in the file that were not chosen.
    """

    plan: ConversionPlan
    search: SearchConfig
    tasks: tuple[TaskConfig, ...]
    tokenizer: Tokenizer | None
    other_weights: tuple[str, ...]

    def report(self) -> ConversionReport:
        """Return what was found and assumed."""
        plan, fit = self.plan, self.plan.fit
        return ConversionReport(
            family=plan.family,
            config=plan.config,
            num_tensors=len(fit.fitting),
            prefixes=fit.prefixes,
            left_out=tuple(name for name in fit.left_out if name not in plan.names.tensor_names.values()),
            other_weights=(*self.other_weights, *(prefix.rstrip(".") for prefix in fit.copies)),
            settings_read=plan.settings_read,
            assumptions=plan.assumptions,
            has_tokenizer=self.tokenizer is not None,
        )

    def build_model(self, quantize: int | None) -> Transformer:
        """Return a model without parameters, quantised to this number of bits unless None."""
        model = model_folder.uninitialized_model(self.plan.config, self.search, self.tasks)
        if quantize is not None:
            quantize_weights(model, QuantizationConfig(quantize))
        return model


def convert(
    source: str | Path,
    destination: str | Path | None = None,
    *,
    family: str | None = None,
    dtype: mx.Dtype | str | None = None,
    rename: dict[str, str] | None = None,
    ignore: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    weights: str | None = None,
    tokenizer: TokenizerOptions | str | Path | None = None,
    quantize: int | None = None,
    allow_overflow: bool = False,
    force: bool = False,
    report: ProgressCallback | None = None,
    dry_run: bool = False,
) -> ConversionReport | None:
    """Convert a torch checkpoint to a model folder, without torch; or a model folder to another precision.

    Args:
        source: The checkpoint: a folder with config.json and weights, or a file; or a model folder.
        destination: The model folder to write; only a dry run needs none.
        family: The checkpoint's family; by default it is detected.
        dtype: The dtype of the stored weights, "float32", "float16" or "bfloat16"; by default the checkpoint's. Of a
            torch checkpoint also "device": the one that this device computes in by default, or a smaller stored one.
        rename: Regular expressions -> their replacements in tensor names: names of the family, or of our parameters.
        ignore: Regular expressions of tensors to leave out.
        settings: Fields of ModelConfig and StackConfig that the checkpoint lacks or has wrong; "encoder.num_layers"
            names one stack.
        weights: Which of several state dicts in the file, by its key, as "ema", or the prefix of its tensors' names.
        tokenizer: The vocabularies of a checkpoint without a tokenizer, or a file; they take the place of its own.
        quantize: Bits per weight of linear layers and token embeddings, 8 or 4; None for no quantisation.
        allow_overflow: Store float16 even if the model's activations exceed its range.
        force: Replace an existing model folder; one with files that this package did not write is refused.
        report: Called with the bytes done and the total, after each piece of a tensor.
        dry_run: Check everything, but write nothing.

    Returns:
        What was found and assumed; None for a model folder.

    Raises:
        ConversionError: If tensors do not fit the family; its `details` list them. Nothing is written.
        ValueError: If the checkpoint is damaged, its family is unknown, or its dimensions rule out quantisation.
        OSError: If a file cannot be read or written, or the destination exists.
    """
    options = CheckpointOptions(family, rename, ignore, settings, weights, tokenizer)
    source, target = Path(source), prepare_destination(source, destination, force, dry_run)
    if (folder := model_folder.find_model_folder(source)) is not None:
        check_folder_conversion(folder, options, dtype, allow_overflow)
        if target is not None:
            model_folder.convert_model_folder(folder, target, dtype=dtype, quantize=quantize, overwrite=force)
        return None
    with open_checkpoint(source, options) as (checkpoint, folder):
        prepared = prepare_checkpoint(checkpoint, folder, options)
        model = prepared.build_model(quantize)
        stored = dtype_to_store(checkpoint, prepared.plan.config, dtype, allow_overflow)
        if target is not None:
            with replace_model_folder(target, source, overwrite=force) as new:
                _write_model_folder(new, model, prepared, checkpoint, stored, quantize, report)
    return prepared.report()


def prepare_destination(
    source: str | Path, destination: str | Path | None, overwrite: bool, dry_run: bool
) -> Path | None:
    """Check that a model folder may be written to a destination, and return it; None for a dry run."""
    restore_interrupted_replacement(Path(source))
    if destination is None:
        if not dry_run:
            raise ValueError("convert needs a destination, unless it is a dry run.")
        return None
    restore_interrupted_replacement(Path(destination))
    check_destination(Path(destination), Path(source), overwrite=overwrite)
    return None if dry_run else Path(destination)


def load(
    source: str | Path,
    *,
    family: str | None = None,
    dtype: mx.Dtype | str | None = None,
    rename: dict[str, str] | None = None,
    ignore: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    weights: str | None = None,
    tokenizer: TokenizerOptions | str | Path | None = None,
    quantize: int | None = None,
    allow_overflow: bool = False,
) -> tuple[Transformer, Tokenizer | None]:
    """Convert a torch checkpoint in memory; see `convert` for the parameters.

    Returns:
        The model and its tokenizer, None if it has none.

    Raises:
        ConversionError: If tensors are missing, unexpected or of the wrong shape.
        ValueError: If the checkpoint is damaged or its family is unknown.
    """
    options = CheckpointOptions(family, rename, ignore, settings, weights, tokenizer)
    with model_folder.preserve_random_state(), open_checkpoint(source, options) as (checkpoint, folder):
        prepared = prepare_checkpoint(checkpoint, folder, options)
        warn_of_assumptions(source, prepared.report())
        model = prepared.build_model(quantize)
        computed = compute_dtype(dtype, stored_dtype(checkpoint), prepared.plan.config, allow_overflow)
        prepared.plan.fill(model, computed)
        prepare_for_inference(model, computed, allow_overflow=allow_overflow)
        # Unpacked files are gone later.
        checksum = None if folder == Path(source) else combine_checksums(list(file_checksums(checkpoint).values()))
        record_source(model, WeightsSource(Path(source), tuple(checkpoint.files), checksum))
    return model, prepared.tokenizer


def warn_of_assumptions(source: str | Path, report: ConversionReport) -> None:
    """Warn of settings that a checkpoint does not show, and of tensors that were left out, on a line each."""
    if values := ", ".join(f"{item.setting} {item.value}" for item in report.assumptions):
        logger.warning("Assumed, because %s does not show it: %s; see convert --dry-run.", source, values)
    if report.left_out:
        logger.warning("Left out, as not of the model in %s: %s.", source, short_names(report.left_out))


def check_folder_conversion(
    folder: Path, options: CheckpointOptions, dtype: mx.Dtype | str | None, allow_overflow: bool
) -> None:
    """Raise ValueError if a model folder cannot have a dtype, or options for a checkpoint are given for it."""
    if given := [name for name, value in vars(options).items() if value]:
        raise ValueError(f"{folder} is a model folder and no torch checkpoint: leave out {' and '.join(given)}.")
    if dtype is not None:
        check_dtype(parse_dtype(dtype), model_folder.read_config(folder).model, allow_overflow)


@contextmanager
def open_checkpoint(
    source: str | Path, options: CheckpointOptions = DEFAULT_OPTIONS
) -> Iterator[tuple[Checkpoint, Path]]:
    """Open a checkpoint; one whose config.json rules out a conversion is refused first, as its weights may be missing.

    Returns:
        The checkpoint and its path: `source`, or the temporary folder that a packed one was unpacked to.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged or not supported.
    """
    with unpacked(Path(source)) as path:
        if options.family is None:
            check_convertible(read_config(path))
        with read_checkpoint(path, options.weights) as checkpoint:
            yield checkpoint, path


def prepare_checkpoint(
    checkpoint: Checkpoint, source: Path, options: CheckpointOptions = DEFAULT_OPTIONS
) -> PreparedCheckpoint:
    """Plan a conversion and read search, tasks and tokenizer; of the tensors, only embeddings are read to compare."""
    config = read_config(source)
    generation = read_generation_config(source, config)
    start = decoder_start_id(config, generation)
    vocabularies = UserVocabularies.read(options.tokenizer) if options.tokenizer else None
    settings = config or read_settings(source, checkpoint)
    plan = plan_conversion(
        checkpoint,
        settings,
        family=options.family,
        rename=options.rename,
        ignore=options.ignore,
        overrides=options.settings,
        defaults={} if start is None else {"start_id": start},
        vocabulary=vocabularies.find_model_ids(options.settings or {}) if vocabularies else None,
        pooling=read_pooling(source),
    )
    if plan.config.pooling is not None:
        plan.config = limit_text_length(plan.config, source)
    if plan.config.decoder is None:
        tokenizer = read_tokenizer(source, plan, checkpoint.extras, None, vocabularies)
        return PreparedCheckpoint(plan, SearchConfig(), (), tokenizer, tuple(checkpoint.other_weights))
    search = search_config(generation, plan.config)
    if unsupported := unsupported_settings(generation) if config else []:
        logger.warning("Unsupported generation settings are ignored: %s.", ", ".join(map(quote, unsupported)))
    rules = {} if config else FAMILIES[plan.family].search
    values = {name: _search_value(rule, settings, plan.config) for name, rule in rules.items()}
    search = replace(search, **{name: value for name, value in values.items() if value is not None})
    tokenizer = read_tokenizer(source, plan, checkpoint.extras, search.forced_bos_id, vocabularies)
    tasks = task_configs(config, generation, plan.config)
    return PreparedCheckpoint(plan, search, tasks, tokenizer, tuple(checkpoint.other_weights))


def _search_value(rule: Any, settings: dict[str, Any], config: ModelConfig) -> Any:
    """Return the value of a search field by a rule of `Family.search`."""
    if callable(rule):
        return rule(settings, config)
    return settings.get(rule) if isinstance(rule, str) else rule


def read_settings(source: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the options of the training program, from the checkpoint itself rather than from files next to it."""
    beside = read_sibling_options(source) | read_joeynmt_options(source) | read_marian_search_options(source)
    return beside | training_options(checkpoint.extras)


def stored_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """Return the dtype of most of a checkpoint's values, or float32 if models cannot be stored in that."""
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return DTYPES.get(max(sizes, key=lambda name: sizes[name]), mx.float32)


def dtype_to_store(
    checkpoint: Checkpoint, config: ModelConfig, dtype: mx.Dtype | str | None, allow_overflow: bool
) -> mx.Dtype:
    """Return the dtype to store a checkpoint in; see `convert`."""
    stored = stored_dtype(checkpoint)
    if dtype is None:
        return stored
    if dtype == "device":
        computed = default_dtype(stored, config)
        return computed if computed.size <= stored.size else stored
    check_dtype(parse_dtype(dtype), config, allow_overflow)
    return parse_dtype(dtype)


def _write_model_folder(
    new: Path,
    model: Transformer,
    prepared: PreparedCheckpoint,
    checkpoint: Checkpoint,
    dtype: mx.Dtype,
    quantize: int | None,
    report: ProgressCallback | None,
) -> None:
    """Write all files of a model folder; the checkpoint's files are hashed for its card while weights are written."""
    plan = prepared.plan
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as executor:
        checksums = executor.submit(file_checksums, checkpoint, stop)
        try:
            if quantize is None:
                _write_weights(new, plan, dtype, report)
            else:
                plan.fill(model, dtype, report)
                safetensors.write_arrays(new / "model.safetensors", split_projections(model.parameters()))
            (new / "README.md").write_text(model_card(plan, checksums.result(), dtype, quantize))
        finally:
            stop.set()
    config = replace(
        model_folder.folder_config(model),
        conversion_version=CONVERSION_VERSION,
        base_checksum=combine_checksums(list(checksums.result().values())),
    )
    model_folder.write_config(new, config)
    if prepared.tokenizer is not None:
        prepared.tokenizer.save(new)


def _write_weights(new: Path, plan: ConversionPlan, dtype: mx.Dtype, report: ProgressCallback | None) -> None:
    """Write the parameters of the model without holding all of them in memory."""
    shapes = parameter_shapes(plan.config)
    total = sum(mx.zeros(shape, dtype).nbytes for shape in shapes.values())
    done = 0

    def read_pieces(name: str) -> Iterator[mx.array]:
        nonlocal done
        for array in plan.read_pieces(name):
            yield array
            done += array.size * dtype.size
            if report is not None:
                report(done, total)

    safetensors.write_streamed(new / "model.safetensors", shapes, dtype, read_pieces)


def file_checksums(checkpoint: Checkpoint, stop: threading.Event | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint by its name; once `stop` is set, they are abandoned."""
    return {path.name: sha256_of(path, stop) for path in checkpoint.files}


def model_card(plan: ConversionPlan, checksums: dict[str, str], dtype: mx.Dtype, quantize: int | None) -> str:
    """Return the README.md of a converted model, with the checksums of the checkpoint's files by name."""
    dtype_name = str(dtype).removeprefix("mlx.core.") + (f", quantised to {quantize} bits" if quantize else "")
    files = "\n".join(f"- {shorten(name, 255)}: sha256 {checksum}" for name, checksum in checksums.items())
    return (
        "---\nlibrary_name: mlx_transformer\n---\n\n"
        f"{CARD} from a torch checkpoint of the family {plan.family}, in {dtype_name}:\n\n"
        f"{files}\n"
    )
