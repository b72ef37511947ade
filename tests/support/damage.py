"""Random damage to files: bytes, JSON values and text; everything follows from a seeded random.Random."""

import json
import struct

NUMBERS = (0, 1, 2, 5, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 7, 1000, 2**22, 2**31 - 1, 2**31, 2**32 + 4, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.0, -0.5, 0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"), "", "a", "\ud800", "\0", "a" * 2000, "<unk>"),
    *(
        "🙂",
        "a b",
        "1",
        "../..",
        "gelu",
        [],
        {},
        [[]],
        [None],
        [1, 2, 3],
        ["a", 1],
        {"a": 1},
        {"content": "a", "id": 3},
    ),
)


def damage_bytes(content, others, chance):
    """Return a file with one to four random defects."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        size = max(len(data), 1)
        at, length = chance.randrange(size), chance.randrange(1, 40)
        kind = chance.randrange(9)
        if kind == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[at] = chance.randrange(256)
        elif kind == 2:
            del data[chance.choice((at, size - length if size > length else 0)) :]
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[at : at + chance.choice((0, length))] = other[start : start + length]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 6:
            code = chance.choice(("<B", "<H", "<I", "<Q"))
            field = struct.pack(code, chance.choice(NUMBERS) % 256 ** struct.calcsize(code))
            data[at : at + len(field)] = field
        elif kind == 7:
            digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                data[chance.choice(digits)] = chance.choice(b"0123456789-.e")
        else:
            data[at : at + 1] = bytes([chance.choice(b"().}]{[0KMJXcqhrR\x81\x85\x86\x87\x92\x93\x94QbsuaetoiNIdlp")])
    return bytes(data)


def damage_json(content, chance):
    """Return a JSON file with one to three values replaced, removed, renamed, copied or nested; or damaged as bytes."""
    if chance.random() < 0.1:
        return damage_bytes(content, [content], chance)
    value = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = damage_value(value, value, chance)
    return json.dumps(value, ensure_ascii=chance.random() < 0.9).encode("utf-8", "surrogatepass")


def damage_value(value, root, chance):
    """Return a JSON value with a defect in it or in one of its parts."""
    parts = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    if not parts or chance.random() < 0.15:
        return _other_value(value, root, chance)
    key, part = chance.choice(parts)
    changed = dict(value) if isinstance(value, dict) else list(value)
    kind = chance.randrange(12)
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[chance.choice(("", "a", "\ud800", "1", "type", "id", "model", key * 50, key.upper()))] = part
    elif kind == 1:
        changed.insert(key, part)
    else:
        changed[key] = damage_value(part, root, chance)
    return changed


def _other_value(value, root, chance):
    kind = chance.randrange(8)
    if kind == 0:  # another part of the file
        for _ in range(chance.randrange(1, 5)):
            if isinstance(root, dict | list) and root:
                root = chance.choice(list(root.values() if isinstance(root, dict) else root))
        return root
    if kind == 1:
        for _ in range(chance.choice((1, 2, 60, 120))):
            value = chance.choice(([value], {"a": value}))
        return value
    if kind == 2 and isinstance(value, str):
        return chance.choice((value * 40, value[1:], value + "\n", value.upper()))
    if kind == 2 and type(value) in (int, float):
        return chance.choice((value + 1, value - 1, value * 1000, -value, str(value), (value % 1000) * 0.5))
    return chance.choice(VALUES)
