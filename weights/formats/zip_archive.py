"""Reads zip archives of torch.save: the directory and the position of each member; nothing is extracted to disk."""

import struct
import zlib
from dataclasses import dataclass

from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.tensors import CheckpointError, quote

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 200_000
MAX_SMALL = 2**28  # bytes of a member that is read at once, such as the pickle
MAX_RATIO, FREE_BYTES = 100, 2**20  # a member may unpack to 100 times its size, or to 1 MiB
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
UNKNOWN = 0xFFFFFFFF  # the value is in the zip64 field


@dataclass(frozen=True)
class MemberData:
    """The position of `size` bytes in a file, stored in `packed` bytes if they are compressed."""

    start: int
    size: int
    packed: int | None = None


@dataclass(frozen=True)
class Member:
    """An entry of the directory; its local header begins at `header`, the directory at `limit`."""

    header: int
    size: int
    packed: int
    method: int
    encrypted: bool
    limit: int


def read_directory(data: FileBytes) -> dict[str, Member]:
    """Read the members of a zip archive by name; names are never used as paths.

    Raises:
        CheckpointError: If the directory is damaged or has duplicate names.
    """
    start, size, count = _find_directory(data)
    members: dict[str, Member] = {}
    position = start
    for _ in range(count):
        if position + ENTRY.size > start + size:
            raise CheckpointError(f"the directory of a zip file must have {count} entries, not {len(members)}")
        entry = ENTRY.unpack(data[position : position + ENTRY.size])
        lengths = entry[10:13]
        names = data[position + ENTRY.size : position + ENTRY.size + lengths[0] + lengths[1]]
        position += ENTRY.size + sum(lengths)
        if entry[0] != b"PK\x01\x02" or position > start + size:
            raise CheckpointError("the directory of a zip file must be complete")
        name = names[: lengths[0]].decode("utf-8", "replace")
        if name in members:
            raise CheckpointError(f"a member of a zip file must appear once, {quote(name)} appears twice")
        unpacked, packed, header = _zip64_values(names[lengths[0] :], entry[9], entry[8], entry[16])
        members[name] = Member(header, unpacked, packed, entry[4], bool(entry[3] & 1), start)
    return members


def _find_directory(data: FileBytes) -> tuple[int, int, int]:
    """Return the position, size in bytes and number of entries of the directory."""
    tail = data[max(0, len(data) - END.size - 0xFFFF) :]
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + END.size > len(tail):
        raise CheckpointError("a zip file must end with its directory, this one is truncated")
    _, _, _, _, count, size, start, _ = END.unpack_from(tail, end)
    end += len(data) - len(tail)
    locator = data[max(0, end - LOCATOR_64.size) : end]
    if len(locator) == LOCATOR_64.size and locator.startswith(b"PK\x06\x07"):
        wide = LOCATOR_64.unpack(locator)[2]
        if wide + END_64.size > end or data[wide : wide + 4] != b"PK\x06\x06":
            raise CheckpointError("the zip64 record of a zip file must be inside it")
        count, size, start = END_64.unpack(data[wide : wide + END_64.size])[7:]
    if start + size > end or count > MAX_MEMBERS:
        raise CheckpointError(f"the directory of a zip file must be inside it and have at most {MAX_MEMBERS} entries")
    return start, size, count


def _zip64_values(extra: bytes, *values: int) -> list[int]:
    """Return values of an entry, those too large for 32 bits from its zip64 field."""
    field, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            field = extra[position : position + length]
        position += length
    results = []
    for value in values:
        if value == UNKNOWN:
            if len(field) < 8:
                raise CheckpointError("a zip64 field must have all values that its entry omits")
            value, field = struct.unpack_from("<Q", field)[0], field[8:]
        results.append(value)
    return results


def locate_member(data: FileBytes, members: dict[str, Member], name: str) -> MemberData:
    """Return the position of a member's bytes.

    Raises:
        CheckpointError: If it is missing, outside the file, encrypted, or its compression is not supported.
    """
    member = members.get(name)
    if member is None:
        raise CheckpointError(f"a zip file of torch.save must have the member {quote(name)}")
    if member.encrypted or member.method not in (STORED, DEFLATED):
        kind = "encrypted" if member.encrypted else f"compressed by method {member.method}"
        raise CheckpointError(f"member {quote(name)} must be stored or deflated, not {kind}", "pack it again")
    if member.header + LOCAL.size > member.limit:
        raise CheckpointError(f"member {quote(name)} must come before the directory")
    local = LOCAL.unpack(data[member.header : member.header + LOCAL.size])
    start = member.header + LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\x03\x04" or start + member.packed > member.limit:
        raise CheckpointError(f"member {quote(name)} must come before the directory, with a header")
    if member.method == STORED:
        if member.packed != member.size:
            raise CheckpointError(f"member {quote(name)} is not compressed and must have one size, not two")
        return MemberData(start, member.size)
    if member.size > max(FREE_BYTES, MAX_RATIO * member.packed):
        raise CheckpointError(
            f"member {quote(name)} must not unpack from {member.packed} to {member.size} bytes, it may be a zip bomb",
            "pack it again without compression",
        )
    return MemberData(start, member.size, member.packed)


def decompress(data: FileBytes, member: MemberData) -> bytes:
    """Return a member's uncompressed bytes; CheckpointError if their number differs from its size."""
    if member.packed is None:
        return data[member.start : member.start + member.size]
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = engine.decompress(data[member.start : member.start + member.packed], member.size + 1)
    except zlib.error as error:
        raise CheckpointError(f"a compressed member must be complete: {error}") from None
    if len(result) != member.size:
        raise CheckpointError(f"a compressed member must have {member.size} bytes, not {len(result)}")
    return result


def read_member(data: FileBytes, members: dict[str, Member], name: str, default: bytes | None = None) -> bytes:
    """Return the bytes of a small member; if it is missing, the default unless that is None."""
    if default is not None and name not in members:
        return default
    member = locate_member(data, members, name)
    if member.size > MAX_SMALL:
        raise CheckpointError(f"member {quote(name)} must have at most {MAX_SMALL} bytes, not {member.size}")
    return decompress(data, member)
