"""Reads checkpoints of any format as named tensors and plain data, without torch and without running code from a file.

A checkpoint is one file, shards with an index, or a folder. Tensors are read lazily, one at a time.
"""

import re
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
OTHER_FILES = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")  # from training, without weights
SHARD_NAME = re.compile(r"(.+)-0*[1-9]\d*-of-(?!0*1\.)\d+(\.[a-z]+)")  # one of several
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
OTHER_FRAMEWORKS = {  # suffix of a file of weights that cannot be read -> what writes it
    ".h5": "TensorFlow",
    ".keras": "Keras",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".gguf": "llama.cpp",
}
# Keys under which training programs save the state dict; after these, any key that starts with "ema".
STATE_KEYS = ("model", "model_state", "state_dict", "model_state_dict", "net")
# Function of the pickle -> the kind of tensor that it makes, which cannot be read, and the remedy.
UNSUPPORTED_TENSORS = {
    "_rebuild_sparse_tensor": ("sparse", "save it after .to_dense()"),
    "_rebuild_sparse_csr_tensor": ("sparse", "save it after .to_dense()"),
    "_rebuild_qtensor": ("quantized", "save it after .dequantize()"),
    "_rebuild_nested_tensor": ("nested", "save it after .to_padded_tensor(0)"),
    "_rebuild_nested_tensor_from_jagged": ("nested", "save it after .to_padded_tensor(0)"),
    "_rebuild_meta_tensor_no_storage": ("without data (on the meta device)", "save the model after loading it"),
    "_rebuild_wrapper_subclass": ("a subclass without plain storage", "save it as a plain tensor"),
    "_rebuild_device_tensor_from_numpy": ("on another device", "save it after .cpu()"),
    "_rebuild_device_tensor_from_cpu_tensor": ("on another device", "save it after .cpu()"),
    "UninitializedParameter": ("not initialised", "save the model after its first use"),
    "UninitializedBuffer": ("not initialised", "save the model after its first use"),
}
MAX_INDEX = 2**24  # bytes, as of a safetensors header
MAX_SHARDS = 1000
MAX_ENTRIES = 200_000  # of a state dict; as many modules
MAX_NAME = 1000
MAX_NESTING = 64  # of modules
MAX_STATE_DEPTH = 8  # of state dicts inside one another
# Views may add up to twice the stored bytes and this many more, to allow for small expanded tensors.
FREE_VIEW_BYTES = 2**26
SAVE_STATE_DICT = "save it with torch.save(model.state_dict(), ...)"


