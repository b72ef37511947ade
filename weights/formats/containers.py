"""Readers of the file formats: safetensors, torch zip archives and torch legacy files, memory-mapped.

Every size that a file claims is checked against the file before it is used.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.storage.files import parse_json
from mlx_transformer.weights.formats import marian_binary, marian_npz, zip_archive
from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.other_formats import (
    UNPACK,
    describe_content,
    describe_members,
    describe_name,
    is_text,
)
from mlx_transformer.weights.formats.tensors import (
    ITEMSIZE,
    CheckpointError,
    Storage,
    Tensor,
    make_tensor,
    new_array,
    quote,
    read_elements,
    row_major,
)
from mlx_transformer.weights.formats.unpickler import read_pickle
from mlx_transformer.weights.formats.zip_archive import MemberData

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_HEADER = 2**24  # bytes of JSON, a hundred times what a large model needs; parsed, it takes up to 20 times more
MAX_UNPACKINGS, FREE_UNPACKED = 8, 2**24  # of compressed storages, if tensors use them in turn
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass
class Container:
    """An open file.

    Attributes:
        path: The file.
        data: Its bytes.
        root: The object that it contains, made of plain containers, Tensors and PickledObjects.
        storages: The position of each storage, by key.
        big_endian: The byte order.
        unpacked: The key and bytes of the last compressed storage, for tensors that share it.
        num_unpacked: How many bytes were unpacked.
        computed: Storage -> a function that reads its values, where they are stored in another form.
    """

    path: Path
    data: FileBytes
    root: Any = None
    storages: dict[str, MemberData] = field(default_factory=dict)
    big_endian: bool = False
    unpacked: tuple[str, bytes] | None = None
    num_unpacked: int = 0
    computed: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)

    def locate(self, storage: Storage) -> MemberData:
        """Return the position of a storage; CheckpointError if it claims more bytes than the file has."""
        member = self.storages.get(storage.key)
        size, end = 0 if member is None else member.size, storage.start + storage.nbytes
        if member is None or end > size:
            raise CheckpointError(f"storage {quote(storage.key)} must have {end} bytes, but it has {size}")
        return member

    def load(self, tensor: Tensor) -> mx.array:
        """Read one tensor, a piece at a time to need little more memory than the tensor."""
        with add_path_to_errors(self.path), np.errstate(over="ignore", invalid="ignore"):
            if (compute := self.computed.get(tensor.storage.key)) is not None:
                values = compute().reshape(-1)[tensor.offset : tensor.offset + tensor.size]
                return mx.array(values.reshape(tensor.shape))
            member = self.locate(tensor.storage)
            array = new_array(tensor)
            values, end = np.asarray(array).reshape(-1), 0  # a view of the array's memory, to write into it
            for piece in tensor.pieces():
                start, end = end, end + piece.size
                first = piece.storage.start + piece.offset * ITEMSIZE[piece.dtype]
                length = piece.extent * ITEMSIZE[piece.dtype]
                data = self.read(tensor.storage.key, member, first, length)
                values[start:end] = read_elements(piece, data, big_endian=self.big_endian)
        return array.view(mx.bfloat16) if tensor.dtype == "bfloat16" else array

    def close(self) -> None:
        """Close the file."""
        self.unpacked = None
        self.data.close()

    def read(self, key: str, member: MemberData, start: int, length: int) -> bytes:
        """Read a part of a storage, which may be compressed."""
        if member.packed is None:
            return self.data[member.start + start : member.start + start + length]
        if self.unpacked is None or self.unpacked[0] != key:
            self.unpacked = None
            self.num_unpacked += member.size
            if self.num_unpacked > MAX_UNPACKINGS * (FREE_UNPACKED + sum(part.size for part in self.storages.values())):
                raise CheckpointError(
                    f"tensors must not unpack their storages more than {MAX_UNPACKINGS} times",
                    "pack the file again without compression",
                )
            self.unpacked = (key, zip_archive.decompress(self.data, member))
        return self.unpacked[1][start : start + length]


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add the path to errors about a file's content."""
    try:
        yield
    except CheckpointError as error:
        if error.path is not None:
            raise
        raise CheckpointError(error.problem, error.remedy, path) from None


