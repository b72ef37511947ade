"""Reads the fields of serialized protobuf messages, without the library."""

from collections.abc import Iterator
from typing import Any

WIRE_VARINT, WIRE_I64, WIRE_LEN, WIRE_I32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10


def iterate_fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the field numbers of a protobuf message and their values, as integers or bytes.

    Raises:
        IndexError: If the message is truncated.
        TypeError: If a field has an unknown wire type.

    Source: protobuf.dev/programming-guides/encoding.
    """
    offset = 0
    while offset < len(content):
        key, offset = _read_varint(content, offset)
        field, wire_type = key >> 3, key & 7
        if wire_type == WIRE_VARINT:
            value, offset = _read_varint(content, offset)
            yield field, value
            continue
        if wire_type == WIRE_LEN:
            length, offset = _read_varint(content, offset)
        elif wire_type in (WIRE_I64, WIRE_I32):
            length = 8 if wire_type == WIRE_I64 else 4
        else:
            raise TypeError(f"field {field} has the unknown wire type {wire_type}")
        if length > len(content) - offset:
            raise IndexError(f"field {field} has {length} bytes, but only {len(content) - offset} follow")
        yield field, content[offset : offset + length]
        offset += length


def _read_varint(content: bytes, offset: int) -> tuple[int, int]:
    """Return an integer of seven bits per byte, lowest first, and the offset after it."""
    if (value := content[offset]) < 128:  # the common case
        return value, offset + 1
    value = 0
    for count in range(MAX_VARINT_BYTES):
        byte = content[offset + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, offset + count + 1
    raise IndexError(f"a number has more than {MAX_VARINT_BYTES} bytes")
