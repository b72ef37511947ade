"""Reads Marian's binary files (.bin): tensors by name, those in 8 or 16 bits dequantised, and the model's options.

A file is a version, a header for each item, names, shapes, padding and data, all little-endian.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.tensors import MAX_DIMENSION, CheckpointError, quote

OPTIONS = "special:model.yml"  # the item with the model's options, text
VERSION = 1
START = b"\x01" + bytes(7)  # the version, and of no other format the beginning
MAX_ITEMS = 20_000  # some twenty times those of a large model
MAX_NAME, MAX_RANK = 1000, 8
MAX_OPTIONS = 2**20  # bytes of text
HEADER = struct.Struct("<4Q")  # length of the name, type, rank, bytes of data
NUMBER = struct.Struct("<Q")
TYPES = {
    0x0101: "int8",
    0x0402: "float16",
    0x0404: "float32",
    0x4101: "intgemm8",
    0x4102: "intgemm16",
}
PACKED_TYPES = {0x0802: "packed16", 0x1801: "packed8avx2", 0x2801: "packed8avx512"}
DTYPES = {"int8": "i1", "float16": "<f2", "float32": "<f4", "intgemm8": "i1", "intgemm16": "<i2"}
QUANTISED = ("intgemm8", "intgemm16")
MULTIPLIER = np.dtype("<f4")  # follows the data of a quantised tensor, which is round(weight * multiplier)


@dataclass(frozen=True)
class MarianItem:
    """A tensor or a text in a file.

    Attributes:
        type: One of the values of TYPES.
        shape: Its shape in Marian, also for those that are stored transposed.
        start: Where its data begins in the file, in bytes.
        nbytes: The bytes of its data, with the multiplier of quantised tensors, without padding.
    """

    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_items(data: FileBytes) -> dict[str, MarianItem]:
    """Read the items of a file by name; no values are read.

    Raises:
        CheckpointError: If the file is damaged, or has tensors of other types.
    """
    version, count = NUMBER.unpack(_read(data, 0, 8))[0], NUMBER.unpack(_read(data, 8, 8))[0]
    if version != VERSION:
        raise CheckpointError(
            f"a binary file of Marian must begin with version {VERSION} in 8 bytes, not with {quote(data[:8])}",
            "check that it is Marian's .bin, neither compressed nor encrypted",
        )
    if not 1 <= count <= MAX_ITEMS:
        raise CheckpointError(f"a binary file of Marian must have 1 to {MAX_ITEMS} items, not {quote(count)}")
    headers = list(HEADER.iter_unpack(_read(data, 16, count * HEADER.size)))
    position = 16 + count * HEADER.size
    names = []
    for length, *_ in headers:
        names.append(_read_name(data, position, length))
        position += length
    shapes = []
    for name, (_, _, rank, _) in zip(names, headers, strict=True):
        shapes.append(_read_shape(data, position, name, rank))
        position += 4 * rank
    padding = NUMBER.unpack(_read(data, position, 8))[0]
    position += 8 + padding
    items: dict[str, MarianItem] = {}
    for name, (_, code, _, size), shape in zip(names, headers, shapes, strict=True):
        if name in items:
            raise CheckpointError(f"an item of a binary file must appear once, {quote(name)} appears twice")
        items[name] = _make_item(name, code, shape, position, size)
        position += size
    if position != len(data):
        raise CheckpointError(f"a binary file of Marian must have the {position} bytes of its items, not {len(data)}")
    return items


def _read(data: FileBytes, start: int, length: int) -> bytes:
    """Return bytes of the header; CheckpointError if the file ends before them."""
    if start + length > len(data):
        raise CheckpointError(f"the header of a binary file must be complete, this one ends after {len(data)} bytes")
    return data[start : start + length]


def _read_name(data: FileBytes, position: int, length: int) -> str:
    if not 2 <= length <= MAX_NAME:
        raise CheckpointError(f"the name of an item must have 1 to {MAX_NAME - 1} bytes and a zero, not {length}")
    content = _read(data, position, length)
    name = content[:-1].decode("ascii", "replace")
    if content[-1] or not name.isascii() or not name.isprintable():
        raise CheckpointError(f"the name of an item must be printable ASCII and end with a zero, not {quote(content)}")
    return name


def _read_shape(data: FileBytes, position: int, name: str, rank: int) -> tuple[int, ...]:
    if not 1 <= rank <= MAX_RANK:
        raise CheckpointError(f"tensor {quote(name)} must have 1 to {MAX_RANK} dimensions, not {quote(rank)}")
    shape = struct.unpack(f"<{rank}i", _read(data, position, 4 * rank))
    if not all(1 <= length <= MAX_DIMENSION for length in shape):
        raise CheckpointError(f"dimensions of tensor {quote(name)} must be positive, not {shape}")
    return shape


def _make_item(name: str, code: int, shape: tuple[int, ...], start: int, size: int) -> MarianItem:
    """Return an item of `size` bytes with padding; CheckpointError if its type or shape does not fit."""
    if code not in TYPES:
        raise CheckpointError(
            f"tensor {quote(name)} must have one of the types {', '.join(TYPES.values())}, not "
            f"{PACKED_TYPES.get(code, quote(code))}",
            "use the model in float32, or convert that to intgemm8 with marian-conv",
        )
    kind = TYPES[code]
    nbytes = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize + (MULTIPLIER.itemsize if kind in QUANTISED else 0)
    if nbytes > size:
        raise CheckpointError(f"tensor {quote(name)} must have the {nbytes} bytes of shape {shape}, not {size}")
    return MarianItem(kind, shape, start, nbytes)


def read_options(data: FileBytes, items: dict[str, MarianItem]) -> str:
    """Return the text of the model's options.

    Raises:
        CheckpointError: If the file has none, or they are too long or no UTF-8.
    """
    item = items.get(OPTIONS)
    if item is None or item.type != "int8" or item.nbytes > MAX_OPTIONS:
        raise CheckpointError(
            f"a binary file of Marian must have {OPTIONS}, at most {MAX_OPTIONS} bytes of text",
            "save the model with marian-conv, which adds it",
        )
    return decode_options(data[item.start : item.start + item.nbytes])


def decode_options(content: bytes) -> str:
    """Return the text of options, which ends at a zero; CheckpointError if it is too long or no UTF-8."""
    if len(content) > MAX_OPTIONS:
        raise CheckpointError(f"{OPTIONS} must have at most {MAX_OPTIONS} bytes, not {len(content)}")
    try:
        return content.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{OPTIONS} must be text in UTF-8") from None


def read_values(data: FileBytes, name: str, item: MarianItem) -> np.ndarray:
    """Return a tensor's values in its shape, as float32; quantised ones are divided by their multiplier.

    Marian stores quantised matrices transposed, except for embeddings, whose names contain "Wemb".

    Raises:
        CheckpointError: If the multiplier is not a positive number, or a matrix has another rank than 2.
    """
    content = data[item.start : item.start + item.nbytes]
    with np.errstate(all="ignore"):  # damaged values
        values = np.frombuffer(content, DTYPES[item.type], math.prod(item.shape)).astype(np.float32)
        if item.type not in QUANTISED:
            return values.reshape(item.shape)
        multiplier = np.frombuffer(content[-MULTIPLIER.itemsize :], MULTIPLIER)[0]
        step = np.float32(1) / multiplier
        values *= step
    if not 0 < step < np.inf:
        raise CheckpointError(f"the multiplier of tensor {quote(name)} must be a positive number, not {multiplier}")
    if "Wemb" in name:
        return values.reshape(item.shape)
    if len(item.shape) != 2:
        raise CheckpointError(f"a quantised tensor must have 2 dimensions, {quote(name)} has {len(item.shape)}")
    return np.ascontiguousarray(values.reshape(item.shape[::-1]).T)