def open_container(path: Path) -> Container:
    """Open a file of tensors; its first bytes determine the format.

    Raises:
        CheckpointError: If its format is not supported, or it is damaged.
    """
    with add_path_to_errors(path):
        if not path.is_file():
            raise CheckpointError("a checkpoint must be a file or a folder", "check the path")
        container = Container(path, FileBytes(path))
        try:
            _read_container(container)
        except BaseException:
            container.close()
            raise
        return container


def _read_container(container: Container) -> None:
    """Read everything in a file but the values of tensors."""
    data, name = container.data, container.path.name
    if not len(data):
        raise CheckpointError("a checkpoint must not be empty")
    if data[:8] == marian_binary.START:  # before safetensors, whose header is longer than that
        _read_marian_binary(container)
    elif data[8:9] == b"{" and not is_text(data):
        _read_safetensors_header(container)
    elif data[:4] == b"PK\x03\x04":
        _read_zip(container)
    elif data[:1] == b"\x80":
        _read_legacy(container)
    elif (other := describe_content(data) or describe_name(name)) is not None:
        raise other.error("a checkpoint must be a safetensors or a torch file, this is")
    elif name.endswith(".safetensors"):
        _read_safetensors_header(container)
    else:
        raise CheckpointError(
            f"a checkpoint must be a safetensors or a torch file, this one starts with {bytes(data[:8])!r}",
            "check the path, or save the model with safetensors or torch.save",
        )


def _read_zip(container: Container) -> None:
    data = container.data
    members = zip_archive.read_directory(data)
    if marian_npz.is_marian_npz(list(members)):
        _read_marian_npz(container, members)
        return
    if (other := describe_members(members)) is not None:
        raise other.error("a zip file must come from torch.save, this is")
    pickled = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickled:
        raise CheckpointError("a zip file must come from torch.save, this one has no data.pkl", UNPACK)
    top = pickled[0].removesuffix("data.pkl")
    if len(pickled) > 1:
        raise CheckpointError(f"a zip file of torch.save must have one data.pkl, not {len(pickled)}")
    order = zip_archive.read_member(data, members, top + "byteorder", b"little").strip()
    if order not in (b"little", b"big"):
        raise CheckpointError(f"the byte order must be little or big, not {quote(order)}")
    container.big_endian = order == b"big"
    pickle = zip_archive.read_member(data, members, pickled[0])
    container.root, storages, _ = read_pickle(pickle, 0, container.path, members[pickled[0]].packed)
    for key in storages:
        container.storages[key] = zip_archive.locate_member(data, members, f"{top}data/{key}")
    if sum(member.packed or member.size for member in container.storages.values()) > len(data):
        raise CheckpointError("the members of a zip file must not overlap")


def _read_marian_npz(container: Container, members: dict[str, zip_archive.Member]) -> None:
    container.storages = {name: zip_archive.locate_member(container.data, members, name) for name in members}
    if sum(member.packed or member.size for member in container.storages.values()) > len(container.data):
        raise CheckpointError("the members of a zip file must not overlap")
    container.root = marian_npz.read_arrays(
        container.path, container.storages, lambda name, size: container.read(name, container.storages[name], 0, size)
    )


def _read_marian_binary(container: Container) -> None:
    data, items = container.data, marian_binary.read_items(container.data)
    container.root = {marian_binary.OPTIONS: marian_binary.read_options(data, items)}
    for name, item in items.items():
        if name != marian_binary.OPTIONS:
            storage = Storage(name, "float32", math.prod(item.shape), file=container.path)
            container.root[name] = make_tensor(storage, "float32", 0, item.shape, row_major(item.shape))
            container.storages[name] = MemberData(item.start, storage.nbytes)
            container.computed[name] = partial(marian_binary.read_values, data, name, item)


