"""Tensors as a file describes them: dtypes, storages and views of storages, checked before any byte is read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

MAX_RANK = 32
MAX_DIMENSION = 2**31 - 1  # MLX stores each dimension of a shape in 32 bits
PIECE_SIZE = 2**22  # elements that are read at a time

# Name -> a little-endian numpy dtype of its width. Types that numpy lacks are read as integers.
DTYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint64": "<u8",
    "uint32": "<u4",
    "uint16": "<u2",
    "uint8": "u1",
    "bool": "u1",
    "complex64": "<c8",
    "complex128": "<c16",
    "float8_e4m3fn": "u1",
    "float8_e4m3fnuz": "u1",
    "float8_e5m2": "u1",
    "float8_e5m2fnuz": "u1",
}
ITEMSIZE = {name: np.dtype(code).itemsize for name, code in DTYPES.items()}
# Name -> mantissa bits, exponent bias, and whether 0x80 is the only NaN and there are no infinities.
FLOAT8 = {
    "float8_e4m3fn": (3, 7, False),
    "float8_e4m3fnuz": (3, 8, True),
    "float8_e5m2": (2, 15, False),
    "float8_e5m2fnuz": (2, 16, True),
}
# Types that MLX or numpy lack -> the dtype of the array that they are read into; of bfloat16, the bits.
READ_AS = {"float64": "float32", "complex128": "complex64", "bool": "bool_", "bfloat16": "uint16"}
READ_AS |= dict.fromkeys(FLOAT8, "float32")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file, the rule, the value and the remedy in one line.

    Attributes:
        problem: The rule and the value.
        remedy: What the user can do.
        path: The file or folder.
    """

    def __init__(
        self, problem: str, remedy: str = "it may be damaged: copy it again", path: Path | str | None = None
    ) -> None:
        self.problem, self.remedy, self.path = problem, remedy, path
        super().__init__(f"{'' if path is None else f'{path}: '}{problem}; {remedy}.")


@dataclass(frozen=True)
class Storage:
    """A contiguous block of bytes, as claimed by a file and not yet checked against its size.

    Attributes:
        key: Its name in the file.
        dtype: The dtype of its elements, None for plain bytes.
        numel: The number of elements, or of bytes.
        start: Where it begins in the block of that key, in bytes.
        file: The file that contains it.
    """

    key: str
    dtype: str | None
    numel: int
    start: int = 0
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.numel * (1 if self.dtype is None else ITEMSIZE[self.dtype])


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements, not bytes."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Storage
    name: str = ""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all elements, also if several share memory."""
        return self.size * ITEMSIZE[self.dtype]

    @property
    def extent(self) -> int:
        """The number of elements of the storage from its first to its last element."""
        return 1 + sum((length - 1) * stride for length, stride in self._axes()) if self.size else 0

    @property
    def contiguous(self) -> bool:
        """Whether its elements are contiguous in row-major order."""
        return self._axes() == [pair for pair in zip(self.shape, row_major(self.shape), strict=True) if pair[0] != 1]

    @property
    def view(self) -> tuple[Any, ...]:
        """A key that is equal for two tensors with the same elements of the same storage."""
        if not self.size:
            return (self.name,)
        strides = tuple(0 if length == 1 else stride for length, stride in zip(self.shape, self.strides, strict=True))
        start = self.storage.start + self.offset * ITEMSIZE[self.dtype]
        return self.storage.file, self.storage.key, start, self.dtype, self.shape, strides

    def pieces(self) -> Iterator["Tensor"]:
        """Split into pieces of some rows, of about PIECE_SIZE elements each; no piece if there are no elements."""
        if 0 < self.size <= PIECE_SIZE:
            yield self
        elif self.size:
            step = max(PIECE_SIZE * self.shape[0] // self.size, 1)
            for begin in range(0, self.shape[0], step):
                rows = min(step, self.shape[0] - begin)
                yield replace(self, shape=(rows, *self.shape[1:]), offset=self.offset + begin * self.strides[0])

    def _axes(self) -> list[tuple[int, int]]:
        """Return length and stride of each axis longer than 1."""
        return [pair for pair in zip(self.shape, self.strides, strict=True) if pair[0] != 1]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous row-major tensor."""
    strides, stride = [], 1
    for length in reversed(shape):
        strides.append(stride)
        stride *= max(length, 1)
    return tuple(reversed(strides))


