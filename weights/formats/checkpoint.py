"""Checkpoints of any kind as named tensors and plain data: one file, shards, or a folder. Never runs code from a file.

Torch is not needed. Only the tensors that are asked for are read, one at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx

from mlx_transformer.weights.formats.containers import Container, add_path_to_errors, open_container, read_json
from mlx_transformer.weights.formats.pickled_objects import PickledObject, to_plain
from mlx_transformer.weights.formats.tensors import CheckpointError, Tensor, quote

__all__ = ["Checkpoint", "CheckpointError", "PickledObject", "Tensor", "to_plain", "read_checkpoint"]

PREFERRED_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OTHER_FILES = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")  # what training leaves, no weights
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Where training programs keep the state dict in what they save; then any key that begins with "ema".
STATE_KEYS = ("model", "model_state", "state_dict", "model_state_dict", "net")
# Tensors that are no plain numbers, and what to do about them.
REFUSED = {
    "_rebuild_sparse_tensor": ("sparse", "save it after .to_dense()"),
    "_rebuild_sparse_csr_tensor": ("sparse", "save it after .to_dense()"),
    "_rebuild_qtensor": ("quantized", "save it after .dequantize()"),
    "_rebuild_nested_tensor": ("nested", "save it after .to_padded_tensor(0)"),
    "_rebuild_nested_tensor_from_jagged": ("nested", "save it after .to_padded_tensor(0)"),
    "_rebuild_meta_tensor_no_storage": ("without numbers (on the meta device)", "save the model after loading it"),
    "_rebuild_wrapper_subclass": ("a subclass without plain storage", "save it as a plain tensor"),
    "_rebuild_device_tensor_from_numpy": ("of another device", "save it after .cpu()"),
    "_rebuild_device_tensor_from_cpu_tensor": ("of another device", "save it after .cpu()"),
    "UninitializedParameter": ("not initialised", "save the model after its first use"),
    "UninitializedBuffer": ("not initialised", "save the model after its first use"),
}
MAX_INDEX = 100_000_000  # bytes
MAX_SHARDS = 1000
MAX_ENTRIES = 200_000  # of a state dict; as many modules
MAX_NAME = 1000
MAX_NESTING = 64  # of modules
FREE_VIEW_BYTES = 2**26  # bytes that views may show beyond twice what is stored, for small tensors that are expanded


SAVE = "save it with torch.save(model.state_dict(), ...)"


class Checkpoint:
    """An open checkpoint; close it, or use it in a `with` statement.

    Attributes:
        tensors: The model's tensors by full name, in the order of the file.
        extras: What else a pickled object holds, as plain data; `plain` unpacks settings in it. Empty for safetensors.
            Tensors in it (an optimizer's state) can be given to `load`.
        files: What was read.
    """

    def __init__(self, containers: list[Container], files: list[Path]) -> None:
        self.files = files
        self.tensors: dict[str, Tensor] = {}
        self.extras: dict[str, Any] = {}
        self._containers = {container.path: container for container in containers}
        for container in containers:
            with add_path_to_errors(container.path):
                tensors, extras = find_state(container.root)
                _check_sizes(container, tensors)
                if twice := self.tensors.keys() & tensors.keys():
                    raise CheckpointError(f"a tensor must be in one shard, {quote(min(twice))} is in two")
                self.tensors.update(tensors)
                self.extras.update(extras)
        if not self.tensors:
            raise CheckpointError("a checkpoint must hold tensors", SAVE, files[0])

    def load(self, tensor: str | Tensor) -> mx.array:
        """Read one tensor, by name or one of `extras`.

        Returns:
            An array of the tensor's own type; float64 becomes float32, complex128 complex64 and 8-bit floats float32,
            for MLX has none of them on all devices.

        Raises:
            CheckpointError: If its bytes are damaged.
        """
        found = self.tensors[tensor] if isinstance(tensor, str) else tensor
        if found.storage.file not in self._containers:
            raise CheckpointError("a tensor must be one of this checkpoint", "load it from its own, while it is open")
        return self._containers[found.storage.file].load(found)

    def aliases(self) -> dict[str, str]:
        """The names of tensors that are the same numbers of the file as an earlier one, with that one's name."""
        first: dict[Any, str] = {}
        names = {name: first.setdefault(tensor.view, name) for name, tensor in self.tensors.items()}
        return {name: original for name, original in names.items() if name != original}

    def close(self) -> None:
        """Let go of the files."""
        for container in self._containers.values():
            container.close()
        self._containers = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint: safetensors, torch zip or legacy file, index of shards, or a folder with one of these.

    Args:
        path: The file or folder. In a folder safetensors come before .bin and one file before shards.

    Raises:
        FileNotFoundError: If it does not exist.
        CheckpointError: If it is not of these kinds, damaged, or holds what is no plain tensor.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"A checkpoint must be a file or a folder: there is no {path}; check the path.")
    if path.is_dir():
        path = _choose_file(path)
    if path.name.startswith("adapter_model."):
        raise CheckpointError("an adapter is no whole model", "merge it into its model and save that", path)
    files = _read_index(path) if path.name.endswith(".index.json") else {path: set()}
    opened: list[Container] = []
    try:
        for file, names in files.items():
            opened.append(open_container(file))
            if names and (absent := names - _tensor_names(opened[-1])):
                raise CheckpointError(
                    f"a shard must hold what its index says, {quote(min(absent))} is not here", path=file
                )
        return Checkpoint(opened, list(files) if path in files else [path, *files])
    except BaseException:
        for container in opened:
            container.close()
        raise


