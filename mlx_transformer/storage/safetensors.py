"""Reading and writing of safetensors files."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np

from mlx_transformer.messages import is_unicode, shorten
from mlx_transformer.storage.files import check_is_file, parse_json

NUMBERS_PER_WRITE = 2**22
MAX_REASON = 120  # characters of a message of MLX
SAFETENSORS_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write arrays to a safetensors file; OSError if it cannot be written completely."""
    path.touch()  # with the permissions of the umask, which MLX would not ask for
    try:
        if is_unicode(str(path)):
            mx.save_safetensors(str(path), arrays, metadata=metadata or {})
        else:  # MLX takes no such path
            with path.open("wb") as file:
                mx.save_safetensors(file, arrays, metadata=metadata or {})
    except RuntimeError as error:
        raise OSError(f"{path} could not be written completely, is the disk full? {error}") from None


def write_streamed(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: mx.Dtype, load: Callable[[str], Iterable[mx.array]]
) -> None:
    """Write arrays to a safetensors file one by one, so that only one of them is in memory.

    Args:
        path: The file.
        shapes: The shape of each array by name.
        dtype: The data type to store.
        load: Returns the array of a name, as a whole or in blocks of rows.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.size
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in shapes:
            for array in load(name):
                _write_array(file, array, dtype)
            del array
            mx.clear_cache()  # MLX would keep the buffers of arrays already written


def _write_array(file: BinaryIO, array: mx.array, dtype: mx.Dtype) -> None:
    """Write an array in another data type, a block of rows at a time, because bytes objects are limited to 2 GiB."""
    rows = max(NUMBERS_PER_WRITE * len(array) // array.size, 1)
    for part in mx.split(array, range(rows, len(array), rows)):
        file.write(np.asarray(mx.contiguous(part.astype(dtype)).flatten().view(mx.uint8)).data)


def read_arrays(path: Path) -> dict[str, mx.array]:
    """Read the arrays of a safetensors file (lazily, see `translate_read_errors`).

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: copy the model folder again.")
    check_is_file(path)
    try:
        if is_unicode(str(path)):
            arrays = mx.load(str(path), format="safetensors")
        else:  # MLX takes no such path
            with path.open("rb") as file:
                arrays = mx.load(file, format="safetensors")
                mx.eval(arrays)
        offsets, size = _read_offsets(path)
    except (RuntimeError, ValueError) as error:  # MLX quotes the file, also if that is not UTF-8
        reason = "its header is not UTF-8" if isinstance(error, UnicodeError) else shorten(str(error), MAX_REASON)
        raise ValueError(f"{path} must be a complete safetensors file, copy it again: {reason}") from None
    end = 0
    for start, stop in offsets:  # MLX checks the sizes of arrays only
        if start != end:
            raise ValueError(f"{path} must have one array after the other, but one starts at {start} instead of {end}.")
        end = stop
    if size != end:
        raise ValueError(f"{path} must end with its last array, but {size - end} bytes follow it.")
    return cast(dict[str, mx.array], arrays)


def _read_offsets(path: Path) -> tuple[list[tuple[int, int]], int]:
    """Return where the arrays of a safetensors file begin and end, in this order, and the size of the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    offsets = [(start, stop) for start, stop in (entry["data_offsets"] for entry in header.values())]
    return sorted(offsets), path.stat().st_size - 8 - length


@contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Translate MLX's error for a file that became shorter after `read_arrays`, where its arrays are evaluated."""
    try:
        yield
    except RuntimeError as error:
        if "[read]" not in str(error):
            raise
        raise OSError(f"{path} could not be read completely: it changed meanwhile, copy it again.") from None