class Checkpoint:
    """An open checkpoint; close it, or use it in a `with` statement.

    Attributes:
        tensors: The model's tensors by full name, in the order of the file.
        extras: Everything else in a pickle, as plain data; `to_plain` unpacks settings in it. Empty for safetensors.
            Tensors in it, such as an optimizer's state, can be passed to `load`.
        files: The files that were opened.
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
                if duplicates := self.tensors.keys() & tensors.keys():
                    raise CheckpointError(f"a tensor must be in one shard, {quote(min(duplicates))} is in two")
                self.tensors.update(tensors)
                self.extras.update(extras)
        if not self.tensors:
            raise CheckpointError("a checkpoint must contain tensors", SAVE_STATE_DICT, files[0])

    def load(self, tensor: str | Tensor) -> mx.array:
        """Read one tensor, given by name or taken from `extras`.

        Returns:
            An array of the tensor's dtype, except for types that MLX does not support on all devices: float64 and
            8-bit floats become float32, complex128 becomes complex64.

        Raises:
            CheckpointError: If its bytes are damaged.
        """
        entry = self.tensors[tensor] if isinstance(tensor, str) else tensor
        if entry.storage.file not in self._containers:
            raise CheckpointError("a tensor must belong to this checkpoint", "load it from its own, while that is open")
        return self._containers[entry.storage.file].load(entry)

    def aliases(self) -> dict[str, str]:
        """Return tensor names -> the name of an earlier tensor that is the same view of the same storage."""
        first: dict[Any, str] = {}
        names = {name: first.setdefault(tensor.view, name) for name, tensor in self.tensors.items()}
        return {name: original for name, original in names.items() if name != original}

    def close(self) -> None:
        """Close the files."""
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
        path: The file or folder. In a folder, safetensors are preferred to .bin, and a single file to shards.

    Raises:
        FileNotFoundError: If it does not exist.
        CheckpointError: If its format is not supported, it is damaged, or it has tensors of unsupported kinds.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"A checkpoint must be a file or a folder: there is no {path}; check the path.")
    if path.is_dir():
        path = _choose_file(path)
    if path.name.startswith("adapter_model."):
        raise CheckpointError("an adapter is not a complete model", "merge it into its model and save that", path)
    files = _read_index(path) if path.name.endswith(".index.json") else {path: set()}
    opened: list[Container] = []
    try:
        for file, names in files.items():
            opened.append(open_container(file))
            if names and (absent := names - _tensor_names(opened[-1])):
                raise CheckpointError(
                    f"a shard must contain the tensors of its index, {quote(min(absent))} is missing", path=file
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
    """Return the checkpoint file, or index of shards, of a folder."""
    for name in PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    weights = [path for path in files if not path.name.startswith(OTHER_FILES)]
    models = [path for path in weights if not path.name.startswith("adapter_model.")]
    if shard := next(filter(None, (SHARD_NAME.fullmatch(path.name) for path in models)), None):
        index = f"{shard[1]}{shard[2]}.index.json"
        raise CheckpointError(f"shards need their index, but there is no {quote(index)}", "download it too", folder)
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(quote(path.name) for path in models[:4]) + (", ..." if len(models) > 4 else "")
        raise CheckpointError(f"a folder must have one checkpoint, not {names}", "give the path of one of them", folder)
    if weights or (folder / "adapter_config.json").exists():
        raise CheckpointError("an adapter is not a complete model", "merge it into its model and save that", folder)
    others = [path.name for path in sorted(folder.glob("[!.]*")) if path.suffix in OTHER_FRAMEWORKS]
    if others:
        framework = OTHER_FRAMEWORKS[Path(others[0]).suffix]
        remedy = f"load them with {framework} and save them as safetensors, or download those of torch"
        raise CheckpointError(
            f"the weights must be torch's, {quote(others[0])} has those of {framework}", remedy, folder
        )
    raise CheckpointError(
        f"a folder must have a checkpoint: {', '.join(PREFERRED_FILES)} or a {', '.join(WEIGHT_SUFFIXES)} file",
        "check the path, or download the weights again",
        folder,
    )


def _read_index(path: Path) -> dict[Path, set[str]]:
    """Read an index: its shards in order, each with the names of its tensors."""
    with add_path_to_errors(path):
        if path.stat().st_size > MAX_INDEX:
            raise CheckpointError(f"an index must have at most {MAX_INDEX} bytes, not {path.stat().st_size}")
        weight_map = read_json(path.read_bytes(), "an index").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("an index must have a weight_map from names to files")
        shards: dict[Path, set[str]] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or set(shard) & set("/\\:\0") or not shard.endswith(WEIGHT_SUFFIXES):
                raise CheckpointError(f"a shard must be the plain name of a file next to its index, not {quote(shard)}")
            shards.setdefault(path.parent / shard, set()).add(name)
        if len(shards) > MAX_SHARDS:
            raise CheckpointError(f"an index must name at most {MAX_SHARDS} shards, not {len(shards)}")
        for shard_path in shards:
            if not shard_path.is_file():
                raise CheckpointError(f"shard {quote(shard_path.name)} must be next to its index", "download it too")
        return shards


def find_state(root: Any, depth: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the state dict in the object that a file contains.

    Args:
        root: The object.
        depth: The number of state dicts around it.

    Returns:
        The tensors by full name, and everything else in and around the state dict.

    Raises:
        CheckpointError: If there is no state dict, or it has tensors of unsupported kinds.
    """
    if _is_module(root):
        return _collect_tensors(_walk_module(root)), _string_keys(root.state)
    if depth > MAX_STATE_DEPTH:
        raise CheckpointError(f"state dicts must be nested at most {MAX_STATE_DEPTH} deep", SAVE_STATE_DICT)
    entries = root if isinstance(root, dict) else {}
    parts = {id(part): part for part in entries.values()}  # many names may share a value, which is looked at once
    states = {number for number, part in parts.items() if _is_state(part)}
    for key in [*STATE_KEYS, *(key for key in _string_keys(entries) if key.startswith("ema"))]:
        if id(state := entries.get(key)) in states:
            tensors, extras = find_state(state, depth + 1)
            # OpenNMT-py saves the output layer next to the model.
            tensors.update(_collect_tensors(_with_prefix("generator", entries.get("generator"))))
            others = {name: value for name, value in _string_keys(entries).items() if name != key}
            return tensors, others | ({key: extras} if extras else {})
    if _is_state(root):
        tensors = _collect_tensors(root.items())
        return tensors, {name: value for name, value in _string_keys(root).items() if name not in tensors}
    # Several state dicts side by side, such as an encoder's and a decoder's.
    tensors = _collect_tensors(
        pair for key, part in entries.items() if id(part) in states for pair in _with_prefix(key, part)
    )
    if not tensors and root != {}:
        content = f"only {', '.join(map(quote, list(entries)[:8]))}" if entries else quote(root)
        raise CheckpointError(f"a checkpoint must contain a state dict, not {content}", SAVE_STATE_DICT)
    return tensors, {key: part for key, part in _string_keys(entries).items() if id(part) not in states}


