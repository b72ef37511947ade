"""The kinds of files that hold tensors: safetensors, torch zip archives and torch legacy files, memory-mapped.

Everything that a file claims is checked against its true size before it is used. Nothing is ever extracted.
"""

import json
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.weights.formats import zip_archive
from mlx_transformer.weights.formats.tensors import (
    ITEMSIZE,
    CheckpointError,
    Storage,
    Tensor,
    make_tensor,
    new_array,
    quote,
    read_numbers,
    row_major,
)
from mlx_transformer.weights.formats.unpickler import read_pickle
from mlx_transformer.weights.formats.zip_archive import MemberData

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_HEADER = 2**24  # bytes of JSON, a hundred times what a large model needs; as objects they take up to 20 times more
LFS_POINTER = b"version https://git-lfs"
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
        root: The object in it: of plain containers, Tensors and Stubs.
        places: Where each storage is, by key.
        big_endian: Whether the high byte of each number comes first.
    """

    path: Path
    data: mmap.mmap
    root: Any = None
    places: dict[str, MemberData] = field(default_factory=dict)
    big_endian: bool = False
    unpacked: tuple[str, bytes] | None = None  # the last compressed storage, for tensors that share it

    def check(self, storage: Storage) -> MemberData:
        """Where a storage is; CheckpointError if it claims more bytes than there are."""
        place = self.places.get(storage.key)
        there = 0 if place is None else place.size
        if place is None or storage.start + storage.nbytes > there:
            raise CheckpointError(
                f"storage {quote(storage.key)} must have {storage.start + storage.nbytes} bytes, but {there} are there"
            )
        return place

    def load(self, tensor: Tensor) -> mx.array:
        """Read one tensor, a piece at a time: this takes little more memory than the tensor."""
        with add_path_to_errors(self.path), np.errstate(over="ignore", invalid="ignore"):
            place = self.check(tensor.storage)
            data, array = self._bytes(tensor.storage.key, place), new_array(tensor)
            taken, end = np.asarray(array).reshape(-1), 0  # memory of the array itself: what is written here is in it
            for piece in tensor.pieces():
                start, end = end, end + piece.size
                first = piece.storage.start + piece.offset * ITEMSIZE[piece.dtype]
                length = piece.extent * ITEMSIZE[piece.dtype]
                taken[start:end] = read_numbers(piece, data[first:][:length], big_endian=self.big_endian)
                if place.packed is None and length >= mmap.PAGESIZE:
                    self._release(place.start + first, length)
        return array.view(mx.bfloat16) if tensor.dtype == "bfloat16" else array

    def close(self) -> None:
        """Let go of the file."""
        self.unpacked = None
        # What an error's traceback still holds on to closes the file when it goes.
        with suppress(BufferError):
            self.data.close()

    def _bytes(self, key: str, place: MemberData) -> memoryview:
        if place.packed is None:
            return memoryview(self.data)[place.start :]
        if self.unpacked is None or self.unpacked[0] != key:
            self.unpacked = None
            self.unpacked = (key, zip_archive.decompress(self.data, place))
        return memoryview(self.unpacked[1])

    def _release(self, start: int, length: int) -> None:
        """Take pages that were read out of this process's memory; the system may keep them as cache."""
        first = start - start % mmap.PAGESIZE
        self.data.madvise(mmap.MADV_DONTNEED, first, start + length - first)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Put the file's name before errors about what is in it."""
    try:
        yield
    except CheckpointError as error:
        if error.path is not None:
            raise
        raise CheckpointError(error.problem, error.remedy, path) from None


