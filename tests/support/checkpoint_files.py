"""Builds checkpoint files byte by byte, without torch: pickles, zip archives, legacy files, safetensors."""

import io
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "<f8": "DoubleStorage",
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "<i4": "IntStorage",
    "<i2": "ShortStorage",
    "|i1": "CharStorage",
    "|u1": "ByteStorage",
    "|b1": "BoolStorage",
    "<c8": "ComplexFloatStorage",
    "<c16": "ComplexDoubleStorage",
}


@dataclass
class Name:
    """A class or function, written as GLOBAL."""

    module: str
    name: str


@dataclass
class Call:
    """A call, written as REDUCE, followed by BUILD if there is a state."""

    module: str
    name: str
    arguments: object = ()
    state: object = None


@dataclass
class Pid:
    """A persistent id."""

    value: object


@dataclass
class Raw:
    """Opcodes to write unchanged."""

    opcodes: bytes


def opcodes(value):
    if isinstance(value, Raw):
        return value.opcodes
    if isinstance(value, Name):
        return b"c" + f"{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        built = b"" if value.state is None else opcodes(value.state) + b"b"
        return opcodes(Name(value.module, value.name)) + opcodes(value.arguments) + b"R" + built
    if isinstance(value, Pid):
        return opcodes(value.value) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]  # numbers, text, None


def pickled(value):
    return b"\x80\x02" + opcodes(value) + b"."


def tensor(key="0", shape=(2, 3), strides=None, offset=0, numel=None, kind="FloatStorage", extra=(), view=()):
    """Return a tensor as torch pickles it."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    numel = int(np.prod(shape)) if numel is None else numel
    pid = Pid(("storage", Name("torch", kind), key, "cpu", numel, *view))
    hooks = Call("collections", "OrderedDict")
    return Call("torch._utils", "_rebuild_tensor_v2", (pid, offset, shape, strides, False, hooks, *extra))


def zip_file(root, storages, *, members=(), top="archive/", method=zipfile.ZIP_STORED, order=None):
    """Return a zip archive; `root` is a value or the bytes of data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{top}data.pkl", root if isinstance(root, bytes) else pickled(root))
        if order is not None:
            archive.writestr(f"{top}byteorder", order)
        for key, payload in storages.items():
            archive.writestr(f"{top}data/{key}", payload)
        archive.writestr(f"{top}version", "3\n")
        for name, payload in members:
            archive.writestr(name, payload)
    return buffer.getvalue()


def legacy_file(root, storages, *, itemsize=4, magic=MAGIC, protocol=PROTOCOL, keys=None):
    """Return a legacy file: five pickles, then each storage with its number of elements."""
    info = {"protocol_version": protocol, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    names = sorted(storages) if keys is None else keys
    parts = [pickled(magic), pickled(protocol), pickled(info)]
    parts += [root if isinstance(root, bytes) else pickled(root), pickled(names)]
    for key in sorted(storages):
        parts.append(struct.pack("<q", len(storages[key]) // itemsize) + storages[key])
    return b"".join(parts)


def safetensors_file(header, payload=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def numbers(count=6, dtype="<f4"):
    return np.arange(count).astype(dtype).tobytes()