def make_tensor(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Return a view of a storage after checking that all its elements are inside.

    Raises:
        CheckpointError: If they are not, or the values are not valid as offset, shape and strides.
    """
    if not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise CheckpointError(f"shape and strides of a tensor must be lists, not {quote(shape)}, {quote(strides)}")
    shape, strides = tuple(shape), tuple(strides)
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *shape, *strides)):
        numbers = _abbreviate((offset, *shape, *strides))
        raise CheckpointError(f"offset, shape and strides of a tensor must be integers, not negative, not {numbers}")
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise CheckpointError(
            f"a tensor must have as many dimensions as strides, at most {MAX_RANK}, not {_abbreviate(shape)}"
        )
    if any(length > MAX_DIMENSION for length in shape) or math.prod(length or 1 for length in shape) > 2**60:
        raise CheckpointError(
            f"a dimension of a tensor must be below 2**31, its size below 2**60, not {_abbreviate(shape)}"
        )
    tensor = Tensor(dtype, shape, strides, offset, storage)
    if (tensor.extent + offset) * ITEMSIZE[dtype] > storage.nbytes:
        raise CheckpointError(
            f"a tensor must be inside its storage: shape {_abbreviate(shape)}, strides {_abbreviate(strides)}, "
            f"offset {offset} of {dtype} do not fit in the {storage.nbytes} bytes of storage {quote(storage.key)}"
        )
    return tensor


def new_array(tensor: Tensor) -> mx.array:
    """Return an array to read a tensor into; its dtype may differ, see READ_AS."""
    return mx.zeros(tensor.shape, vars(mx)[READ_AS.get(tensor.dtype, tensor.dtype)])


def read_elements(tensor: Tensor, data: bytes, *, big_endian: bool = False) -> np.ndarray:
    """Return a tensor's elements in row-major order, without a copy if they are contiguous in the file.

    Args:
        tensor: The tensor, which must not be empty.
        data: The bytes from its first element to its last.
        big_endian: The byte order.
    """
    code = np.dtype(DTYPES[tensor.dtype])
    values = np.frombuffer(data, code.newbyteorder(">") if big_endian else code, tensor.extent)
    if not tensor.contiguous:
        axes = zip(tensor.shape, tensor.strides, strict=True)
        byte_strides = [stride * code.itemsize if length > 1 else 0 for length, stride in axes]
        values = np.lib.stride_tricks.as_strided(values, tensor.shape, byte_strides).reshape(-1)
    if tensor.dtype == "bool":
        return values != 0
    return float8_values(tensor.dtype)[values] if tensor.dtype in FLOAT8 else values


def float8_values(dtype: str) -> np.ndarray:
    """Return the values of all 256 bytes in a type of 8-bit floats, as float32."""
    mantissa_bits, bias, unsigned_zero = FLOAT8[dtype]
    codes = np.arange(256)
    mantissa = codes & (2**mantissa_bits - 1)
    exponent = (codes & 0x7F) >> mantissa_bits
    fraction = mantissa / 2**mantissa_bits + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias) * np.where(codes & 0x80, -1.0, 1.0)
    if unsigned_zero:
        values[0x80] = np.nan
    elif dtype == "float8_e4m3fn":
        values[[0x7F, 0xFF]] = np.nan
    else:
        special = exponent == 31
        values[special] = np.where(mantissa[special] == 0, np.inf * np.sign(values[special]), np.nan)
    return values.astype(np.float32)


def quote(value: Any) -> str:
    """Return a value from a file for use in a message: one short line of ASCII."""
    if isinstance(value, str | bytes):
        return ascii(value) if len(value) <= 80 else ascii(value[:77]) + "..."
    small = value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 80)
    return ascii(value) if small else f"a {type(value).__name__}"


def _abbreviate(numbers: tuple[Any, ...]) -> str:
    return f"({', '.join(map(quote, numbers[:8]))}{', ...' if len(numbers) > 8 else ''})"
