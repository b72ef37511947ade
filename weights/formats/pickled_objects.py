"""The objects that a pickle can contain: plain containers, tensors, and an inert PickledObject for everything else.

CALLS lists the only functions that a pickle can call; they are plain containers or functions of this module.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_transformer.weights.formats.tensors import (
    DTYPES,
    ITEMSIZE,
    CheckpointError,
    Storage,
    Tensor,
    make_tensor,
    quote,
)

MAX_DEPTH = 100
KEYS = (str, int, float, bool, type(None))
STORAGE_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Untyped": None,
}


class PickledObject:
    """A class, function or instance named in a pickle: it records what the pickle does with it and does nothing.

    Attributes:
        name: "module.Class".
        args: The arguments of its call; None for the class or function itself.
        state: The attributes set on it.
        items: The items appended or added to it.
        mapping: The items set by key.
    """

    __slots__ = ("name", "args", "state", "items", "mapping")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: dict[Any, Any] = {}
        self.items: list[Any] = []
        self.mapping: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<PickledObject {quote(self.name)}>"


def to_key(value: Any) -> Any:
    """Return a value as a dict key; one that could be slow to hash or compare is wrapped in a PickledObject.

    Few integers below 2**64 have equal hashes, but many tuples of two such integers.
    """
    if isinstance(value, int) and value.bit_length() > 64:
        return PickledObject("key", (value,))
    if isinstance(value, (*KEYS, PickledObject)):
        return value
    if isinstance(value, tuple) and len(value) <= 16 and all(isinstance(part, KEYS) for part in value):
        numbers = [part for part in value if isinstance(part, int | float)]
        if not numbers or (len(numbers) == 1 and to_key(numbers[0]) is numbers[0]):
            return value
    return PickledObject("key", (value,))


def make_dict(entries: Any = ()) -> dict[Any, Any]:
    """Return a dict from a dict or from pairs."""
    if isinstance(entries, dict):
        return dict(entries)
    return {to_key(key): value for key, value in make_list(entries)}


def make_set(values: Any = ()) -> set[Any]:
    """Return a set of values, those that could be slow to hash wrapped as in `to_key`."""
    return {to_key(value) for value in make_list(values)}


def make_list(values: Any = ()) -> list[Any]:
    """Return a list of the items of a container; TypeError for text, whose characters would take much more memory."""
    if not isinstance(values, list | tuple | dict | set):
        raise TypeError(f"{type(values).__name__} is no container")
    return list(values)


def _encode(text: str, codec: str = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise CheckpointError(f"text in a pickle must be latin1, utf-8 or ascii, not {quote(codec)}")
    return text.encode(codec)


def _reconstruct(kind: PickledObject, *base: Any) -> PickledObject:
    return PickledObject(kind.name, base)


def make_storage(pid: Any, file: Path | None) -> Storage | PickledObject:
    """Return the storage of a persistent id, or a PickledObject for storages of unsupported types.

    In legacy files of pickled modules it may also name a class with its source code, which is ignored.
    """
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], PickledObject):
        return pid[1]
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise CheckpointError("a pickle must name storages as ('storage', class, key, location, size)")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not isinstance(kind, PickledObject) or type(key) is not str or type(numel) is not int or not 0 <= numel < 2**60:
        raise CheckpointError("a pickle must name storages by class, key and a size below 2**60")
    short = kind.name.rpartition(".")[2].removesuffix("Storage").lstrip("_")
    if not kind.name.startswith("torch.") or short not in STORAGE_DTYPES:
        return PickledObject(kind.name, pid)
    return Storage(key, STORAGE_DTYPES[short], numel, file=file)


def view_storage(storage: Storage, view: Any) -> Storage:
    """Return the part of a storage that a view (key, offset, size) of a legacy file covers."""
    _, offset, numel = view
    if type(offset) is not int or type(numel) is not int or not 0 <= offset <= offset + numel <= storage.numel:
        raise CheckpointError(f"a view must be inside its storage {quote(storage.key)}")
    itemsize = 1 if storage.dtype is None else ITEMSIZE[storage.dtype]
    return replace(storage, numel=numel, start=offset * itemsize)


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None
) -> Tensor:
    if isinstance(storage, PickledObject) and storage.name == "torch.storage._load_from_bytes":
        raise CheckpointError(
            "a checkpoint must be written by torch.save, this one is by pickle",
            "load it with pickle, and save it with torch.save",
        )
    if not isinstance(storage, Storage):
        name = quote(storage.name) if isinstance(storage, PickledObject) else type(storage).__name__
        raise CheckpointError(f"a tensor must have a plain storage, not {name}", "save plain tensors")
    if len(rest) > 2 and isinstance(rest[2], dict) and (rest[2].get("conj") or rest[2].get("neg")):
        raise CheckpointError("a tensor must not be a conjugated or negated view", "save it after .resolve_conj()")
    return make_tensor(storage, dtype or storage.dtype or "uint8", offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: PickledObject, *rest: Any
) -> Tensor:
    name = dtype.name.removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"a tensor's dtype must be one of {', '.join(DTYPES)}, not {quote(name)}")
    return _rebuild_tensor(storage, offset, shape, strides, gradient, hooks, *rest, dtype=name)


def _rebuild_parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


def _rebuild_subclass(function: PickledObject, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    if function.name not in TENSOR_CALLS:
        return PickledObject(function.name, arguments)
    return TENSOR_CALLS[function.name](*arguments)


TENSOR_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.nn.parameter.Buffer": _rebuild_parameter,
}
# The only functions that a pickle can call. All other names become PickledObjects.
CALLS: dict[str, Callable[..., Any]] = {
    **TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": lambda values=(): tuple(make_list(values)),
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
    "collections.defaultdict": lambda factory=None, entries=(): make_dict(entries),
    "builtins.dict": make_dict,
    "builtins.list": make_list,
    "builtins.tuple": lambda values=(): tuple(make_list(values)),
    "builtins.set": make_set,
    "builtins.frozenset": make_set,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstruct,
}


def to_plain(value: Any) -> Any:
    """Convert argparse Namespaces and OmegaConf nodes in a value to dicts, lists and plain values.

    Raises:
        CheckpointError: If it is nested more than MAX_DEPTH deep.
    """
    return _to_plain(value, {}, 0)


def _to_plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CheckpointError(f"settings must be nested at most {MAX_DEPTH} deep")
    if isinstance(value, PickledObject):
        value = _unwrap(value)
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        result: Any = done.setdefault(id(value), {})
        result.update((key, _to_plain(part, done, depth + 1)) for key, part in value.items())
    elif isinstance(value, list):
        result = done.setdefault(id(value), [])
        result.extend(_to_plain(part, done, depth + 1) for part in value)
    elif isinstance(value, tuple):
        result = done[id(value)] = tuple(_to_plain(part, done, depth + 1) for part in value)
    else:
        result = value
    return result


def _unwrap(pickled: PickledObject) -> Any:
    """Return the content of a Namespace or an OmegaConf node."""
    value: Any = pickled
    for _ in range(MAX_DEPTH):
        if not isinstance(value, PickledObject):
            break
        if value.name == "argparse.Namespace":
            return value.state
        inner = "_content" if "_content" in value.state else "_val"
        if not value.name.startswith("omegaconf.") or inner not in value.state:
            break
        value = value.state[inner]
    return value