def _tensor_names(container: Container) -> set[str]:
    with add_path_to_errors(container.path):
        return set(find_state(container.root)[0])


def _choose_file(folder: Path) -> Path:
    """The checkpoint of a folder."""
    for name in PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    found = [path for path in files if not path.name.startswith(OTHER_FILES)]
    whole = [path for path in found if not path.name.startswith("adapter_model.")]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = ", ".join(quote(path.name) for path in whole[:4]) + (", ..." if len(whole) > 4 else "")
        raise CheckpointError(f"a folder must have one checkpoint, not {names}", "give the path of one file", folder)
    if found:
        raise CheckpointError("an adapter is no whole model", "merge it into its model and save that", folder)
    raise CheckpointError(
        f"a folder must have a checkpoint: {', '.join(PREFERRED_FILES)} or a {', '.join(WEIGHT_SUFFIXES)} file",
        "check the path",
        folder,
    )


def _read_index(path: Path) -> dict[Path, set[str]]:
    """The shards of an index, in order, with the names that each must hold."""
    with add_path_to_errors(path):
        if path.stat().st_size > MAX_INDEX:
            raise CheckpointError(f"an index must have at most {MAX_INDEX} bytes, not {path.stat().st_size}")
        weight_map = read_json(path.read_bytes(), "an index").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("an index must have a weight_map of names and files")
        shards: dict[Path, set[str]] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or set(shard) & set("/\\:\0") or not shard.endswith(WEIGHT_SUFFIXES):
                raise CheckpointError(f"a shard must be the plain name of a file beside its index, not {quote(shard)}")
            shards.setdefault(path.parent / shard, set()).add(name)
        if len(shards) > MAX_SHARDS:
            raise CheckpointError(f"an index must name at most {MAX_SHARDS} shards, not {len(shards)}")
        for shard_path in shards:
            if not shard_path.is_file():
                raise CheckpointError(f"shard {quote(shard_path.name)} must be beside its index", "download it too")
        return shards


