"""Zip archives as torch writes them: the directory, and where each member's bytes lie; nothing is extracted."""

import mmap
import struct
import zlib
from dataclasses import dataclass

from mlx_transformer.weights.formats.tensors import CheckpointError, quote

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 200_000
MAX_SMALL = 2**28  # bytes of a member that is read whole, as the pickle is
MAX_RATIO, FREE_BYTES = 100, 2**20  # what a member may grow by when unpacked: a hundredfold, or to a mebibyte
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
UNKNOWN = 0xFFFFFFFF  # stands for a number that is in the zip64 field


@dataclass(frozen=True)
class MemberData:
    """Where bytes lie in a file: `size` of them, in `packed` ones if they are compressed."""

    start: int
    size: int
    packed: int | None = None


@dataclass(frozen=True)
class Member:
    """An entry of the directory; `header` is where its local header begins, `limit` where the directory does."""

    header: int
    size: int
    packed: int
    method: int
    encrypted: bool
    limit: int


def read_directory(data: mmap.mmap) -> dict[str, Member]:
    """The members of a zip archive by name, which are labels only: they are never used as paths.

    Raises:
        CheckpointError: If the directory is damaged or has a name twice.
    """
    start, size, count = _find_directory(data)
    members: dict[str, Member] = {}
    position = start
    for _ in range(count):
        if position + ENTRY.size > start + size:
            raise CheckpointError(f"the directory of a zip file must have {count} entries, not {len(members)}")
        entry = ENTRY.unpack_from(data, position)
        lengths = entry[10:13]
        names = data[position + ENTRY.size : position + ENTRY.size + lengths[0] + lengths[1]]
        position += ENTRY.size + sum(lengths)
        if entry[0] != b"PK\x01\x02" or position > start + size:
            raise CheckpointError("the directory of a zip file must be whole")
        name = names[: lengths[0]].decode("utf-8", "replace")
        if name in members:
            raise CheckpointError(f"a member of a zip file must be there once, {quote(name)} is there twice")
        unpacked, packed, header = _wide(names[lengths[0] :], entry[9], entry[8], entry[16])
        members[name] = Member(header, unpacked, packed, entry[4], bool(entry[3] & 1), start)
    return members


def _find_directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Where the directory begins, its bytes and entries."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - END.size - 0xFFFF))
    if end < 0 or end + END.size > len(data):
        raise CheckpointError("a zip file must end with its directory, this one is cut off")
    _, _, _, _, count, size, start, _ = END.unpack_from(data, end)
    if end >= LOCATOR_64.size and data[end - LOCATOR_64.size :][:4] == b"PK\x06\x07":
        wide = LOCATOR_64.unpack_from(data, end - LOCATOR_64.size)[2]
        if wide + END_64.size > end or data[wide : wide + 4] != b"PK\x06\x06":
            raise CheckpointError("the zip64 record of a zip file must be in it")
        count, size, start = END_64.unpack_from(data, wide)[7:]
    if start + size > end or count > MAX_MEMBERS:
        raise CheckpointError(f"the directory of a zip file must lie in it and have at most {MAX_MEMBERS} entries")
    return start, size, count


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """Numbers of an entry, taken from its zip64 field where they are too large for 32 bits."""
    field = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            field = extra[4 : 4 + length]
        extra = extra[4 + length :]
    found = []
    for number in numbers:
        if number == UNKNOWN:
            if len(field) < 8:
                raise CheckpointError("a zip64 field must have the numbers that its entry leaves to it")
            number, field = struct.unpack_from("<Q", field)[0], field[8:]
        found.append(number)
    return found


def locate_member(data: mmap.mmap, members: dict[str, Member], name: str) -> MemberData:
    """Where a member's bytes lie.

    Raises:
        CheckpointError: If it is missing, outside the file, encrypted, or compressed in another way or beyond reason.
    """
    member = members.get(name)
    if member is None:
        raise CheckpointError(f"a zip file of torch.save must have the member {quote(name)}")
    if member.encrypted or member.method not in (STORED, DEFLATED):
        kind = "encrypted" if member.encrypted else f"compressed by method {member.method}"
        raise CheckpointError(f"member {quote(name)} must be stored or deflated, not {kind}", "pack it again")
    if member.header + LOCAL.size > member.limit:
        raise CheckpointError(f"member {quote(name)} must lie before the directory")
    local = LOCAL.unpack_from(data, member.header)
    start = member.header + LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\x03\x04" or start + member.packed > member.limit:
        raise CheckpointError(f"member {quote(name)} must lie before the directory, with a header")
    if member.method == STORED:
        if member.packed != member.size:
            raise CheckpointError(f"member {quote(name)} is stored and must have one size, not two")
        return MemberData(start, member.size)
    if member.size > max(FREE_BYTES, MAX_RATIO * member.packed):
        raise CheckpointError(
            f"member {quote(name)} must not unpack from {member.packed} to {member.size} bytes, it may be a zip bomb",
            "pack it again without compression",
        )
    return MemberData(start, member.size, member.packed)


def decompress(data: mmap.mmap, place: MemberData) -> bytes:
    """The bytes of a place, unpacked; CheckpointError if they are more or fewer than it says."""
    if place.packed is None:
        return data[place.start : place.start + place.size]
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        with memoryview(data) as whole, whole[place.start : place.start + place.packed] as part:
            result = engine.decompress(part, place.size + 1)
    except zlib.error as error:
        raise CheckpointError(f"a compressed member must be whole: {error}") from None
    if len(result) != place.size:
        raise CheckpointError(f"a compressed member must have {place.size} bytes, not {len(result)}")
    return result


def read_member(data: mmap.mmap, members: dict[str, Member], name: str, default: bytes | None = None) -> bytes:
    """A small member's bytes; `default` if one is given and it is not there."""
    if default is not None and name not in members:
        return default
    place = locate_member(data, members, name)
    if place.size > MAX_SMALL:
        raise CheckpointError(f"member {quote(name)} must have at most {MAX_SMALL} bytes, not {place.size}")
    return decompress(data, place)
