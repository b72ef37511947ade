"""Model folders: config.json (with a format version), model.safetensors and the tokenizer files."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_transformer.config.folder import CONVERSION_VERSION, FolderConfig
from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.precision import parse_dtype, prepare_for_inference
from mlx_transformer.model.quantization import dequantize, quantization_of, quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage.atomic import atomic_replace
from mlx_transformer.storage.files import read_json, read_text
from mlx_transformer.storage.safetensors import read_arrays, write_arrays
from mlx_transformer.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
CARD = "Converted by mlx_transformer"  # in the README.md of converted models


def save(
    folder: str | Path,
    model: Transformer,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: mx.Dtype | str | None = None,
    quantize: int | None = None,
) -> None:
    """Write a model folder; an existing one is replaced once the new one is complete.

    Args:
        folder: The folder to write.
        model: The model; it is not changed.
        tokenizer: Its tokenizer.
        dtype: Data type to store weights in: "float32", "float16" or "bfloat16"; by default the model's own.
        quantize: Bits per weight of linear layers and token embeddings, 8 or 4; None for no quantisation.

    Raises:
        OSError: If the folder cannot be written; an existing folder stays unchanged.
        ValueError: If `dtype` or `quantize` is invalid, or a width cannot be quantised.
    """
    stored = _copy_to_store(model, dtype, quantize)
    with replace_model_folder(Path(folder)) as new:
        write_model_files(new, stored, tokenizer)


def convert_model_folder(
    source: Path, destination: Path, *, dtype: mx.Dtype | str | None = None, quantize: int | None = None
) -> None:
    """Write a model folder again in another precision; see `save`.

    Raises:
        ValueError: If the model is quantised already, to another number of bits; and see `load`.
    """
    config = read_config(source)
    model, tokenizer = read_model(source, config)
    _check_quantization(source, config, quantize)
    stored = _copy_to_store(model, dtype, None if config.quantization else quantize)
    with replace_model_folder(destination) as new:
        write_model_files(new, stored, tokenizer)
        write_config(new, replace(folder_config(stored), conversion_version=_conversion_version(source, config)))
        if (source / "README.md").exists():
            shutil.copy(source / "README.md", new)


def _copy_to_store(model: Transformer, dtype: mx.Dtype | str | None, quantize: int | None) -> Transformer:
    """Return a copy of a model in the precision to store."""
    stored = uninitialized_model(model.config, model.search_defaults, model.tasks.values())
    if (quantization := quantization_of(model)) is not None:
        quantize_weights(stored, quantization)
    stored.update(model.parameters())
    if dtype is not None:
        stored.set_dtype(parse_dtype(dtype))
    if quantize is not None:
        dequantize(stored)
        quantize_weights(stored, QuantizationConfig(quantize))
    return stored


@contextmanager
def replace_model_folder(folder: Path, retired: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that replaces a model folder when the block ends without an error; see `atomic_replace`.

    Raises:
        FileExistsError: If `folder` is a file, or a folder with files that is not a model folder.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_model_folder(folder)):
        raise FileExistsError(f"{folder.resolve()} exists and is not a model folder: choose another name.")
    with atomic_replace(folder, retired) as new:
        yield new


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has the config.json of a model folder, of any format version."""
    path = folder / "config.json"
    try:
        data = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(data, dict) and "format_version" in data


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
        dtype: Data type to compute in: "float32", "float16" or "bfloat16"; by default float32 on the CPU, where low
            precision is slow, and the stored type on a GPU.
        quantize: Bits per weight, 8 or 4; by default as stored.
        allow_overflow: Allow float16 even if the model overflows it.

    Returns:
        The model and its tokenizer; None for a folder without a tokenizer.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If a file is damaged, has a newer format, or does not match the others.
    """
    folder = Path(folder)
    config = read_config(folder)
    _check_quantization(folder, config, quantize)
    _warn_of_old_conversion(folder, config)
    model, tokenizer = read_model(folder, config)
    if quantize is not None and config.quantization is None:
        quantize_weights(model, QuantizationConfig(quantize))
    prepare_for_inference(model, dtype, allow_overflow=allow_overflow)
    return model, tokenizer


def read_model(folder: Path, config: FolderConfig) -> tuple[Transformer, Tokenizer | None]:
    """Read the model and the tokenizer of a model folder as they are stored (lazily)."""
    model = uninitialized_model(config.model, config.search, config.tasks)
    if config.quantization is not None:
        quantize_weights(model, config.quantization)
    read_weights(model, folder / "model.safetensors")
    tokenizer = Tokenizer.find(folder)
    if tokenizer is not None:
        _check_vocabulary(model.config, tokenizer, folder)
    return model, tokenizer


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
            f"{path} has format_version {version}, newer than {FORMAT_VERSION}, the newest that this version of "
            "mlx_transformer reads: upgrade mlx_transformer."
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
    """Raise ValueError with all names and shapes in which a file differs from the model."""
    expected = split_projections(model.parameters())
    misshapen = [
        f"{name} {weights[name].shape} instead of {expected[name].shape}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    mismatches = describe_mismatches(
        sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys()), misshapen
    )
    if mismatches:
        raise ValueError(f"{path} does not hold the arrays that its config.json describes: {mismatches}.")


def describe_mismatches(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Describe how a file's arrays differ from a model's, with counts and a few names; empty if they match."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {kind} ({_abbreviate(names)})" for kind, names in kinds.items() if names)


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> None:
    pairs = {
        "source pieces": (tokenizer.source_vocab_size, config.source_vocab_size),
        "target pieces": (tokenizer.target_vocab_size, config.target_vocab_size),
        "as pad_id": (tokenizer.pad_id, config.pad_id),
        "as eos_id": (tokenizer.eos_id, config.eos_id),
        "as start_id": (tokenizer.start_id, config.start_id),
    }
    for what, (actual, expected) in pairs.items():
        if actual != expected:
            raise ValueError(
                f"The vocabulary of {folder} does not match the model: it has {actual} {what}, the model {expected}; "
                "use the tokenizer that the model was trained with."
            )


def _abbreviate(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
