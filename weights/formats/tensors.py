"""Tensors as a file describes them: number types, storages and views of them, checked before any byte is read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

MAX_RANK = 32
MAX_SIDE = 2**31 - 1  # MLX counts each side of a shape in 32 bits
PIECE_BYTES = 2**22  # numbers that are read at a time

# Name -> the little-endian numpy type that has its bytes. Types that numpy lacks are read as integers of their width.
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
# Name -> bits of the mantissa, bias of the exponent, whether 0x80 is the only NaN and nothing is infinite.
FLOAT8 = {
    "float8_e4m3fn": (3, 7, False),
    "float8_e4m3fnuz": (3, 8, True),
    "float8_e5m2": (2, 15, False),
    "float8_e5m2fnuz": (2, 16, True),
}
# Types that MLX lacks -> the type of the array that takes their numbers, or the bits of them for bfloat16.
READ_AS = {"float64": "float32", "complex128": "complex64", "bool": "bool_", "bfloat16": "uint16"}
READ_AS |= dict.fromkeys(FLOAT8, "float32")


class CheckpointError(ValueError):
    """A checkpoint that is refused, in one line: the file, the rule and the value found, and the remedy.

    Attributes:
        problem: The rule and the value.
        remedy: What to do.
        path: The file or folder.
    """

    def __init__(
        self, problem: str, remedy: str = "it may be damaged: copy it again", path: Path | str | None = None
    ) -> None:
        self.problem, self.remedy, self.path = problem, remedy, path
        super().__init__(f"{'' if path is None else f'{path}: '}{problem}; {remedy}.")


@dataclass(frozen=True)
class Storage:
    """A run of bytes that a file names by a key; as claimed by the file, so to be checked against what is there.

    Attributes:
        key: The file's name of it.
        dtype: What its numbers are, None for plain bytes.
        numel: How many numbers, or bytes, it has.
        start: Where it begins in the run of that key, in bytes.
        file: The file that it is in.
    """

    key: str
    dtype: str | None
    numel: int
    start: int = 0
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that it claims."""
        return self.numel * (1 if self.dtype is None else ITEMSIZE[self.dtype])


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Storage
    name: str = ""

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers, each counted as often as it is seen."""
        return self.size * ITEMSIZE[self.dtype]

    @property
    def extent(self) -> int:
        """How many numbers from its first to the end of its last, in the storage."""
        return 1 + sum((side - 1) * stride for side, stride in self._steps()) if self.size else 0

    @property
    def contiguous(self) -> bool:
        """Whether its numbers lie in a row in the order of its indices."""
        return self._steps() == [pair for pair in zip(self.shape, row_major(self.shape), strict=True) if pair[0] != 1]

    @property
    def view(self) -> tuple[Any, ...]:
        """What two tensors share that are one: the same numbers of the same storage."""
        if not self.size:
            return (self.name,)
        strides = tuple(0 if side == 1 else stride for side, stride in zip(self.shape, self.strides, strict=True))
        start = self.storage.start + self.offset * ITEMSIZE[self.dtype]
        return self.storage.file, self.storage.key, start, self.dtype, self.shape, strides

    def pieces(self) -> Iterator["Tensor"]:
        """Its rows, about PIECE numbers at a time, or all at once if they are fewer; nothing if it has no numbers."""
        if 0 < self.size <= PIECE_BYTES:
            yield self
        elif self.size:
            step = max(PIECE_BYTES * self.shape[0] // self.size, 1)
            for begin in range(0, self.shape[0], step):
                rows = min(step, self.shape[0] - begin)
                yield replace(self, shape=(rows, *self.shape[1:]), offset=self.offset + begin * self.strides[0])

    def _steps(self) -> list[tuple[int, int]]:
        return [pair for pair in zip(self.shape, self.strides, strict=True) if pair[0] != 1]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of numbers that lie in the order of their indices."""
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= max(side, 1)
    return tuple(reversed(strides))


def make_tensor(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A view of a storage whose every number lies inside it.

    Raises:
        CheckpointError: If it does not, or a number is negative or none.
    """
    if not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise CheckpointError(f"a tensor must have lists of sides and strides, not {quote(shape)}, {quote(strides)}")
    sides, steps = tuple(shape), tuple(strides)
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *sides, *steps)):
        numbers = _abbreviate((offset, *sides, *steps))
        raise CheckpointError(f"a tensor's offset, shape and strides must be whole and not negative, not {numbers}")
    if len(sides) != len(steps) or len(sides) > MAX_RANK:
        raise CheckpointError(
            f"a tensor must have as many sides as strides, at most {MAX_RANK}, not {_abbreviate(sides)}"
        )
    if any(side > MAX_SIDE for side in sides) or math.prod(side or 1 for side in sides) > 2**60:
        raise CheckpointError(f"a side of a tensor must be below 2**31, its size below 2**60, not {_abbreviate(sides)}")
    tensor = Tensor(dtype, sides, steps, offset, storage)
    if (tensor.extent + offset) * ITEMSIZE[dtype] > storage.nbytes:
        raise CheckpointError(
            f"a tensor must lie inside its storage: shape {_abbreviate(sides)}, strides {_abbreviate(steps)}, "
            f"offset {offset} of {dtype} do not fit in the {storage.nbytes} bytes of storage {quote(storage.key)}"
        )
    return tensor


def new_array(tensor: Tensor) -> mx.array:
    """An array to take a tensor's numbers."""
    return mx.zeros(tensor.shape, vars(mx)[READ_AS.get(tensor.dtype, tensor.dtype)])


def read_numbers(tensor: Tensor, data: memoryview, *, big_endian: bool = False) -> np.ndarray:
    """A tensor's numbers in a row; where they lie so in the file, they are still its bytes and nothing is copied.

    Args:
        tensor: What to read; it has numbers.
        data: The bytes from its first number to its last.
        big_endian: Whether each number's high byte comes first.
    """
    code = np.dtype(DTYPES[tensor.dtype])
    values = np.frombuffer(data, code.newbyteorder(">") if big_endian else code, tensor.extent)
    if not tensor.contiguous:
        pairs = zip(tensor.shape, tensor.strides, strict=True)
        steps = [stride * code.itemsize if side > 1 else 0 for side, stride in pairs]
        values = np.lib.stride_tricks.as_strided(values, tensor.shape, steps).reshape(-1)
    if tensor.dtype == "bool":
        return values != 0
    return float8_values(tensor.dtype)[values] if tensor.dtype in FLOAT8 else values


def float8_values(dtype: str) -> np.ndarray:
    """What each of the 256 bytes stands for in a type of 8-bit floats, as float32."""
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
        top = exponent == 31
        values[top] = np.where(mantissa[top] == 0, np.inf * np.sign(values[top]), np.nan)
    return values.astype(np.float32)


def quote(value: Any) -> str:
    """A value from a file as it may stand in a message: one short line of plain letters."""
    if isinstance(value, str | bytes):
        return ascii(value) if len(value) <= 80 else ascii(value[:77]) + "..."
    small = value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 80)
    return ascii(value) if small else f"a {type(value).__name__}"


def _abbreviate(numbers: tuple[Any, ...]) -> str:
    return f"({', '.join(map(quote, numbers[:8]))}{', ...' if len(numbers) > 8 else ''})"