def _is_module(value: Any) -> bool:
    return isinstance(value, PickledObject) and "_modules" in value.state


def _is_state(value: Any) -> bool:
    """Return whether a value is a module or a dict that contains tensors."""
    return _is_module(value) or (
        isinstance(value, dict)
        and any(isinstance(part, Tensor) or _object_kind(part) in UNSUPPORTED_TENSORS for part in value.values())
    )


def _object_kind(value: Any) -> str:
    return value.name.rpartition(".")[2] if isinstance(value, PickledObject) else ""


def _string_keys(entries: dict[Any, Any]) -> dict[str, Any]:
    """Return the entries whose keys are strings."""
    return {key: value for key, value in entries.items() if isinstance(key, str)}


def _with_prefix(key: Any, state: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a state dict or a module with a key before their names; nothing for other values."""
    if isinstance(key, str) and _is_state(state):
        for name, value in state.items() if isinstance(state, dict) else _walk_module(state):
            yield _join_names(f"{key[:MAX_NAME]}.", name) if isinstance(name, str) else name, value


def _join_names(prefix: str, name: str) -> str:
    if len(prefix) + len(name) > MAX_NAME:
        raise CheckpointError(f"a name must have at most {MAX_NAME} characters, not {len(prefix) + len(name)}")
    return prefix + name


def _collect_tensors(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Tensor]:
    """Return the tensors among pairs of name and value."""
    tensors: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(pairs):
        if _object_kind(value) in UNSUPPORTED_TENSORS:
            kind, remedy = UNSUPPORTED_TENSORS[_object_kind(value)]
            raise CheckpointError(f"a tensor must be dense, {quote(name)} is {kind}", remedy)
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = replace(value, name=_join_names("", name))
        if count >= MAX_ENTRIES:
            raise CheckpointError(f"a state dict must have at most {MAX_ENTRIES} entries", SAVE_STATE_DICT)
    return tensors


def _walk_module(module: PickledObject) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and persistent buffers of a pickled module, with their names in its state dict."""
    stack, count = [("", module, 0)], 0
    while stack:
        prefix, module, depth = stack.pop()
        children, parameters, buffers = (
            _module_entries(module, f"_{kind}s") for kind in ("module", "parameter", "buffer")
        )
        count += 1 + len(children) + len(parameters) + len(buffers)
        if depth > MAX_NESTING or count > MAX_ENTRIES:
            raise CheckpointError(
                f"modules and their entries must be at most {MAX_ENTRIES}, {MAX_NESTING} deep", SAVE_STATE_DICT
            )
        non_persistent = module.state.get("_non_persistent_buffers_set")
        for name, value in _string_keys(parameters).items():
            yield _join_names(prefix, name), value
        for name, value in _string_keys(buffers).items():
            if not (isinstance(non_persistent, set) and name in non_persistent):
                yield _join_names(prefix, name), value
        modules = [(name, child) for name, child in _string_keys(children).items() if isinstance(child, PickledObject)]
        stack.extend((_join_names(prefix, f"{name}."), child, depth + 1) for name, child in reversed(modules))


def _module_entries(module: PickledObject, attribute: str) -> dict[Any, Any]:
    entries = module.state.get(attribute)
    return entries if isinstance(entries, dict) else {}


def _check_sizes(container: Container, tensors: dict[str, Tensor]) -> None:
    """Check that tensors do not claim many more bytes than the file has."""
    stored = sum({tensor.storage.key: container.locate(tensor.storage).size for tensor in tensors.values()}.values())
    claimed = sum({tensor.view: tensor.nbytes for tensor in tensors.values()}.values())
    if claimed > 2 * stored + FREE_VIEW_BYTES:
        raise CheckpointError(
            f"tensors must add up to about the {stored} stored bytes, not {claimed} (expanded views)",
            "save them after .contiguous()",
        )
