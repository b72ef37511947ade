"""Reading and writing of safetensors files."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np

NUMBERS_PER_WRITE = 2**22
SAFETENSORS_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write arrays to a safetensors file; OSError if it cannot be written completely."""
    try:
        mx.save_safetensors(str(path), arrays, metadata=metadata or {})
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
    """Read the arrays of a safetensors file (lazily)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: copy the model folder again.")
    try:
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{path} must be a complete safetensors file, copy it again: {error}") from None
    return cast(dict[str, mx.array], arrays)