def find_state(root: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the state dict in what a file holds.

    Returns:
        Its tensors by full name, and everything else: what stands beside it, or in it without being a tensor.

    Raises:
        CheckpointError: If there is none, or it holds what is no plain tensor.
    """
    if _is_module(root):
        return _named(_walk(root)), _texts(root.state)
    entries = root if isinstance(root, dict) else {}
    for key in [*STATE_KEYS, *(key for key in _texts(entries) if key.startswith("ema"))]:
        if _is_state(state := entries.get(key)):
            tensors, inner = find_state(state)
            # OpenNMT-py keeps the output layer beside the model.
            tensors.update(_named(_under("generator", entries.get("generator"))))
            beside = {name: value for name, value in _texts(entries).items() if name != key}
            return tensors, beside | ({key: inner} if inner else {})
    if _is_state(root):
        tensors = _named(root.items())
        return tensors, {name: value for name, value in _texts(root).items() if name not in tensors}
    parts = {id(part): part for part in entries.values()}
    states = {number for number, part in parts.items() if _is_state(part)}
    tensors = _named(pair for key, part in entries.items() if id(part) in states for pair in _under(key, part))
    if not tensors and root != {}:
        found = f"only {', '.join(map(quote, list(entries)[:8]))}" if entries else quote(root)
        raise CheckpointError(f"a checkpoint must hold a state dict, not {found}", SAVE)
    return tensors, {key: part for key, part in _texts(entries).items() if id(part) not in states}


def _is_module(value: Any) -> bool:
    return isinstance(value, PickledObject) and "_modules" in value.state


def _is_state(value: Any) -> bool:
    """Whether this is a module, or a dict with tensors in it."""
    return _is_module(value) or (
        isinstance(value, dict)
        and any(isinstance(part, Tensor) or _object_kind(part) in REFUSED for part in value.values())
    )


def _object_kind(value: Any) -> str:
    return value.name.rpartition(".")[2] if isinstance(value, PickledObject) else ""


def _texts(entries: dict[Any, Any]) -> dict[str, Any]:
    """The entries whose keys are texts."""
    return {key: value for key, value in entries.items() if isinstance(key, str)}


def _under(key: Any, state: Any) -> Iterator[tuple[Any, Any]]:
    """The entries of a state dict or a module, with a key before their names; nothing of anything else."""
    if isinstance(key, str) and _is_state(state):
        for name, value in state.items() if isinstance(state, dict) else _walk(state):
            yield _joined(f"{key[:MAX_NAME]}.", name) if isinstance(name, str) else name, value


def _joined(prefix: str, name: str) -> str:
    if len(prefix) + len(name) > MAX_NAME:
        raise CheckpointError(f"a name must have at most {MAX_NAME} letters, not {len(prefix) + len(name)}")
    return prefix + name


def _named(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Tensor]:
    """The tensors among pairs, each with its name."""
    tensors: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(pairs):
        if _object_kind(value) in REFUSED:
            kind, remedy = REFUSED[_object_kind(value)]
            raise CheckpointError(f"a tensor must be plain numbers, {quote(name)} is {kind}", remedy)
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = replace(value, name=_joined("", name))
        if count >= MAX_ENTRIES:
            raise CheckpointError(f"a state dict must have at most {MAX_ENTRIES} entries", SAVE)
    return tensors


def _walk(module: PickledObject) -> Iterator[tuple[str, Any]]:
    """The parameters and persistent buffers of a pickled module, with the names of its state dict."""
    waiting, seen = [("", module, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        children = _entries(module, "_modules")
        seen += 1 + len(children)
        if depth > MAX_NESTING or seen > MAX_ENTRIES:
            raise CheckpointError(f"modules must be at most {MAX_ENTRIES}, {MAX_NESTING} deep", SAVE)
        passing = module.state.get("_non_persistent_buffers_set")
        for name, value in _entries(module, "_parameters"):
            yield _joined(prefix, name), value
        for name, value in _entries(module, "_buffers"):
            if not (isinstance(passing, set) and name in passing):
                yield _joined(prefix, name), value
        below = [(_joined(prefix, f"{name}."), child) for name, child in children if isinstance(child, PickledObject)]
        waiting.extend((name, child, depth + 1) for name, child in reversed(below))


def _entries(module: PickledObject, part: str) -> list[tuple[str, Any]]:
    entries = module.state.get(part)
    return list(_texts(entries).items()) if isinstance(entries, dict) else []


def _check_sizes(container: Container, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that claim more bytes than the file has."""
    used = {tensor.storage.key: container.check(tensor.storage).size for tensor in tensors.values()}
    shown = sum({tensor.view: tensor.nbytes for tensor in tensors.values()}.values())
    if shown > 2 * sum(used.values()) + FREE_VIEW_BYTES:
        raise CheckpointError(
            f"its tensors must show about the {sum(used.values())} bytes that are stored, not {shown} (expanded views)",
            "save them after .contiguous()",
        )
