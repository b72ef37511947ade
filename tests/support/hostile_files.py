"""Files that try to run code, exhaust memory or read beyond their end: name -> (bytes, expected error).

The expected error is a regular expression; None stands for a file that loads, with its hidden calls inert.
"""

import io
import itertools
import json
import pickle
import struct
import zipfile
import zlib

from support.checkpoint_files import (
    Call,
    Name,
    Pid,
    Raw,
    legacy_file,
    numbers,
    opcodes,
    pickled,
    safetensors_file,
    tensor,
    zip_file,
)

TOUCH = "touch CANARY"
POPEN = b"csubprocess\nPopen\n" + opcodes((TOUCH,))
HOOKS = Call("collections", "OrderedDict")


def text(value):
    return opcodes(value)


def short(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def hidden(*payload):
    """Return a state dict with other values besides its tensor."""
    return {"a": tensor(), **{f"x{number}": part for number, part in enumerate(payload)}}


def chained(first, name, arguments):
    return Raw(opcodes(first) + opcodes(name) + opcodes(arguments) + b"R")


def nested(depth, opener, closer, inner=b"N"):
    return Raw(opener * depth + inner + closer * depth)


def doubled(levels, start=b"N", opener=b"", closer=b"\x86"):
    """Return nested pairs: each contains the same inner pair twice."""
    return Raw(start + b"".join(b"q%c0%bh%ch%c%b" % (n, opener, n, n, closer) for n in range(levels)))


def modules(levels):
    """Return nested modules: each contains the same inner module twice."""
    below = text("_modules") + b"}(" + text("l") + b"h\1" + text("r") + b"h\1us"
    return Raw(opcodes(Call("a", "B", (), {"_modules": {}})) + (b"q\0010ca\nB\n)R}" + below + b"b") * levels)


def shared_states(count):
    """Return one state dict under many names."""
    state = opcodes({"a": tensor(), **dict.fromkeys(map(str, range(999)))})
    names = b"".join(text(f"k{n}") + b"h\1" for n in range(count))
    return Raw(b"}(" + text("k") + state + b"q\1" + names + b"u")


def rebuilt(storage, dtype):
    pid = Pid(("storage", Name(*storage), "0", "cpu", 24))
    arguments = (pid, 0, (6,), (1,), False, HOOKS, Name("torch", dtype))
    return Call("torch._utils", "_rebuild_tensor_v3", arguments)


def copies():
    """Copy a list of ten thousand items ten thousand times."""
    body = b"](" + b"K\1" * 10_000 + b"eq\1"
    return Raw(body + (b"c__builtin__\nlist\nh\1\x85R0") * 10_000)


def named_alike(count):
    """Return one dict under many names that could each be those of a state dict."""
    entries = b"".join(text(f"k{n}") + b"N" for n in range(count))
    names = b"".join(text(f"ema{n}") + b"h\1" for n in range(count))
    return Raw(b"}(" + text("a") + b"}(" + entries + b"uq\1" + names + text("z") + opcodes({"a": tensor()}) + b"u")


def colliding_tuples(count):
    """Return a dict whose keys are tuples of integers that all have the same hash."""
    numbers = [n * (2**61 - 1) for n in range(-3, 4)]
    stored = b"".join(opcodes(number) + b"q" + bytes([10 + n]) + b"0" for n, number in enumerate(numbers))
    rows = itertools.islice(itertools.product(range(7), repeat=6), count)
    keys = b"".join(b"(" + b"".join(b"h" + bytes([10 + n]) for n in row) + b"tN" for row in rows)
    return Raw(stored + b"}(" + keys + b"u")


def equal_keys(size, count):
    """Return a dict that is given two long and equal keys in turn."""
    first, second = (opcodes("a" * size) + b"q" + bytes([n]) + b"0" for n in (1, 2))
    return Raw(first + second + b"}" + b"h\1Nsh\2Ns" * count)


def shared_buffers(count):
    """Return many modules that share many buffers, none of which belongs to the state dict."""
    buffers = b"}(" + b"".join(text(f"b{n}") + b"N" for n in range(count)) + b"uq\2"
    names = b"c__builtin__\nset\n](" + b"".join(text(f"b{n}") for n in range(count)) + b"e\x85Rq\3"
    state = text("_modules") + b"}" + text("_buffers") + b"h\2" + text("_non_persistent_buffers_set") + b"h\3"
    children = b"".join(text(f"m{n}") + b"h\4" for n in range(count))
    leaf = b"ca\nB\n)R}(" + state + b"ubq\4"
    return Raw(b"(" + buffers + names + leaf + b"1ca\nB\n)R}" + text("_modules") + b"}(" + children + b"usb")


def many_modules(count):
    """Return many modules under names of their own, which share many buffers."""
    buffers = b"}(" + b"".join(text(f"b{n}") + opcodes(tensor() if n == 0 else None) for n in range(count)) + b"uq\2"
    modules = b"".join(text(f"m{n}") + b"ca\nB\n)R}(X\x08\0\0\0_modulesNX\x08\0\0\0_buffersh\2ub" for n in range(count))
    return Raw(b"(" + buffers + b"1}(" + modules + b"u")


def long_keys(count, depth):
    """Return many state dicts inside dicts with long keys."""
    inner = b"}(" + b"".join(text(f"{n:0200}") + opcodes({"a": tensor()}) for n in range(count)) + b"u"
    return Raw(b"".join(b"}" + text("k" * 200) for _ in range(depth)) + inner + b"s" * depth)


def shared_metadata(count):
    """Return many tensors that share a large dict of metadata."""
    metadata = b"}(" + b"".join(text(f"k{n}") + b"N" for n in range(count)) + b"uq\1"
    storage = opcodes(Pid(("storage", Name("torch", "FloatStorage"), "0", "cpu", 6))) + b"q\2"
    arguments = b"(h\2K\0K\6\x85K\1\x85\x89Nh\1t"
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nN" + arguments + b"NtR"
    return Raw(metadata + b"0" + storage + b"0}(" + b"".join(text(f"t{n}") + call for n in range(count)) + b"u")


def nested_states(depth):
    state = {"a": tensor()}
    for _ in range(depth):
        state = {"model": state, "a": tensor()}
    return state


PICKLES = {
    # Calls by every opcode that calls.
    "reduce os.system": (hidden(Call("os", "system", (TOUCH,))), None),
    "reduce posix.system": (hidden(Call("posix", "system", (TOUCH,))), None),
    "reduce exec": (hidden(Call("builtins", "exec", (f"import os; os.system('{TOUCH}')",))), None),
    "reduce eval of Python 2": (hidden(Call("__builtin__", "eval", ("1/0",))), None),
    "reduce execfile": (hidden(Call("__builtin__", "execfile", ("/etc/passwd",))), None),
    "reduce subprocess": (hidden(Call("subprocess", "Popen", (["touch", "CANARY"],))), None),
    "reduce import": (hidden(Call("builtins", "__import__", ("antigravity",))), None),
    "reduce importlib": (hidden(Call("importlib", "import_module", ("antigravity",))), None),
    "reduce runpy": (hidden(Call("runpy", "run_path", ("CANARY.py",))), None),
    "reduce pickle.loads": (hidden(Call("pickle", "loads", (b"cos\nsystem\n(S'touch CANARY'\ntR.",))), None),
    "reduce open": (hidden(Call("io", "open", ("CANARY", "w"))), None),
    "reduce shutil.rmtree": (hidden(Call("shutil", "rmtree", (".",))), None),
    "reduce numpy.memmap": (hidden(Call("numpy", "memmap", ("CANARY", "uint8", "w+", 0, (9,)))), None),
    "reduce numpy.load": (hidden(Call("numpy", "load", ("CANARY", None, True))), None),
    "reduce torch.load": (hidden(Call("torch.serialization", "load", ("CANARY",))), None),
    "reduce torch.hub": (hidden(Call("torch.hub", "load", ("a/b", "c"))), None),
    "reduce ctypes": (hidden(Call("ctypes", "CDLL", ("libc.so.6",))), None),
    "reduce socket": (hidden(Call("socket", "create_connection", (("localhost", 9),))), None),
    "reduce getattr of an import": (
        hidden(Call("builtins", "getattr", (Call("builtins", "__import__", ("os",)), "system"))),
        None,
    ),
    "reduce the result of a call": (
        hidden(Raw(opcodes(Call("operator", "attrgetter", ("system",))) + text((TOUCH,)) + b"R)R")),
        None,
    ),
    "reduce map": (hidden(Call("builtins", "map", (Name("os", "system"), [TOUCH]))), None),
    "reduce methodcaller": (hidden(Call("operator", "methodcaller", ("system", TOUCH))), None),
    "reduce a dunder of an allowed name": (hidden(Call("collections", "OrderedDict.__init__.__globals__", ())), None),
    "reduce a name of the readers": (
        hidden(Call("mlx_transformer.weights.formats.checkpoint", "read_checkpoint", (".",))),
        None,
    ),
    "reduce copyreg of a class": (
        hidden(Call("copy_reg", "_reconstructor", (Name("os", "_wrap_close"), Name("__builtin__", "object"), None))),
        None,
    ),
    "reduce a tensor type by a function": (
        hidden(Call("torch._tensor", "_rebuild_from_type_v2", (Name("os", "system"), Name("a", "b"), (TOUCH,), {}))),
        None,
    ),
    "reduce a number": (hidden(Raw(b"K\1" + text((TOUCH,)) + b"R")), "call a class"),
    "reduce with a list": (hidden(Raw(b"cos\nsystem\n]R")), "call a class"),
    "newobj": (hidden(Raw(b"cos\nsystem\n" + text((TOUCH,)) + b"\x81")), None),
    "newobj with names": (hidden(Raw(POPEN + text({"shell": True}) + b"\x92")), None),
    "newobj with a list of names": (hidden(Raw(POPEN + b"]\x92")), "tuple and a dict"),
    "inst": (hidden(Raw(b"(" + text(TOUCH) + b"ios\nsystem\n")), None),
    "obj": (hidden(Raw(b"(cos\nsystem\n" + text(TOUCH) + b"o")), None),
    "obj without a class": (hidden(Raw(b"(o")), "must be complete"),
    "stack global": (hidden(Raw(short("os") + short("system") + b"\x93" + text((TOUCH,)) + b"R")), None),
    "stack global with dots": (hidden(Raw(short("os") + short("path.os.system") + b"\x93)R")), None),
    "stack global of numbers": (hidden(Raw(b"K\1K\2\x93")), "by two strings"),
    "global with spaces": (hidden(Raw(b"cos\nsystem (\n)R")), None),
    "global without a line end": (hidden(Raw(b"cos")), "must be complete"),
    "build with __setstate__": (
        hidden(Raw(opcodes(Call("a", "B", (), {"__setstate__": Name("os", "system")})) + text(TOUCH) + b"b")),
        None,
    ),
    "build with __class__": (hidden(Call("a", "B", (), {"__class__": Name("os", "system"), "__dict__": {}})), None),
    "build with __reduce__": (hidden(Call("a", "B", (), {"__reduce__": Name("os", "system"), "name": TOUCH})), None),
    "build with slots": (hidden(Call("a", "B", (), ({"x": 1}, {"args": (TOUCH,), "state": 1}))), None),
    "build an allowed name": (
        hidden(Raw(b"ccollections\nOrderedDict\n" + text({"name": "os.system", "args": None}) + b"b)R")),
        None,
    ),
    "build a number": (hidden(Raw(b"K\1}b")), "set the state"),
    "build an ordered dict": (hidden(Call("collections", "OrderedDict", (), {"_metadata": {"": TOUCH}})), None),
    "a default factory": (hidden(Call("collections", "defaultdict", (Name("os", "system"), {"a": 1}))), None),
    "a key that is an object": (hidden(Raw(b"}" + opcodes(Call("os", "system", (TOUCH,))) + b"K\1s")), None),
    "a codec that is a module": (hidden(Call("_codecs", "encode", (TOUCH, "rot13"))), "latin1, utf-8 or ascii"),
    "a storage class that is a function": ({"a": rebuilt(("os", "system"), "uint8")}, "have a plain storage"),
    "a tensor of a string": (
        {"a": Call("torch._utils", "_rebuild_tensor", ("0", 0, (6,), (1,)))},
        "have a plain storage",
    ),
    "a tensor of nothing": ({"a": Call("torch._utils", "_rebuild_tensor", ())}, "must be complete"),
    "a dict of a string": (hidden(Call("collections", "OrderedDict", ("abc",))), "must be complete"),
    "a tensor of a number": ({"a": Call("torch._utils", "_rebuild_tensor", 7)}, "call a class with a tuple"),
    "a dtype that is a number": (
        {"a": Call("torch._utils", "_rebuild_tensor_v3", (0, 0, (6,), (1,), False, HOOKS, 7))},
        "must be complete",
    ),
    "a tensor type by a number": (
        hidden(Call("torch._tensor", "_rebuild_from_type_v2", (7, Name("a", "b"), (TOUCH,), {}))),
        "must be complete",
    ),
    "a reconstructed number": (hidden(Call("copy_reg", "_reconstructor", (7, Name("a", "b"), None))), "must be comp"),
    "an encoded number": (hidden(Call("_codecs", "encode", (7, "latin1"))), "must be complete"),
    # Unsupported and invalid opcodes.
    "an extension": (hidden(Raw(b"\x82\x01")), "opcode EXT1"),
    "a string as persistent id": (hidden(Raw(b"Pstorage\n")), "opcode PERSID"),
    "an out-of-band buffer": (hidden(Raw(b"\x97")), "opcode NEXT_BUFFER"),
    "an unknown opcode": (hidden(Raw(b"\xff")), "must be complete"),
    "a stack underflow": (hidden(Raw(b"0" * 20)), "must be complete"),
    "no mark": (hidden(Raw(b"0tttttt")), "must be complete"),
    "no stop": (b"\x80\x02}", "must"),
    "an unset memo": (hidden(Raw(b"h\x63")), "must be complete"),
    "a tuple of too few": (b"\x80\x02N\x87.", "3 values for a tuple"),
    "an append to a number": (hidden(Raw(b"K\1Na")), "append to a list"),
    "an item set in a list": (hidden(Raw(b"]NNs")), "set pairs in a dict"),
    # Excessive sizes.
    "a string of 4 GB": (hidden(Raw(b"X\xff\xff\xff\xff")), "must have at most"),
    "bytes of an exabyte": (hidden(Raw(b"\x8e" + struct.pack("<Q", 2**60))), "must have at most"),
    "bytes of more than all": (hidden(Raw(b"\x8e" + b"\xff" * 8)), "must be complete"),
    "a number of 2 GB": (hidden(Raw(b"\x8b" + struct.pack("<i", 2**31 - 1))), "must have at most"),
    "a number of negative size": (hidden(Raw(b"\x8b\xff\xff\xff\xff")), "must be complete"),
    "a number of 5000 bytes": (hidden(Raw(b"\x8b" + struct.pack("<i", 5000) + b"\1" * 5000)), "at most 8192 bits"),
    "a decimal number of a megabyte": (hidden(Raw(b"L" + b"9" * 2_000_000 + b"L\n")), "must"),
    "a large memo index": (hidden(Raw(b"Nr\xff\xff\xff\xff")), None),
    "a frame beyond the end": (hidden(Raw(b"\x95" + b"\xff" * 8 + b"N")), None),
    "a memo bomb of lists": (hidden(doubled(200, b"]", b"](", b"e")), None),
    "a memo bomb of tuples": (hidden(doubled(200)), None),
    "a memo bomb as a key": (hidden(Raw(b"}" + opcodes(doubled(100)) + b"Ns")), None),
    "a deep list": (hidden(nested(50_000, b"](", b"e")), None),
    "a deep tuple": (hidden(nested(100_000, b"", b"\x85")), None),
    "a deep tuple as a key": (hidden(Raw(b"}" + opcodes(nested(100_000, b"", b"\x85")) + b"Ns")), None),
    "a deep dict": (hidden(nested(50_000, b"}N", b"s")), None),
    "a deep object": (hidden(nested(50_000, b"ca\nB\n", b"\x85R")), None),
    "a deep persistent id": (hidden(Raw(opcodes(nested(10_000, b"", b"\x85")) + b"Q")), "name storages"),
    "a list in itself": (hidden(Raw(b"]q\1h\1a")), None),
    "a dict in itself": (hidden(Raw(b"}q\1" + text("a") + b"h\1s")), None),
    "an object in itself": (hidden(Raw(b"ca\nB\n)Rq\1}" + text("a") + b"h\1sb")), None),
    "a key in itself": (hidden(Raw(b"}q\1h\1Ns")), None),
    "copies of a list": (hidden(copies()), "steps to read"),
    "a list of characters": (hidden(Call("__builtin__", "list", ("a" * 10,))), "no container"),
    "a set of characters": (hidden(Call("__builtin__", "set", ("a" * 10,))), "no container"),
    "tuples that collide": (hidden(colliding_tuples(40_000)), None),
    "equal keys of a megabyte": (hidden(equal_keys(2**20, 50_000)), None),
    "keys that collide": (hidden({n * (2**61 - 1): None for n in range(3000)}), None),
    # State dicts.
    "a state dict in itself": (Raw(b"}q\1" + text("model") + b"h\1s"), "must contain a state dict"),
    "a module in itself": (
        Raw(b"ca\nB\n)Rq\1}" + text("_modules") + b"}" + text("m") + b"h\1ssb"),
        "modules and their entries must be at most",
    ),
    "modules doubled": (modules(40), "at most"),
    "modules with many buffers": (shared_buffers(9_000), "at most 200000"),
    "many modules with many buffers": (many_modules(5_000), None),
    "many state dicts with long keys": (long_keys(5_000, 7), None),
    "many tensors with one dict": (shared_metadata(9_000), None),
    "a dict under twenty thousand names": (named_alike(20_000), None),
    "deep state dicts": (nested_states(200), None),
    "a state dict with tensors in itself": (Raw(opcodes({"a": tensor()}) + b"q\1" + text("model") + b"h\1s"), None),
    "modules of a number": (Call("a", "B", (), {"_modules": 3, "_parameters": 4}), "must contain tensors"),
    "a state dict under ten thousand names": (shared_states(10_000), None),
    "a name of a megabyte": ({"a" * 2**20: tensor()}, "at most 1000 characters"),
    "names that multiply": ({"k" * 2**20: {"a": tensor()}}, "must contain a state dict"),
    "names that are numbers": ({1: tensor()}, "must contain tensors"),
    "no tensor": ({"a": 1}, "must contain a state dict"),
    "an empty dict": ({}, "must contain tensors"),
    "a list": ([tensor()], "must contain a state dict"),
    "a number": (7, "must contain a state dict"),
    "a sparse tensor": ({"a": tensor(), "b": Call("torch._utils", "_rebuild_sparse_tensor", (1,))}, "is sparse"),
    "a nested tensor": ({"a": tensor(), "b": Call("torch._utils", "_rebuild_nested_tensor", (1,))}, "is nested"),
    "a quantized tensor": ({"a": tensor(), "b": Call("torch._utils", "_rebuild_qtensor", (1,))}, "is quantized"),
    "a quantized storage": ({"a": tensor(kind="QInt8Storage")}, "have a plain storage"),
    "an uninitialised parameter": (
        {"a": tensor(), "b": Call("torch.nn.parameter", "UninitializedParameter")},
        "not initialised",
    ),
    "a conjugated tensor": ({"a": tensor(kind="FloatStorage", extra=({"conj": True},))}, "conjugated"),
    # Tensors outside their storage, and invalid ones.
    "more numbers than stored": ({"a": tensor(shape=(7,))}, "must have 28 bytes"),
    "2**59 numbers": ({"a": tensor(shape=(6,), numel=2**59)}, "must have"),
    "2**60 numbers": ({"a": tensor(shape=(6,), numel=2**60)}, "below 2\\*\\*60"),
    "minus one number": ({"a": tensor(shape=(0,), numel=-1)}, "below 2\\*\\*60"),
    "a shape beyond the storage": ({"a": tensor(shape=(7,), numel=6)}, "inside its storage"),
    "an offset beyond the storage": ({"a": tensor(shape=(1,), offset=6, numel=6)}, "inside its storage"),
    "an empty tensor beyond the storage": ({"a": tensor(shape=(0,), offset=7, numel=6)}, "inside its storage"),
    "a stride beyond the storage": ({"a": tensor(shape=(2, 3), strides=(4, 1), numel=6)}, "inside its storage"),
    "a stride that wraps around": ({"a": tensor(shape=(2,), strides=(2**61,), numel=6)}, "inside its storage"),
    "strides that wrap around": ({"a": tensor(shape=(5, 2), strides=(2**61, 1), numel=6)}, "inside its storage"),
    "a negative stride": ({"a": tensor(shape=(6,), strides=(-1,), offset=5)}, "not negative"),
    "a negative offset": ({"a": tensor(shape=(6,), offset=-1)}, "not negative"),
    "a negative dimension": ({"a": tensor(shape=(-6,), strides=(1,), numel=6)}, "not negative"),
    "a dimension that is true": ({"a": tensor(shape=(True,), strides=(1,), numel=6)}, "not negative"),
    "a dimension that is a fraction": ({"a": tensor(shape=(1.5,), strides=(1,), numel=6)}, "not negative"),
    "a dimension of a kilobyte": ({"a": tensor(shape=(2**8000,), strides=(0,), numel=6)}, "not negative"),
    "a shape that is a string": ({"a": tensor(shape="ab", strides=(1, 1), numel=6)}, "must be lists"),
    "a shape without strides": ({"a": tensor(shape=(2, 3), strides=(1,))}, "as many dimensions"),
    "33 dimensions": ({"a": tensor(shape=(1,) * 33, numel=6)}, "as many dimensions"),
    "100,000 dimensions": (
        {"a": tensor(shape=Raw(b"(" + b"K\1" * 10**5 + b"t"), strides=(1,), numel=6)},
        "as many dimensions",
    ),
    "a dimension of 2**31": ({"a": tensor(shape=(2**31,), strides=(0,), numel=6)}, "below 2\\*\\*31"),
    "an expanded exabyte": ({"a": tensor(shape=(2**30, 2**30), strides=(0, 0), numel=6)}, "expanded views"),
    "dimensions that overflow": ({"a": tensor(shape=(2**30,) * 6, strides=(0,) * 6, numel=6)}, "below 2\\*\\*60"),
    "an empty tensor that overflows": ({"a": tensor(shape=(0,) + (2**30,) * 6, numel=0)}, "below 2\\*\\*60"),
    "100 GB of expanded views": ({"a": tensor(shape=(50_000, 500_000), strides=(0, 0), numel=6)}, "expanded views"),
    "many views of one storage": (
        {f"a{n}": tensor(shape=(2000, 2000 + n), strides=(0, 0), numel=6) for n in range(40)},
        "expanded views",
    ),
    "a missing storage": ({"a": tensor("1")}, "must have the member|list the storages"),
    "a storage in a parent folder": ({"a": tensor("../../../etc/passwd")}, "must have the member|list the storages"),
    "a storage at the root": ({"a": tensor("/etc/passwd")}, "must have the member|list the storages"),
    "a storage of two sizes": ({"a": tensor(), "b": tensor(numel=7)}, "one size and type"),
    "a storage of two types": ({"a": tensor(), "b": tensor(kind="IntStorage")}, "one size and type"),
    "a storage without a key": ({"a": tensor(7)}, "by class, key"),
    "a storage with too few fields": (hidden(Raw(text(("storage",)) + b"Q")), "name storages"),
    "a storage that is None": (hidden(Raw(b"NQ")), "name storages"),
    "a dtype that does not exist": (
        {"a": rebuilt(("torch.storage", "UntypedStorage"), "system")},
        "dtype must be one of",
    ),
    "values that are NaN": ({"nan": tensor(), "inf": tensor()}, None),
}


def zipped(**options):
    return zip_file({"a": tensor()}, {"0": numbers()}, **options)


def edited(content, marker, offset, code, *values, last=True):
    """Return a file with one field overwritten, at an offset from the last (or first) occurrence of a marker."""
    data = bytearray(content)
    position = data.rfind(marker) if last else data.find(marker)
    struct.pack_into(code, data, position + offset, *values)
    return bytes(data)


def entry(content, name, offset, code, *values):
    """Return a zip file with one field overwritten in a member's entry of the directory."""
    position = content.rfind(name.encode()) - 46
    return edited(content, content[position : position + 46 + len(name)], offset, code, *values)


def duplicated():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickled({"a": tensor()}))
        archive.writestr("a/data/0", numbers())
        archive.writestr("a/data/1", numbers())
    return buffer.getvalue().replace(b"a/data/1", b"a/data/0")


