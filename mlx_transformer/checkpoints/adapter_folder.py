"""Adapter folders: adapters.safetensors and adapter_config.json (with a format version)."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_transformer.checkpoints.model_folder import preserve_random_state, verify_weights
from mlx_transformer.checkpoints.replacement import ADAPTER_CONFIG_FILE, ADAPTER_FILE, replace_model_folder
from mlx_transformer.config.adapter import AdapterConfig, AdapterFolderConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.messages import short_repr
from mlx_transformer.model.adapters import (
    adapter_arrays,
    add_adapter,
    detach_adapter,
    restore_adapter_on_error,
    set_adapter_arrays,
)
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.model.weights_source import unchanged_source
from mlx_transformer.storage.files import read_json
from mlx_transformer.storage.safetensors import read_arrays, translate_read_errors, write_arrays

FORMAT_VERSION = 1
MAX_DIGITS = 12  # of a checksum in an error


def save_adapter(folder: str | Path, model: Transformer) -> None:
    """Write the adapter of a model to an adapter folder; an existing one is replaced once the new one is complete.

    Raises:
        FileExistsError: If `folder` is no adapter folder, or has other files.
        OSError: If the folder cannot be written.
        ValueError: If the model has no adapter.
    """
    with replace_model_folder(Path(folder), kind="adapter") as new:
        write_adapter_files(new, model)


def write_adapter_files(folder: Path, model: Transformer) -> None:
    """Write the files of a model's adapter into an existing folder."""
    arrays = adapter_arrays(model)
    contents = to_dict(AdapterFolderConfig.of(with_base(model.adapter.config, model), FORMAT_VERSION))
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(contents, indent=2) + "\n")
    write_arrays(folder / ADAPTER_FILE, arrays)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the adapter_config.json of an adapter folder.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, has a newer format, or has an invalid or unknown field.
    """
    path = folder / ADAPTER_CONFIG_FILE
    data = read_json(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version is None:
        raise ValueError(f"{path} must be that of an adapter folder, but it has no format_version: check the path.")
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {short_repr(version)}, newer than {FORMAT_VERSION}, the newest that this "
            "version of mlx_transformer reads: upgrade mlx_transformer."
        )
    return from_dict(AdapterFolderConfig, data, str(path)).adapter_config()


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, mx.array]]:
    """Read the configuration and the arrays of an adapter folder; see `read_adapter_config` for the errors."""
    config, arrays = read_adapter_config(folder), read_arrays(folder / ADAPTER_FILE)
    verify_weights(folder / ADAPTER_FILE)
    return config, arrays


def apply_adapter(model: Transformer, config: AdapterConfig, arrays: dict[str, mx.array], path: Path) -> None:
    """Add an adapter from files to a model for inference, in place of the one that it has.

    On an error the model stays as it was.

    Args:
        model: The base of the adapter, prepared for inference.
        config: The adapter's configuration.
        arrays: Its arrays.
        path: Where they are from.

    Raises:
        OSError: If the file changed meanwhile.
        ValueError: If the model is not the base, or the arrays do not fit.
    """
    check_base(model, config, path)
    with restore_adapter_on_error(model), preserve_random_state(), translate_read_errors(path):
        if model.adapter is not None:
            detach_adapter(model)
        try:
            add_adapter(model, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        set_adapter_arrays(model, arrays, str(path))
        model.set_dtype(model.dtype)  # new arrays are in float32, and new modules in training mode
        model.train(model.training)
        mx.eval(model.parameters())  # lazy arrays can be evaluated by the thread that created them only


def check_base(model: Transformer, config: AdapterConfig, path: Path) -> None:
    """Raise ValueError if an adapter is known to belong to another model."""
    source = unchanged_source(model)
    if source is None or config.base_checksum is None or source.sha256() == config.base_checksum:
        return
    base = f"{config.base_model or 'another model'} (weights {config.base_checksum[:MAX_DIGITS]})"
    raise ValueError(
        f"{path} is an adapter of {base}, not of {source.path} (weights {source.sha256()[:MAX_DIGITS]}): load it on "
        "its own base."
    )


def with_base(config: AdapterConfig, model: Transformer) -> AdapterConfig:
    """Return an adapter's configuration with the name and the checksum of its base, if that is unchanged."""
    source = unchanged_source(model)
    if source is None and model.weights_source is not None:
        return replace(config, base_model=None, base_checksum=None)
    if config.base_checksum is not None or source is None:
        return config
    return replace(config, base_model=config.base_model or str(source.path), base_checksum=source.sha256())