def _read_legacy(container: Container) -> None:
    data, path = container.data, container.path
    magic, _, end = read_pickle(data)
    if magic != LEGACY_MAGIC:
        raise CheckpointError(
            f"a pickle must come from torch.save, this one contains a plain {type(magic).__name__}",
            "load it as it was saved, then save its tensors with torch.save or safetensors",
        )
    protocol, _, end = read_pickle(data, end)
    if protocol != LEGACY_PROTOCOL:
        raise CheckpointError(f"a torch legacy file must have protocol {LEGACY_PROTOCOL}, not {quote(protocol)}")
    _, _, end = read_pickle(data, end)  # the machine's properties; torch always writes little-endian
    container.root, storages, end = read_pickle(data, end, path)
    keys, _, end = read_pickle(data, end)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or sorted(storages) != sorted(keys):
        raise CheckpointError("a torch legacy file must list the storages of its tensors")
    for key in keys:
        if end + 8 > len(data):
            raise CheckpointError(f"storage {quote(key)} is missing, the file ends before it")
        numel, storage = int.from_bytes(data[end : end + 8], "little", signed=True), storages[key]
        member = MemberData(end + 8, storage.nbytes)
        end = member.start + member.size
        if numel != storage.numel or end > len(data):
            raise CheckpointError(
                f"storage {quote(key)} must have {storage.nbytes} bytes: {numel} values are announced and "
                f"{max(len(data) - member.start, 0)} bytes follow"
            )
        container.storages[key] = member


def _read_safetensors_header(container: Container) -> None:
    data = container.data
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise CheckpointError(f"a safetensors header must fit in the {len(data)} bytes of the file, not have {length}")
    header = read_json(data[8 : 8 + length], "a safetensors header")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError("the metadata of a safetensors file must be an object")
    container.root = {
        name: _make_entry(container, name, entry, 8 + length, len(data) - 8 - length) for name, entry in header.items()
    }
    end = 8 + length
    for member in sorted(container.storages.values(), key=lambda member: (member.start, member.size)):
        if member.start != end:
            raise CheckpointError(
                f"tensors of a safetensors file must be contiguous, one starts {member.start - end} bytes off"
            )
        end += member.size
    if end != len(data):
        raise CheckpointError(f"a safetensors file must end with its last tensor, {len(data) - end} bytes follow")


def _make_entry(container: Container, name: str, entry: Any, base: int, size: int) -> Tensor:
    """Return the tensor of one entry of a safetensors header.

    Args:
        container: The file.
        name: The tensor's name.
        entry: Its entry.
        base: Where the data begins in the file.
        size: The bytes of all data.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"tensor {quote(name)} must have dtype, shape and data_offsets only")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"tensor {quote(name)} must have one of the dtypes {', '.join(SAFETENSORS_DTYPES)}, not {quote(dtype)}",
            "save it with another dtype",
        )
    are_ints = all(isinstance(numbers, list) and all(type(n) is int for n in numbers) for numbers in (shape, offsets))
    if not are_ints or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= size:
        raise CheckpointError(f"tensor {quote(name)} must have a shape and a begin and end within {size} bytes")
    nbytes = offsets[1] - offsets[0]
    storage = Storage(name, None, nbytes, file=container.path)
    tensor = make_tensor(storage, SAFETENSORS_DTYPES[dtype], 0, shape, row_major(shape))
    if tensor.nbytes != nbytes:
        raise CheckpointError(f"tensor {quote(name)} must have the {tensor.nbytes} bytes of its shape, not {nbytes}")
    container.storages[name] = MemberData(base + offsets[0], nbytes)
    return tensor


def read_json(text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object without duplicate names; errors call it by `what`."""
    try:
        value = parse_json(text.decode("utf-8"), _reject_duplicates)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{what} must be JSON: {quote(str(error))}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object, not a {type(value).__name__}")
    return value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        duplicate = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise CheckpointError(f"a name must appear once, {quote(duplicate)} appears twice")
    return entries
