"""Reads checkpoints of any format as named tensors and plain data, without torch and without running code from a file.

A checkpoint is one file, shards with an index, or a folder. Tensors are read lazily, one at a time.
"""

import re
from pathlib import Path
from types import TracebackType
from typing import Any

import mlx.core as mx

from mlx_transformer.storage.files import read_json as read_json_file
from mlx_transformer.weights.formats.containers import Container, add_path_to_errors, open_container, read_json
from mlx_transformer.weights.formats.other_formats import (
    ADAPTER,
    TRAINING_STATE,
    OtherFormat,
    describe_name,
    describe_names,
)
from mlx_transformer.weights.formats.pickled_objects import PickledObject, to_plain
from mlx_transformer.weights.formats.state_dicts import SAVE_STATE_DICT, find_prefix, find_state
from mlx_transformer.weights.formats.tensors import CheckpointError, Tensor, quote

__all__ = ["Checkpoint", "CheckpointError", "PickledObject", "Tensor", "to_plain", "read_checkpoint"]

PREFERRED_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD_NAME = re.compile(r"(.+)-0*[1-9]\d*-of-(?!0*1\.)\d+(\.[a-z]+)")  # one of several
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")
DENSE = "Dense"  # the module of sentence-transformers with weights of its own
MODULE_PATH = re.compile(r"[\w-]*")  # of a folder beside the weights
MAX_INDEX = 2**24  # bytes, as of a safetensors header
MAX_SHARDS = 1000
# Views may add up to twice the stored bytes and this many more, to allow for small expanded tensors.
FREE_VIEW_BYTES = 2**26


class Checkpoint:
    """An open checkpoint; close it, or use it in a `with` statement.

    Attributes:
        tensors: The model's tensors by full name, in the order of the file.
        extras: Everything else in a pickle, as plain data; `to_plain` unpacks settings in it. Empty for safetensors.
            Tensors in it, such as an optimizer's state, can be passed to `load`.
        other_weights: The keys of state dicts that may be of the same model and were not chosen.
        files: The files that were opened.
    """

    def __init__(self, containers: list[Container], files: list[Path], weights: str | None = None) -> None:
        self.files = files
        self.tensors: dict[str, Tensor] = {}
        self.extras: dict[str, Any] = {}
        self.other_weights: list[str] = []
        keys: list[str] = []
        self._containers = {container.path: container for container in containers}
        for container in containers:
            with add_path_to_errors(container.path):
                state = find_state(container.root, weights)
                _check_sizes(container, state.tensors)
                if duplicates := self.tensors.keys() & state.tensors.keys():
                    raise CheckpointError(f"a tensor must be in one shard, {quote(min(duplicates))} is in two")
                self.tensors.update(state.tensors)
                self.extras.update(state.extras)
                self.other_weights += state.others
                keys += state.keys
        if weights is not None and not any(f"{key}.".startswith(f"{weights}.") for key in keys):
            with add_path_to_errors(files[0]):
                self.tensors = find_prefix(self.tensors, weights, keys)
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


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Open a checkpoint: safetensors, torch zip or legacy file, index of shards, or a folder with one of these.

    Args:
        path: The file or folder. In a folder, safetensors are preferred to .bin, and a single file to shards.
        weights: Which of several state dicts in the file to read: its key, as "ema" or "callbacks.ema", or a prefix
            of names of tensors, as "ema_model."; by default the plain weights rather than averaged ones.

    Raises:
        FileNotFoundError: If it does not exist.
        CheckpointError: If its format is not supported, it is damaged, it has tensors of unsupported kinds or no such
            weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"A checkpoint must be a file or a folder: there is no {path}; check the path.")
    if path.is_dir():
        path = _choose_file(path)
    if (other := describe_name(path.name)) in (ADAPTER, TRAINING_STATE):
        with add_path_to_errors(path):
            raise other.error("a checkpoint must be a whole model, this is")
    files = _read_index(path) if path.name.endswith(".index.json") else {path: set()}
    files |= {_choose_file(path.parent / module): set() for kind, module in read_modules(path.parent) if kind == DENSE}
    opened: list[Container] = []
    try:
        for file, names in files.items():
            opened.append(open_container(file))
            if names and (absent := names - _tensor_names(opened[-1])):
                raise CheckpointError(
                    f"a shard must contain the tensors of its index, {quote(min(absent))} is missing", path=file
                )
        return Checkpoint(opened, list(files) if path in files else [path, *files], weights)
    except BaseException:
        for container in opened:
            container.close()
        raise


def _tensor_names(container: Container) -> set[str]:
    with add_path_to_errors(container.path):
        return set(find_state(container.root).tensors)


def _choose_file(folder: Path) -> Path:
    """Return the checkpoint file, or index of shards, of a folder."""
    for name in PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    models = [path for path in files if describe_name(path.name) is None]
    if shard := next(filter(None, (SHARD_NAME.fullmatch(path.name) for path in models)), None):
        index = f"{shard[1]}{shard[2]}.index.json"
        raise CheckpointError(f"shards need their index, but there is no {quote(index)}", "download it too", folder)
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(quote(path.name) for path in models[:4]) + (", ..." if len(models) > 4 else "")
        remedy = "give the path of one of them"
        if {"encoder", "decoder"} <= {path.stem for path in models}:
            remedy = 'save both in one file by torch.save({"encoder": ..., "decoder": ...}, ...)'
        raise CheckpointError(f"a folder must have one checkpoint, not {names}", remedy, folder)
    if (other := describe_folder(folder)) is not None:
        raise CheckpointError(
            f"a folder must have torch's weights or safetensors, {quote(other[0])} belongs to {other[1].description}",
            other[1].remedy,
            folder,
        )
    raise CheckpointError(
        f"a folder must have a checkpoint: {', '.join(PREFERRED_FILES)} or a {', '.join(WEIGHT_SUFFIXES)} file",
        "check the path, or download the weights again",
        folder,
    )


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the modules of a folder of sentence-transformers: the name of the class and the folder of each.

    Raises:
        ValueError: If its modules.json is damaged, or names a folder elsewhere.
    """
    path = folder / "modules.json"
    modules = read_json_file(path) if path.exists() else []
    if not isinstance(modules, list):
        raise ValueError(f"{path} must be a list of modules: download it again.")
    names = []
    for module in modules:
        kind, name = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(name, str) or not MODULE_PATH.fullmatch(name):
            raise ValueError(
                f"{path} must name the type of each module, and as its path a folder beside it: download it again."
            )
        names.append((kind.rpartition(".")[2], name))
    return names


def describe_folder(folder: Path) -> tuple[str, OtherFormat] | None:
    """Return the first file or folder in a folder that is of another format, and that; None if there is none."""
    return describe_names(path.name + "/" * path.is_dir() for path in folder.glob("[!.]*"))


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


def _check_sizes(container: Container, tensors: dict[str, Tensor]) -> None:
    """Check that tensors do not claim many more bytes than the file has."""
    stored = sum({tensor.storage.key: container.locate(tensor.storage).size for tensor in tensors.values()}.values())
    claimed = sum({tensor.view: tensor.nbytes for tensor in tensors.values()}.values())
    if claimed > 2 * stored + FREE_VIEW_BYTES:
        raise CheckpointError(
            f"tensors must add up to about the {stored} stored bytes, not {claimed} (expanded views)",
            "save them after .contiguous()",
        )