def bomb(size):
    return zip_file({"a": tensor(shape=(size // 4,))}, {"0": bytes(size)}, method=zipfile.ZIP_DEFLATED)


def lying(claimed):
    content = zip_file({"a": tensor()}, {"0": numbers()}, method=zipfile.ZIP_DEFLATED)
    return entry(content, "archive/data.pkl", 24, "<L", claimed)


def overlapping():
    """Return a zip file of two hundred members that share their bytes."""
    root = {f"a{n}": tensor(str(n), shape=(1000,)) for n in range(200)}
    content = zip_file(root, {str(n): b"" if n else bytes(4000) for n in range(200)})
    header = content.find(b"archive/data/0") - 30
    for n in range(1, 200):
        content = entry(content, f"archive/data/{n}", 20, "<2L", 4000, 4000)
        content = entry(content, f"archive/data/{n}", 42, "<L", header)
    return content


def damaged():
    return edited(zipped(method=zipfile.ZIP_DEFLATED), b"archive/data.pkl", 16, "<Q", 2**64 - 1, last=False)


def scripted():
    return zipped(members=[("archive/constants.pkl", b""), ("archive/code/a.py", b"")])


def array_archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY")
    return buffer.getvalue()


ZIPS = {
    "four million steps in some kilobytes": (
        zip_file(hidden(Raw(b"N0" * 2_000_000)), {"0": numbers()}, method=zipfile.ZIP_DEFLATED, members=[]),
        "steps to read|zip bomb",
    ),
    "a zip bomb of a tensor": (bomb(2**27), "zip bomb"),
    "a zip bomb of a pickle": (
        zip_file(b"\x80\x02" + b"N" * 2**26 + b".", {}, method=zipfile.ZIP_DEFLATED),
        "zip bomb",
    ),
    "a pickle longer than announced": (lying(9), "must have 9 bytes"),
    "a pickle shorter than announced": (lying(999), "must have 999 bytes"),
    "a damaged compression": (damaged(), "must be complete"),
    "an unknown compression": (entry(zipped(), "archive/data/0", 10, "<H", 99), "compressed by method 99"),
    "bzip2": (zipped(method=zipfile.ZIP_BZIP2), "compressed by method 12"),
    "an encrypted member": (entry(zipped(), "archive/data/0", 8, "<H", 1), "encrypted"),
    "duplicate names": (duplicated(), "appears twice"),
    "two pickles": (zipped(members=[("other/data.pkl", pickled({}))]), "one data.pkl"),
    "names in parent folders": (zipped(members=[("../../../CANARY", b"x"), ("archive/../CANARY", b"")]), None),
    "absolute names": (zipped(members=[("/CANARY", b"x"), ("C:\\CANARY", b"")]), None),
    "names that are not UTF-8": (zipped(members=[("x", b"")]).replace(b"x", b"\xff"), None),
    "a top folder in a parent folder": (zipped(top="../../"), None),
    "no top folder": (zipped(top=""), None),
    "a link": (zipped(members=[(zipfile.ZipInfo("archive/link"), "/etc/passwd")]), None),
    "no pickle": (array_archive(), "a file of NumPy arrays"),
    "a TorchScript archive": (scripted(), "TorchScript"),
    "an unknown byte order": (zipped(order="middle"), "little or big"),
    "no directory": (zipped()[:-30], "truncated"),
    "only a signature": (b"PK\x03\x04", "truncated"),
    "a directory beyond the end": (edited(zipped(), b"PK\x05\x06", 16, "<L", 2**31), "must be inside it"),
    "a directory of 2 GB": (edited(zipped(), b"PK\x05\x06", 12, "<L", 2**31), "must be inside it"),
    "too many entries announced": (edited(zipped(), b"PK\x05\x06", 8, "<2H", 60000, 60000), "60000 entries"),
    "too few entries announced": (edited(zipped(), b"PK\x05\x06", 8, "<2H", 1, 1), "must have the member"),
    "no entries": (edited(zipped(), b"PK\x05\x06", 8, "<2H", 0, 0), "no data.pkl"),
    "a header beyond the end": (entry(zipped(), "archive/data/0", 42, "<L", 2**31), "before the directory"),
    "a header in the directory": (entry(zipped(), "archive/data/0", 42, "<L", len(zipped()) - 40), "before the dir"),
    "a header that is something else": (entry(zipped(), "archive/data/0", 42, "<L", 3), "with a header"),
    "a member beyond the directory": (entry(zipped(), "archive/data/0", 20, "<2L", 9999, 9999), "before the directory"),
    "a stored member of two sizes": (entry(zipped(), "archive/data/0", 24, "<L", 999999), "one size"),
    "a member shorter than its tensor": (entry(zipped(), "archive/data/0", 20, "<2L", 20, 20), "must have 24 bytes"),
    "a missing 64-bit size": (entry(zipped(), "archive/data/0", 24, "<L", 2**32 - 1), "zip64 field"),
    "a 64-bit record beyond the end": (
        zipped()[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1) + zipped()[-22:],
        "zip64 record",
    ),
    "overlapping members": (overlapping(), "must not overlap"),
}

LEGACY = legacy_file({"a": tensor()}, {"0": numbers()})
LEGACIES = {
    "storages that are not listed": (legacy_file({"a": tensor()}, {"0": numbers()}, keys=[]), "list the storages"),
    "storages listed twice": (legacy_file({"a": tensor()}, {"0": numbers()}, keys=["0", "0"]), "list the storages"),
    "storages listed by numbers": (legacy_file({"a": tensor()}, {"0": numbers()}, keys=[0]), "list the storages"),
    "storages listed by deep lists": (
        legacy_file({"a": tensor()}, {"0": numbers()}, keys=[nested(9000, b"](", b"e")]),
        "list the storages",
    ),
    "storages listed in a string": (legacy_file({"a": tensor()}, {"0": numbers()}, keys="0"), "list the storages"),
    "another count than announced": (legacy_file({"a": tensor()}, {"0": numbers(7)}), "must have 24 bytes"),
    "truncated numbers": (legacy_file({"a": tensor()}, {"0": numbers()})[:-1], "must have 24 bytes"),
    "a truncated count": (legacy_file({"a": tensor()}, {"0": numbers()})[:-28], "the file ends before it"),
    "a negative count": (edited(LEGACY, struct.pack("<q", 6) + numbers(), 0, "<q", -6), "-6 values"),
    "another protocol": (legacy_file({}, {}, protocol=1002), "not 1002"),
    "a protocol that is a deep list": (legacy_file({}, {}, protocol=nested(9000, b"](", b"e")), "not a list"),
    "a plain pickle": (pickle.dumps({"a": 1}), "plain dict"),
    "a plain pickle that calls": (pickled(Call("os", "system", (TOUCH,))), "plain PickledObject"),
    "another magic number": (legacy_file({}, {}, magic=7), "plain int"),
    "the end of the magic number": (legacy_file({}, {})[:20], "must"),
    "a view outside its storage": (
        legacy_file({"a": tensor("0", shape=(2,), numel=6, view=(("1", 5, 2),))}, {"0": numbers()}),
        "view must be inside",
    ),
    "a view of a negative size": (
        legacy_file({"a": tensor("0", shape=(2,), numel=6, view=(("1", 5, -2),))}, {"0": numbers()}),
        "view must be inside",
    ),
    "a view that is a string": (
        legacy_file({"a": tensor("0", shape=(2,), numel=6, view=("abc",))}, {"0": numbers()}),
        "view must be inside",
    ),
    "a view that is a number": (
        legacy_file({"a": tensor("0", shape=(2,), numel=6, view=(1,))}, {"0": numbers()}),
        "must be complete",
    ),
}


def safe(dtype="F32", shape=(6,), offsets=(0, 24), payload=None, **more):
    described = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **more}
    return safetensors_file(described, numbers() if payload is None else payload)


def floats(begin, end):
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


SAFE = {
    "a header longer than the file": (safetensors_file({}, length=2**20), "must fit"),
    "a header of 2**63": (safetensors_file({}, length=2**63), "must fit"),
    "an empty header": (safetensors_file(b"", length=0), "must fit"),
    "a truncated header": (b"\x10\0\0", "must fit"),
    "a header that is not JSON": (safetensors_file(b"{abc"), "must be JSON"),
    "a header that is a list": (safetensors_file(b"[1]"), "must be a JSON object"),
    "a header that is not UTF-8": (safetensors_file(b"{\xff\xfe}"), "must be JSON"),
    "a deeply nested header": (safetensors_file(b'{"a":' + b"[" * 200_000), "must be JSON"),
    "a complete deeply nested header": (safetensors_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "must"),
    "a header with a long number": (safetensors_file(b'{"a":' + b"9" * 100_000 + b"}"), "must"),
    "a duplicate tensor": (
        safetensors_file(b'{"a":%s,"a":%s}' % ((json.dumps(floats(0, 24)).encode(),) * 2), numbers()),
        "appears twice",
    ),
    "a duplicate field": (safetensors_file(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "appears twice"),
    "no tensors": (safetensors_file({}), "must contain tensors"),
    "a tensor that is a list": (safetensors_file({"a": []}), "must have dtype"),
    "a missing field": (safetensors_file({"a": {"dtype": "F32", "shape": []}}), "must have dtype"),
    "an additional field": (safetensors_file({"a": {**floats(0, 24), "strides": [1]}}, numbers()), "must have dtype"),
    "an unknown type": (safe("F4"), "must have one of the dtypes"),
    "a type that is a number": (safe(7), "must have one of the dtypes"),
    "a type that is a list": (safe(["F32"]), "must have one of the dtypes"),
    "a negative dimension": (safe(shape=(-6,)), "not negative"),
    "two negative dimensions": (safe(shape=(-2, -3)), "not negative"),
    "a dimension that is a fraction": (safe(shape=(6.0,)), "must have a shape"),
    "a dimension that is true": (safe(shape=(True,), offsets=(0, 4)), "must have a shape"),
    "a dimension that is NaN": (safe(shape=(float("nan"),)), "must have a shape"),
    "a shape that is a number": (safe(shape=6), "must have a shape"),
    "a shape that overflows": (safe(shape=(2**40, 2**40)), "below 2\\*\\*31|inside"),
    "a shape of 2**64": (safe(shape=(2**64,)), "not negative"),
    "a shape too large": (safe(shape=(7,)), "inside its storage"),
    "a shape too small": (safe(shape=(5,)), "20 bytes of its shape"),
    "too many dimensions": (safe(shape=(1,) * 40, offsets=(0, 4)), "as many dimensions"),
    "reversed offsets": (safe(offsets=(24, 0)), "begin and end"),
    "negative offsets": (safe(offsets=(-24, 0)), "begin and end"),
    "offsets beyond the end": (safe(offsets=(0, 28)), "begin and end"),
    "offsets of 2**64": (safe(offsets=(2**64 - 24, 2**64)), "begin and end"),
    "three offsets": (safe(offsets=(0, 12, 24)), "begin and end"),
    "overlapping tensors": (
        safetensors_file({"a": floats(0, 16), "b": floats(12, 24)}, numbers()),
        "must be contiguous",
    ),
    "tensors at the same offsets": (
        safetensors_file({"a": floats(0, 24), "b": floats(0, 24)}, numbers()),
        "must be contiguous",
    ),
    "a gap": (safetensors_file({"a": floats(0, 8), "b": floats(12, 24)}, numbers()), "must be contiguous"),
    "bytes before the first tensor": (safetensors_file({"a": floats(4, 24)}, numbers()), "must be contiguous"),
    "bytes after the last tensor": (safetensors_file({"a": floats(0, 24)}, numbers() + b"PK"), "2 bytes follow"),
    "a missing last byte": (safetensors_file({"a": floats(0, 24)}, numbers()[:-1]), "begin and end"),
    "metadata that is a list": (safetensors_file({"__metadata__": [], "a": floats(0, 24)}, numbers()), "metadata"),
    "a long name": (safetensors_file({"a" * 5000: floats(0, 24)}, numbers()), "at most 1000 characters"),
    "a name with line breaks": (safetensors_file({"a\nb\x1b[2J": floats(0, 28)}, numbers()), "begin and end"),
}

OTHERS = {
    "empty": (b"", "must not be empty"),
    "one byte": (b"\x80", "must"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
    "a tar file of torch 0.1": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "torch 0.1"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "must be a safetensors or a torch file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "must be a safetensors or a torch file"),
    "zeros": (bytes(1000), "must be a safetensors or a torch file"),
    "control characters": (b"\x1b[2J\n\r" * 9, "must be a safetensors or a torch file"),
    "gzip": (zlib.compress(numbers()), "must be a safetensors or a torch file"),
}