def open_container(path: Path) -> Container:
    """Open a file of tensors, of whatever kind its first bytes tell.

    Raises:
        CheckpointError: If it is of no kind that can be read, or damaged.
    """
    with add_path_to_errors(path):
        if not path.is_file():
            raise CheckpointError("a checkpoint must be a file or a folder", "check the path")
        with open(path, "rb") as file:
            if not file.read(1):
                raise CheckpointError("a checkpoint must not be empty")
            container = Container(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            _read_container(container)
        except BaseException:
            container.close()
            raise
        return container


def _read_container(container: Container) -> None:
    """Read what a file holds, all but the numbers."""
    data = container.data
    if data[: len(LFS_POINTER)] == LFS_POINTER:
        raise CheckpointError("a checkpoint must be here itself, this is a git-lfs pointer to it", "run `git lfs pull`")
    if data[:4] == b"PK\x03\x04" and data[8:9] != b"{":
        _read_zip(container)
    elif container.path.suffix == ".safetensors" or data[8:9] == b"{":
        _read_safetensors_header(container)
    elif data[257:262] == b"ustar":
        raise CheckpointError("a tar file of torch 0.1 is not read", "load it with torch and save its state dict")
    elif data[:1] == b"\x80":
        _read_legacy(container)
    else:
        raise CheckpointError(
            f"a checkpoint must be a safetensors or a torch file, this one begins with {bytes(data[:8])!r}",
            "check the path, or save the model with safetensors or torch.save",
        )


def _read_zip(container: Container) -> None:
    data = container.data
    members = zip_archive.read_directory(data)
    pickled = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickled:
        raise CheckpointError("a zip file must be one of torch.save: it has no data.pkl", "check the path")
    top = pickled[0].removesuffix("data.pkl")
    if top + "constants.pkl" in members or any(name.startswith(top + "code/") for name in members):
        raise CheckpointError(
            "a TorchScript archive is a program, which is not read",
            "save the weights with torch.save(torch.jit.load(...).state_dict(), ...)",
        )
    if len(pickled) > 1:
        raise CheckpointError(f"a zip file of torch.save has one data.pkl, not {len(pickled)}")
    order = zip_archive.read_member(data, members, top + "byteorder", b"little").strip()
    if order not in (b"little", b"big"):
        raise CheckpointError(f"the byte order must be little or big, not {quote(order)}")
    container.big_endian = order == b"big"
    container.root, storages, _ = read_pickle(zip_archive.read_member(data, members, pickled[0]), 0, container.path)
    for key in storages:
        container.places[key] = zip_archive.locate_member(data, members, f"{top}data/{key}")
    if sum(place.packed or place.size for place in container.places.values()) > len(data):
        raise CheckpointError("the members of a zip file must not overlap")


def _read_legacy(container: Container) -> None:
    data, path = container.data, container.path
    magic, _, end = read_pickle(data)
    if magic != LEGACY_MAGIC:
        raise CheckpointError(
            f"a pickle must be one of torch.save, this one holds a plain {type(magic).__name__}",
            "load it as it was made and save its tensors with torch.save or safetensors",
        )
    protocol, _, end = read_pickle(data, end)
    if protocol != LEGACY_PROTOCOL:
        raise CheckpointError(f"a torch legacy file must be of protocol {LEGACY_PROTOCOL}, not {quote(protocol)}")
    _, _, end = read_pickle(data, end)  # the machine that wrote it: torch writes numbers little-endian on all of them
    container.root, storages, end = read_pickle(data, end, path)
    keys, _, end = read_pickle(data, end)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or sorted(storages) != sorted(keys):
        raise CheckpointError("a torch legacy file must list the storages that its tensors name")
    for key in keys:
        if end + 8 > len(data):
            raise CheckpointError(f"storage {quote(key)} must be there, but the file ends before it")
        numel, storage = struct.unpack_from("<q", data, end)[0], storages[key]
        place = MemberData(end + 8, storage.nbytes)
        end = place.start + place.size
        if numel != storage.numel or end > len(data):
            raise CheckpointError(
                f"storage {quote(key)} must have {storage.nbytes} bytes: {numel} numbers are announced and "
                f"{max(len(data) - place.start, 0)} bytes follow"
            )
        container.places[key] = place


def _read_safetensors_header(container: Container) -> None:
    data = container.data
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise CheckpointError(f"a safetensors header must fit in the {len(data)} bytes of the file, not have {length}")
    header = read_json(data[8 : 8 + length], "a safetensors header")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError("the metadata of a safetensors file must be an object")
    container.root = {
        name: _describe(container, name, entry, 8 + length, len(data) - 8 - length) for name, entry in header.items()
    }
    end = 8 + length
    for place in sorted(container.places.values(), key=lambda place: (place.start, place.size)):
        if place.start != end:
            raise CheckpointError(
                f"the tensors of a safetensors file must lie side by side, one begins {place.start - end} bytes off"
            )
        end += place.size
    if end != len(data):
        raise CheckpointError(
            f"a safetensors file must end with its last tensor, {len(data) - end} bytes are left over"
        )


def _describe(container: Container, name: str, entry: Any, base: int, room: int) -> Tensor:
    """The tensor of one entry of a safetensors header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"tensor {quote(name)} must have dtype, shape and data_offsets, and no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"tensor {quote(name)} must be of a type among {', '.join(SAFETENSORS_DTYPES)}, not {quote(dtype)}",
            "save it in another type",
        )
    whole = all(isinstance(numbers, list) and all(type(n) is int for n in numbers) for numbers in (shape, offsets))
    if not whole or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= room:
        raise CheckpointError(f"tensor {quote(name)} must have a shape and a begin and end within {room} bytes")
    size = offsets[1] - offsets[0]
    storage = Storage(name, None, size, file=container.path)
    tensor = make_tensor(storage, SAFETENSORS_DTYPES[dtype], 0, shape, row_major(shape))
    if tensor.nbytes != size:
        raise CheckpointError(f"tensor {quote(name)} must have the {tensor.nbytes} bytes of its shape, not {size}")
    container.places[name] = MemberData(base + offsets[0], size)
    return tensor


def read_json(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_reject_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} must be JSON: {quote(str(error))}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object, not a {type(value).__name__}")
    return value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise CheckpointError(f"a name must stand once, {quote(twice)} stands twice")
    return entries
