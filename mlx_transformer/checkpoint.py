"""Model folders: config.json (with a format version), model.safetensors and the tokenizer's files."""

import fcntl
import glob
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_transformer.config import FolderConfig, ModelConfig, QuantizationConfig, SearchConfig, TaskConfig
from mlx_transformer.fields import from_dict, to_dict
from mlx_transformer.layout import join, split
from mlx_transformer.model import Transformer
from mlx_transformer.precision import dequantize, find_dtype, make_ready, quantization, quantize_weights
from mlx_transformer.tokenizer import Tokenizer
from mlx_transformer.vocabularies import read_json

FORMAT_VERSION = 1
FULL_SYNC = vars(fcntl).get("F_FULLFSYNC")  # on macOS fsync leaves data in the disk's own memory
PIECE = 2**22  # numbers that are written at a time
SAFETENSORS = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


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
    stored = blank(model.config, model.search_defaults, model.tasks.values())
    if (held := quantization(model)) is not None:
        quantize_weights(stored, held)
    stored.update(model.parameters())
    if dtype is not None:
        stored.set_dtype(find_dtype(dtype))
    if quantize is not None:
        dequantize(stored)
        quantize_weights(stored, QuantizationConfig(quantize))
    with replacing(Path(folder)) as new:
        write(new, stored, tokenizer)


def write(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """Write a model's files into a folder that exists."""
    write_config(folder, describe(model))
    write_arrays(folder / "model.safetensors", split(model.parameters()))
    if tokenizer is not None:
        tokenizer.save(folder)


def describe(model: Transformer) -> FolderConfig:
    """What the config.json of a model's folder says."""
    tasks = tuple(model.tasks.values())
    return FolderConfig(FORMAT_VERSION, model.config, model.search_defaults, quantization(model), tasks)


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
    model = blank(config.model, config.search, config.tasks)
    if config.quantization is not None:
        quantize_weights(model, config.quantization)
    read_weights(model, folder / "model.safetensors")
    if quantize is not None and config.quantization is None:
        quantize_weights(model, QuantizationConfig(quantize))
    elif config.quantization is not None and quantize not in (None, config.quantization.bits):
        raise ValueError(f"{folder} is quantised to {config.quantization.bits} bits already: leave out quantize.")
    make_ready(model, dtype, allow_overflow=allow_overflow)
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


def blank(config: ModelConfig, search: SearchConfig, tasks: Iterable[TaskConfig] = ()) -> Transformer:
    """A model to put weights into; the random numbers of the caller go on as if it had not been made."""
    with same_random_state():
        model = Transformer(config, search)
    model.tasks.update((task.name, task) for task in tasks)
    return model


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave MLX's random state as it was before the block."""
    high, low = np.array(cast(Any, mx.random.state)[0]).tolist()
    try:
        yield
    finally:
        mx.random.seed((high << 32) + low)


@contextmanager
def replacing(folder: Path, retired: Path | None = None) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once the block is done without an error.

    Args:
        folder: The folder to replace.
        retired: Where the former folder goes; None to delete it.

    Raises:
        FileExistsError: If `folder` holds something, but no model.
    """
    folder = folder.resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_model_folder(folder)):
        raise FileExistsError(f"{folder} is there already and is no model folder: choose another name.")
    old = retired or _old(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.new-*"):
        with claimed(left) as mine:
            if mine:
                shutil.rmtree(left, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    new.mkdir()
    try:
        with claimed(new):
            yield new
        for path in (new, *new.rglob("*")):
            sync(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        for path in {folder.parent, old.parent}:
            sync(path)
    finally:
        recover(folder, old)
        shutil.rmtree(new, ignore_errors=True)
    if retired is None:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether a folder is no other process's, nor another thread's, for as long as the block runs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's config.json is that of a model folder, of whatever version."""
    path = folder / "config.json"
    try:
        data = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(data, dict) and "format_version" in data


def recover(folder: Path, old: Path | None = None) -> None:
    """Put back a folder whose replacement was cut off between two renames."""
    old = old or _old(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _old(folder: Path) -> Path:
    """Where a folder is while the new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write arrays to a safetensors file; OSError if they cannot all be written."""
    try:
        mx.save_safetensors(str(path), arrays, metadata=metadata or {})
    except RuntimeError as error:
        raise OSError(f"{path} could not be written whole, is the disk full? {error}") from None


def write_made(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: mx.Dtype, make: Callable[[str], Iterable[mx.array]]
) -> None:
    """Write arrays of one type to a safetensors file, each made in its turn: whole or in runs of its rows."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.size
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in shapes:
            for array in make(name):
                _append(file, array, dtype)
            del array
            mx.clear_cache()  # the buffers of what was written would be kept, of a large table too


def _append(file: BinaryIO, array: mx.array, dtype: mx.Dtype) -> None:
    """Write an array's numbers in another type, some rows at a time: neither a copy nor 2 GiB of bytes at once."""
    rows = max(PIECE * len(array) // array.size, 1)
    for part in mx.split(array, range(rows, len(array), rows)):
        file.write(np.asarray(mx.contiguous(part.astype(dtype)).flatten().view(mx.uint8)).data)


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: copy the model folder again.")
    try:
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{path} must be a whole safetensors file, copy it again: {error}") from None
    return cast(dict[str, mx.array], arrays)


def read_weights(model: nn.Module, path: Path) -> None:
    """Put the arrays of a safetensors file into a model; ValueError if they are not those that it has."""
    weights = read_arrays(path)
    _check_weights(model, weights, path)
    model.load_weights(list(join(weights).items()))


def _check_weights(model: nn.Module, weights: dict[str, mx.array], path: Path) -> None:
    """Report all names and shapes in which a file differs from the model."""
    wanted = split(model.parameters())
    misshapen = [
        f"{name} {weights[name].shape} instead of {wanted[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    found = differences(sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys()), misshapen)
    if found:
        raise ValueError(f"{path} does not hold the arrays that its config.json asks for: {found}.")


def differences(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """How the arrays of a file differ from those of a model: how many in each way, and a few names; empty if not."""
    ways = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {way} ({_shortened(names)})" for way, names in ways.items() if names)


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


def _shortened(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def sync(path: Path) -> None:
    """Ask the system to have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if FULL_SYNC is None:
            os.fsync(descriptor)
        else:
            fcntl.fcntl(descriptor, FULL_SYNC)
    finally:
        os.close(descriptor)
