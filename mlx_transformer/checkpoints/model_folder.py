"""Model folders: config.json (with a format version), model.safetensors and the tokenizer's files."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_transformer.config.folder import FolderConfig
from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.precision import parse_dtype, prepare_for_inference
from mlx_transformer.model.quantization import dequantize, quantization_of, quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage.atomic import atomic_replace
from mlx_transformer.storage.files import read_json
from mlx_transformer.storage.safetensors import read_arrays, write_arrays
from mlx_transformer.tokenization.tokenizer import Tokenizer

FORMAT_VERSION = 1


def save(
    folder: str | Path,
    model: Transformer,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: mx.Dtype | str | None = None,
    quantize: int | None = None,
) -> None:
    """Write a model folder; one that exists is replaced as a whole, once the new one is complete.

    Args:
        folder: Where to.
        model: The model; it stays as it is.
        tokenizer: Its tokenizer.
        dtype: What to store numbers in, "float32", "float16" or "bfloat16"; by default as they are.
        quantize: Bits of each weight of linear layers and token embeddings, 8 or 4; None not to quantise.

    Raises:
        OSError: If the folder cannot be written; what was there is untouched.
        ValueError: If `dtype` or `quantize` is none of these, or the widths do not allow to quantise.
    """
    stored = uninitialized_model(model.config, model.search_defaults, model.tasks.values())
    if (held := quantization_of(model)) is not None:
        quantize_weights(stored, held)
    stored.update(model.parameters())
    if dtype is not None:
        stored.set_dtype(parse_dtype(dtype))
    if quantize is not None:
        dequantize(stored)
        quantize_weights(stored, QuantizationConfig(quantize))
    with atomic_replace(Path(folder)) as new:
        write_model_files(new, stored, tokenizer)


def write_model_files(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """Write a model's files into a folder that exists."""
    write_config(folder, folder_config(model))
    write_arrays(folder / "model.safetensors", split_projections(model.parameters()))
    if tokenizer is not None:
        tokenizer.save(folder)


def folder_config(model: Transformer) -> FolderConfig:
    """What the config.json of a model's folder says."""
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
    """Read a model folder, ready to generate; no tokenizer is given for a folder that has none.

    Args:
        folder: The model folder.
        dtype: What to compute in, "float32", "float16" or "bfloat16"; by default float32 on the CPU, where low
            precision is slow, and on a GPU what the file holds.
        quantize: Bits of each weight, 8 or 4; by default as stored.
        allow_overflow: Compute in float16 even if the model leaves its range.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If a file is damaged, of a newer format, or does not fit the others.
    """
    folder = Path(folder)
    config = read_config(folder)
    model = uninitialized_model(config.model, config.search, config.tasks)
    if config.quantization is not None:
        quantize_weights(model, config.quantization)
    read_weights(model, folder / "model.safetensors")
    if quantize is not None and config.quantization is None:
        quantize_weights(model, QuantizationConfig(quantize))
    elif config.quantization is not None and quantize not in (None, config.quantization.bits):
        raise ValueError(f"{folder} is quantised to {config.quantization.bits} bits already: leave out quantize.")
    prepare_for_inference(model, dtype, allow_overflow=allow_overflow)
    tokenizer = Tokenizer.find(folder)
    if tokenizer is not None:
        _check_vocabulary(model.config, tokenizer, folder)
    return model, tokenizer


def read_config(folder: Path) -> FolderConfig:
    """What a model folder's config.json says.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of a newer format, or has a wrong or unknown field.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"A model folder holds a config.json: there is none in {folder}; check the path.")
    data = read_json(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version}, newer than {FORMAT_VERSION}, the newest that this version of "
            "mlx_transformer reads: upgrade mlx_transformer."
        )
    return from_dict(FolderConfig, data, str(path))


def uninitialized_model(config: ModelConfig, search: SearchConfig, tasks: Iterable[TaskConfig] = ()) -> Transformer:
    """A model to put weights into; the random numbers of the caller go on as if it had not been made."""
    with preserve_random_state():
        model = Transformer(config, search)
    model.tasks.update((task.name, task) for task in tasks)
    return model


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Leave MLX's random state as it was before the block."""
    high, low = np.array(cast(Any, mx.random.state)[0]).tolist()
    try:
        yield
    finally:
        mx.random.seed((high << 32) + low)


def read_weights(model: nn.Module, path: Path) -> None:
    """Put the arrays of a safetensors file into a model; ValueError if they are not those that it has."""
    weights = read_arrays(path)
    _check_weights(model, weights, path)
    model.load_weights(list(fuse_projections(weights).items()))


def _check_weights(model: nn.Module, weights: dict[str, mx.array], path: Path) -> None:
    """Report all names and shapes in which a file differs from the model."""
    wanted = split_projections(model.parameters())
    misshapen = [
        f"{name} {weights[name].shape} instead of {wanted[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    found = describe_mismatches(
        sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys()), misshapen
    )
    if found:
        raise ValueError(f"{path} does not hold the arrays that its config.json asks for: {found}.")


def describe_mismatches(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """How the arrays of a file differ from those of a model: how many in each way, and a few names; empty if not."""
    ways = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {way} ({_abbreviate(names)})" for way, names in ways.items() if names)


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> None:
    pairs = {
        "source pieces": (tokenizer.source_vocab_size, config.source_vocab_size),
        "target pieces": (tokenizer.target_vocab_size, config.target_vocab_size),
        "as pad_id": (tokenizer.pad_id, config.pad_id),
        "as eos_id": (tokenizer.eos_id, config.eos_id),
        "as start_id": (tokenizer.start_id, config.start_id),
    }
    for what, (has, wanted) in pairs.items():
        if has != wanted:
            raise ValueError(
                f"The vocabulary of {folder} does not fit the model: it has {has} {what}, the model {wanted}; "
                "use the tokenizer that the model was trained with."
            )


def _abbreviate(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
