"""Reads Marian's .npz files: zip archives of NumPy arrays, one of which holds the model's options as YAML."""

import io
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np

from mlx_transformer.weights.formats.marian_binary import OPTIONS, decode_options
from mlx_transformer.weights.formats.tensors import CheckpointError, Storage, Tensor, make_tensor, quote, row_major
from mlx_transformer.weights.formats.zip_archive import MemberData

SUFFIX = ".npy"
DTYPES = {"<f4": "float32", "<f2": "float16", "|i1": "int8", "|u1": "uint8"}
MAX_HEADER = 4096  # bytes of the description of an array

ReadMember = Callable[[str, int], bytes]  # a member's first bytes, by its name and their number


def is_marian_npz(names: list[str]) -> bool:
    """Whether an archive with members of these names is a model of Marian."""
    return OPTIONS + SUFFIX in names


def read_arrays(path: Path, members: dict[str, MemberData], read: ReadMember) -> dict[str, Tensor | str]:
    """Return the tensors of an archive by name, and the text of the options.

    Args:
        path: The file.
        members: The position of each member.
        read: Reads the beginning of a member.

    Raises:
        CheckpointError: If a member is no array, or has other sizes than it says.
    """
    entries: dict[str, Tensor | str] = {}
    for member, data in members.items():
        name = member.removesuffix(SUFFIX)
        if name == member or not name:
            raise CheckpointError(f"a .npz file must have arrays only, not {quote(member)}")
        tensor = read_header(path, member, data, read(member, min(data.size, MAX_HEADER)))
        entries[name] = tensor if name != OPTIONS else decode_options(read(member, data.size)[tensor.storage.start :])
    return entries


def read_header(path: Path, member: str, data: MemberData, start: bytes) -> Tensor:
    """Return the tensor that the header of an array describes.

    Args:
        path: The file.
        member: The name of its member.
        data: The position of the member.
        start: Its first bytes.
    """
    name, stream = member.removesuffix(SUFFIX), io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = reader(stream, max_header_size=MAX_HEADER)
    except (ValueError, LookupError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{quote(member)} must be an array of NumPy: {quote(str(error))}") from None
    if dtype.str not in DTYPES or (is_fortran and len(shape) > 1):
        order = " in Fortran's order" if is_fortran else ""
        raise CheckpointError(f"array {quote(name)} must be of {', '.join(DTYPES)}, not of {quote(dtype.str)}{order}")
    header = stream.tell()
    kind, itemsize = DTYPES[dtype.str], dtype.itemsize
    if (data.size - header) % itemsize or header > data.size:
        raise CheckpointError(f"array {quote(name)} must have whole numbers of {itemsize} bytes")
    storage = Storage(member, kind, (data.size - header) // itemsize, header, path)
    tensor = make_tensor(storage, kind, 0, shape, row_major(shape))
    if tensor.nbytes != storage.nbytes:
        raise CheckpointError(
            f"array {quote(name)} must have the {tensor.nbytes} bytes of its shape, not {storage.nbytes}"
        )
    return tensor
