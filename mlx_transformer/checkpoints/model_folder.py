"""Model folders: config.json (with a format version), model.safetensors and the tokenizer files."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_transformer.checkpoints.replacement import CARD, is_model_folder, replace_model_folder
from mlx_transformer.config.folder import CONVERSION_VERSION, FolderConfig
from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.messages import short_names, short_repr
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.precision import DTYPES, evaluate_weights, parse_dtype, prepare_for_inference
from mlx_transformer.model.process import check_process
from mlx_transformer.model.quantization import dequantize, quantization_of, quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.model.weights_source import record_source, unchanged_source
from mlx_transformer.storage.checksums import CHECKSUM_FILE, WeightsSource, read_checksums
from mlx_transformer.storage.files import read_json, read_text, sha256_of
from mlx_transformer.storage.safetensors import read_arrays, translate_read_errors, write_arrays
from mlx_transformer.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
MAX_BYTES_TO_VERIFY = 2**30  # of weights; larger ones are verified by `info` only, because it takes seconds
MAX_MISMATCHES = 222  # characters of the names of arrays in an error


def save(
    folder: str | Path,
    model: Transformer,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: mx.Dtype | str | None = None,
    quantize: int | None = None,
) -> None:
    """Write a model folder; an existing one is replaced once the new one is complete.

    Only files of this package are replaced: a folder with others is refused.

    Args:
        folder: The folder to write.
        model: The model; it is not changed.
        tokenizer: Its tokenizer.
        dtype: Data type to store weights in: "float32", "float16" or "bfloat16"; by default the model's own.
        quantize: Bits per weight of linear layers and token embeddings, 8 or 4; None for no quantisation.

    Raises:
        FileExistsError: If `folder` is no model folder, has other files, or is or holds the working directory.
        OSError: If the folder cannot be written; an existing folder stays unchanged.
        ValueError: If `dtype` or `quantize` is invalid, or a width cannot be quantised.
    """
    if tokenizer is not None:
        tokenizer.check_model(model.config)
    stored = _copy_to_store(model, dtype, quantize)
    source = unchanged_source(model)
    # Before `folder` is replaced, which may be the source.
    checksum = source.sha256() if source is not None and all(path.exists() for path in source.files) else None
    with replace_model_folder(Path(folder)) as new:
        write_model_files(new, stored, tokenizer)
        write_config(new, replace(folder_config(stored), base_checksum=checksum))


def convert_model_folder(
    source: Path,
    destination: Path,
    *,
    dtype: mx.Dtype | str | None = None,
    quantize: int | None = None,
    overwrite: bool = True,
) -> None:
    """Write a model folder again in another precision; see `save`.

    Raises:
        FileExistsError: If `destination` exists and `overwrite` is false, or see `save`.
        ValueError: If the model is quantised already, to another number of bits; and see `load`.
    """
    with _detect_replacement(source), translate_read_errors(source / "model.safetensors"):
        config = read_config(source)
        model, tokenizer = read_model(source, config)
        _check_quantization(source, config, quantize)
        stored = _copy_to_store(model, dtype, None if config.quantization else quantize)
        del model  # otherwise its weights would stay in memory beside those to store
        evaluate_weights(stored)
        checksum = weights_source(source, config).sha256()
    with replace_model_folder(destination, source, overwrite=overwrite) as new:
        write_model_files(new, stored, tokenizer)
        version = _conversion_version(source, config)
        write_config(new, replace(folder_config(stored), conversion_version=version, base_checksum=checksum))
        if (source / "README.md").exists():
            shutil.copy(source / "README.md", new)


def _copy_to_store(model: Transformer, dtype: mx.Dtype | str | None, quantize: int | None) -> Transformer:
    """Return a copy of a model in the precision to store."""
    if model.adapter is not None:
        raise ValueError("A model with an adapter cannot be saved as one: call fuse_adapter or remove_adapter first.")
    stored = uninitialized_model(model.config, model.search_defaults, model.tasks.values())
    if (quantization := quantization_of(model)) is not None:
        quantize_weights(stored, quantization)
    stored.update(model.parameters())
    if quantize is not None:
        dequantize(stored)
        quantize_weights(stored, QuantizationConfig(quantize))
    if dtype is not None:  # the scales too, which are computed from the weights as they were
        stored.set_dtype(parse_dtype(dtype))
    return stored


def find_model_folder(path: Path) -> Path | None:
    """Return the model folder that a path names, itself or by its model.safetensors; None if it names none."""
    folder = path.parent if path.name == "model.safetensors" and path.is_file() else path
    return folder if is_model_folder(folder) else None


def write_model_files(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """Write a model's files into an existing folder."""
    write_config(folder, folder_config(model))
    write_arrays(folder / "model.safetensors", split_projections(model.parameters()))
    if tokenizer is not None:
        tokenizer.save(folder)


def folder_config(model: Transformer) -> FolderConfig:
    """Return the contents of config.json for a model."""
    tasks = tuple(model.tasks.values())
    return FolderConfig(FORMAT_VERSION, model.config, model.search_defaults, quantization_of(model), tasks)


def write_config(folder: Path, config: FolderConfig) -> None:
    """Write the config.json of a model folder."""
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load(
    folder: str | Path,
    dtype: mx.Dtype | str | None = None,
    *,
    quantize: int | None = None,
    allow_overflow: bool = False,
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model folder for inference.

    Args:
        folder: The model folder.
        dtype: Data type to compute in: "float32", "float16" or "bfloat16"; by default see `precision.choose_dtype`.
        quantize: Bits per weight, 8 or 4; by default as stored.
        allow_overflow: Allow float16 even if the model overflows it.

    Returns:
        The model and its tokenizer; None for a folder without a tokenizer.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        OSError: If another process replaces the folder meanwhile.
        ValueError: If a file is damaged, has a newer format, or does not match the others.
    """
    folder = Path(folder)
    with preserve_random_state(), _detect_replacement(folder), translate_read_errors(folder / "model.safetensors"):
        config = read_config(folder)
        _check_quantization(folder, config, quantize)
        _warn_of_old_conversion(folder, config)
        model, tokenizer = read_model(folder, config)
        if quantize is not None and config.quantization is None:
            quantize_weights(model, QuantizationConfig(quantize))
        prepare_for_inference(model, dtype, allow_overflow=allow_overflow)
        record_source(model, weights_source(folder, config))
    return model, tokenizer


def load_as_stored(folder: Path) -> tuple[Transformer, Tokenizer | None]:
    """Load a model folder in the precision of its files, to train or to convert it; see `load`."""
    with preserve_random_state(), _detect_replacement(folder), translate_read_errors(folder / "model.safetensors"):
        config = read_config(folder)
        _warn_of_old_conversion(folder, config)
        model, tokenizer = read_model(folder, config)
        mx.eval(model.parameters())
        record_source(model, weights_source(folder, config))
    return model, tokenizer


@contextmanager
def _detect_replacement(folder: Path) -> Iterator[None]:
    """Raise OSError if a folder is replaced while it is read, because its files would not belong together."""
    before = _identity(folder)
    try:
        yield
    except (OSError, ValueError):
        if _identity(folder) == before:
            raise
    if _identity(folder) != before:
        raise OSError(f"{folder} was replaced while it was read: repeat the command.")


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what distinguishes a folder from the one that replaces it; None if it does not exist."""
    try:
        status = (folder / "config.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_model(folder: Path, config: FolderConfig) -> tuple[Transformer, Tokenizer | None]:
    """Read the model and the tokenizer of a model folder as they are stored (lazily)."""
    model = uninitialized_model(config.model, config.search, config.tasks)
    if config.quantization is not None:
        quantize_weights(model, config.quantization)
    read_weights(model, folder / "model.safetensors")
    tokenizer = Tokenizer.find(folder)
    if tokenizer is not None:
        tokenizer.check_model(model.config, f"vocabulary of {folder}")
    verify_weights(folder / "model.safetensors")
    return model, tokenizer


def weights_source(folder: Path, config: FolderConfig) -> WeightsSource:
    """Return where the weights of a model folder are, and the checksum that identifies them."""
    return WeightsSource(folder, (folder / "model.safetensors",), config.base_checksum)


def verify_weights(path: Path) -> None:
    """Raise ValueError if a weights file of moderate size does not match its checksum."""
    if path.stat().st_size > MAX_BYTES_TO_VERIFY or not (path.parent / CHECKSUM_FILE).exists():
        return
    if read_checksums(path.parent).get(path.name) not in (None, sha256_of(path)):
        raise weights_changed(path)


def weights_changed(path: Path) -> ValueError:
    """Return the error for a weights file that does not match its checksum."""
    return ValueError(
        f"{path} does not match its checksum in {CHECKSUM_FILE}: copy it again, or delete {CHECKSUM_FILE} if you have "
        "changed it."
    )


def _check_quantization(folder: Path, config: FolderConfig, quantize: int | None) -> None:
    if config.quantization is not None and quantize not in (None, config.quantization.bits):
        raise ValueError(
            f"{folder} is already quantised to {config.quantization.bits} bits: leave out quantize, or convert the "
            "original."
        )


def _conversion_version(folder: Path, config: FolderConfig) -> int | None:
    """Return the version of the conversion of a converted model, which was not recorded in format 1."""
    is_unrecorded = config.format_version == 1 and (folder / "README.md").is_file()
    return 1 if is_unrecorded and CARD in read_text(folder / "README.md") else config.conversion_version


def _warn_of_old_conversion(folder: Path, config: FolderConfig) -> None:
    """Warn of a converted model that a conversion today might make differently."""
    version = _conversion_version(folder, config)
    if version is not None and version < CONVERSION_VERSION:
        logger.warning(
            "%s was converted by an earlier version of mlx_transformer and may give other results than a conversion "
            "today: convert the checkpoint again.",
            folder,
        )


def read_config(folder: Path) -> FolderConfig:
    """Read the config.json of a model folder.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, has a newer format, or has an invalid or unknown field.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"A model folder has a config.json, but {folder} has none: check the path.")
    data = read_json(path)
    if isinstance(data, dict) and "format_version" not in data:
        raise ValueError(f"{path} must be that of a model folder, but it has no format_version: check the path.")
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {short_repr(version)}, newer than {FORMAT_VERSION}, the newest that this "
            "version of mlx_transformer reads: upgrade mlx_transformer."
        )
    return from_dict(FolderConfig, data, str(path))


def uninitialized_model(config: ModelConfig, search: SearchConfig, tasks: Iterable[TaskConfig] = ()) -> Transformer:
    """Create a model to load weights into, without consuming random numbers of the caller."""
    with preserve_random_state():
        model = Transformer(config, search)
    model.tasks.update((task.name, task) for task in tasks)
    return model


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore MLX's random state after the block."""
    check_process()
    high, low = np.array(cast(Any, mx.random.state)[0]).tolist()
    try:
        yield
    finally:
        mx.random.seed((high << 32) + low)


def read_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model; ValueError if names or shapes do not match."""
    weights = read_arrays(path)
    _check_weights(model, weights, path)
    model.load_weights(list(fuse_projections(weights).items()))


def _check_weights(model: nn.Module, weights: dict[str, mx.array], path: Path) -> None:
    """Raise ValueError with all names, shapes and kinds of numbers in which a file differs from the model."""
    expected = split_projections(model.parameters())
    common = sorted(expected.keys() & weights.keys())
    misshapen = [
        f"{name} {weights[name].shape} instead of {expected[name].shape}"
        for name in common
        if weights[name].shape != expected[name].shape
    ]
    mistyped = [
        f"{name} {_dtype_name(weights[name])} instead of {_dtype_name(expected[name])}"
        for name in common
        if weights[name].shape == expected[name].shape and not _is_allowed(weights[name].dtype, expected[name].dtype)
    ]
    mismatches = describe_mismatches(
        sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys()), misshapen, mistyped
    )
    if mismatches:
        raise ValueError(f"{path} does not hold the arrays of its config.json: {mismatches}.")


def _is_allowed(stored: mx.Dtype, expected: mx.Dtype) -> bool:
    """Whether an array may be stored in a type: any of the floating-point types, but only uint32 if it is packed."""
    return stored in DTYPES.values() if expected in DTYPES.values() else stored == expected


def _dtype_name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def describe_mismatches(
    missing: list[str], unexpected: list[str], misshapen: list[str], mistyped: Sequence[str] = ()
) -> str:
    """Describe how a file's arrays differ from a model's, with counts and a few names; empty if they match."""
    named = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen, "of another type": mistyped}
    kinds = {kind: names for kind, names in named.items() if names}
    length = MAX_MISMATCHES // max(len(kinds), 1) - len("12 of another shape")
    return "; ".join(f"{len(names)} {kind} ({short_names(names, length=length)})" for kind, names in kinds.items())
