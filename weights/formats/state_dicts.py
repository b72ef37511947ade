"""Finds the state dicts in the object that a checkpoint file contains, and chooses the model's."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mlx_transformer.weights.formats.pickled_objects import PickledObject
from mlx_transformer.weights.formats.tensors import CheckpointError, Tensor, quote

# Last parts of keys under which training programs save the plain weights of a model, the most usual first.
PLAIN_KEYS = ("model", "model_state", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params")
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow|polyak|teacher)(?![a-z])", re.IGNORECASE)
BESIDE_MODEL = re.compile(r"criteri|loss|metric|discrim|critic|sched|scaler|rng|adam|exp_avg|momentum", re.IGNORECASE)
OPTIMIZER = re.compile(r"optim(i[sz]er|_|s?$)", re.IGNORECASE)
SIDES = {"enc": "encoder", "encoder": "encoder", "dec": "decoder", "decoder": "decoder"}
PART_SUFFIX = re.compile(r"(?<=\w)_?(model_)?(state_?dict|state|weights|params)$")  # of a key such as encoder_state
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
# Key of an object without weights -> what it is.
TRAINING_STATES = {
    "param_groups": "the state of an optimizer",
    "growth_factor": "the state of a gradient scaler",
    "last_epoch": "the state of a scheduler",
}
# Attribute of a pickled module -> the setting that it holds, and another attribute that such modules have.
MODULE_ATTRIBUTES = {
    **{name: ("num_heads", name) for name in ("num_heads", "n_heads", "n_head", "nhead")},
    **{name: ("num_heads", name) for name in ("num_attention_heads", "nheads", "heads", "nh")},
    "h": ("h", "h"),
    "norm_first": ("norm_first", "norm_first"),
    "activation_relu_or_gelu": ("activation", "activation_relu_or_gelu"),
    "eps": ("layer_norm_eps", "normalized_shape"),
    "padding_idx": ("pad_idx", "num_embeddings"),
}
TORCH_ACTIVATIONS = {1: "relu", 2: "gelu"}  # of activation_relu_or_gelu
MODULE_SETTINGS = "settings of modules"  # the key of these settings beside a state dict
MAX_ENTRIES = 200_000  # of a state dict; as many modules
MAX_NAME = 1000
MAX_NESTING = 64  # of modules
MAX_STATE_DEPTH = 8  # of state dicts inside other objects
MAX_CONTAINERS = 2_000  # that are searched for state dicts, the outermost first
MAX_MODULES = 8  # pickled modules among them, which may share large parts
MAX_KEY = 200  # characters of the key of a state dict
MAX_LISTED = 8  # names in an error
SAVE_STATE_DICT = "save it with torch.save(model.state_dict(), ...)"


@dataclass(frozen=True)
class ModelState:
    """What a checkpoint file contains.

    Attributes:
        tensors: The model's tensors by full name.
        extras: Everything else in and around the state dict.
        keys: The keys of all state dicts in the file, with dots if they are nested.
        others: The keys of those that may be of the same model and were not chosen, such as averaged weights.
    """

    tensors: dict[str, Tensor]
    extras: dict[str, Any]
    keys: list[str]
    others: list[str]


@dataclass(frozen=True, eq=False)
class _Entry:
    """A value inside the object of a file, its key and the entry that contains it."""

    value: Any
    key: str = ""
    parent: "_Entry | None" = None

    @cached_property
    def path(self) -> str:
        """The keys that lead to it, joined by dots; empty for the whole object."""
        return ".".join(entry.key for entry in reversed([*self.chain()][:-1]))

    @cached_property
    def items(self) -> list[tuple[Any, Any]]:
        """The names and values of a state dict, or of a module's; a list of tensors has no names."""
        if isinstance(self.value, list | tuple):
            return [(None, part) for part in self.value]
        return list(self.value.items() if isinstance(self.value, dict) else _walk_module(self.value))

    @property
    def is_beside(self) -> bool:
        """Whether its key is that of something beside a model, such as a criterion."""
        return BESIDE_MODEL.search(self.path) is not None

    @property
    def has_names(self) -> bool:
        """Whether it is no list."""
        return not isinstance(self.value, list | tuple)

    @property
    def side(self) -> str | None:
        """The stack that it is the state dict of by its key, "encoder" or "decoder"."""
        return SIDES.get(PART_SUFFIX.sub("", self.key))

    @property
    def depth(self) -> int:
        """The number of values around it."""
        return len([*self.chain()]) - 1

    def chain(self) -> Iterator["_Entry"]:
        """Yield the entry, the one that contains it, and so on."""
        entry: _Entry | None = self
        while entry is not None:
            yield entry
            entry = entry.parent

    def num_tensors(self) -> int:
        """Return how many tensors it has."""
        return sum(_is_tensor(value) for _, value in self.items)


def find_state(root: Any, weights: str | None = None) -> ModelState:
    """Find the model's state dict in the object that a file contains.

    Args:
        root: The object.
        weights: The key of another state dict, or of an object that contains it; None for plain weights rather than
            averaged ones, under whatever key. An unknown key is ignored.

    Raises:
        CheckpointError: If there is no state dict, or it has tensors of unsupported kinds.
    """
    states = list(_find_states(root))
    at_key = [state for state in states if weights and f"{state.path}.".startswith(f"{weights}.")]
    chosen = _choose([state for state in at_key or states if state.has_names])
    if at_key and not chosen:
        raise CheckpointError(f"tensors must have names, {quote(at_key[0].path)} is a list", "choose other weights")
    if not chosen and root != {}:
        raise _no_state_dict(root)
    tensors: dict[str, Tensor] = {}
    for state in chosen:
        tensors |= _collect_tensors(_named_values(state, _prefix(state, chosen)))
    similar = [
        state
        for state in states
        if state not in chosen and not state.is_beside and 2 * state.num_tensors() >= len(tensors)
    ]
    others = [state.path + ("" if state.has_names else " (tensors without names)") for state in similar if state.path]
    return ModelState(tensors, _find_extras(root, chosen), [state.path for state in states if state.path], others)


def _no_state_dict(root: Any) -> CheckpointError:
    """Return the error for an object without a state dict."""
    remedy = "give the path of the weights"
    if isinstance(root, PickledObject):
        content = f"an object of {quote(root.name)}"
    elif isinstance(root, dict) and (kinds := [kind for key, kind in TRAINING_STATES.items() if key in root]):
        content = kinds[0]
    else:
        names = ", ".join(map(quote, list(root)[:MAX_LISTED])) if isinstance(root, dict) else ""
        content, remedy = f"only {names}" if names else quote(root), SAVE_STATE_DICT
    return CheckpointError(f"a checkpoint must contain a state dict, not {content}", remedy)


def find_prefix(tensors: dict[str, Tensor], prefix: str, keys: list[str]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it and whatever stands before it.

    Args:
        tensors: All tensors.
        prefix: The prefix, with or without a dot at its end.
        keys: The keys of state dicts that could have been meant.

    Raises:
        CheckpointError: If there are none.
    """
    start = f".{prefix.rstrip('.')}."
    matching = {f".{name}".partition(start)[2]: tensor for name, tensor in tensors.items() if start in f".{name}"}
    if not matching:
        prefixes = dict.fromkeys(f"{name.partition('.')[0]}." for name in tensors if "." in name)
        names = [quote(name) for name in [*keys, *prefixes]]
        listed = ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
        raise CheckpointError(
            f"weights must be the key of a state dict or a prefix of names in the file, not {quote(prefix)}",
            f"choose one of {listed}" if names else "leave them out",
        )
    return matching


def _is_module(value: Any) -> bool:
    """Return whether a value is a pickled torch.nn.Module."""
    return isinstance(value, PickledObject) and "_modules" in value.state


def _is_state(value: Any) -> bool:
    """Return whether a value is a module, a dict that contains tensors, or a list of them."""
    if isinstance(value, list | tuple):
        return any(map(_is_tensor, value[:1]))
    return _is_module(value) or (isinstance(value, dict) and any(map(_is_tensor, value.values())))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or _object_kind(value) in UNSUPPORTED_TENSORS


def _object_kind(value: Any) -> str:
    return value.name.rpartition(".")[2] if isinstance(value, PickledObject) else ""


def _find_states(root: Any) -> Iterator[_Entry]:
    """Yield the state dicts and modules in an object, the outermost first, and lists of tensors without names."""
    level, seen, num_modules = [_Entry(root)], {id(root)}, 0
    for _ in range(MAX_STATE_DEPTH + 1):
        below: list[_Entry] = []
        for entry in level:
            num_modules += _is_module(entry.value)
            if _is_state(entry.value) and not (_is_module(entry.value) and num_modules > MAX_MODULES):
                yield entry
            for key, value in _containers(entry):
                if id(value) not in seen and len(seen) < MAX_CONTAINERS:  # many names may share a value
                    seen.add(id(value))
                    below.append(_Entry(value, key, entry))
        level = below


def _containers(entry: _Entry) -> Iterator[tuple[str, Any]]:
    """Yield the containers in a value by key, without the state of optimizers."""
    value = entry.value
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict) and "param_groups" not in value:
        pairs = value.items()
    elif isinstance(value, PickledObject) and not _is_module(value):
        pairs = value.state.items()
    elif isinstance(value, list | tuple):
        pairs = ((str(number), part) for number, part in enumerate(value[:MAX_LISTED]))
    for key, part in pairs:
        is_key = isinstance(key, str) and len(key) <= MAX_KEY and not OPTIMIZER.search(key)
        if is_key and isinstance(part, dict | list | tuple | PickledObject):
            yield key, part


def _choose(states: list[_Entry]) -> list[_Entry]:
    """Choose the state dict of a model, or several that are its parts."""
    plain = [state for state in states if not state.is_beside] or states
    plain = [state for state in plain if not AVERAGED.search(state.path)] or plain
    if len(plain) < 2:
        return plain
    largest = max(plain, key=_Entry.num_tensors)
    if usual := [
        state for state in plain if state.key in PLAIN_KEYS and 10 * state.num_tensors() > largest.num_tensors()
    ]:
        best = min(usual, key=lambda state: (state.depth, PLAIN_KEYS.index(state.key), -state.num_tensors()))
        # OpenNMT-py saves the output layer next to the model.
        return [best, *(state for state in plain if state.parent is best.parent and state.key == "generator")]
    around = [state for state in plain if state.parent is largest.parent or state is largest.parent]
    return [state for state in around if state is largest or not _is_copy(state, largest)]


def _is_copy(state: _Entry, model: _Entry) -> bool:
    """Return whether a state dict is of the same model, and not another part of it such as a decoder."""
    if {state.side, model.side} == {"encoder", "decoder"}:
        return False
    names, others = (
        {(name, value.shape) for name, value in entry.items if isinstance(value, Tensor)} for entry in (state, model)
    )
    return 2 * len(names & others) >= len(names)


def _prefix(state: _Entry, chosen: list[_Entry]) -> str:
    """Return what to add to the names in a state dict that is one part of a model."""
    if not state.key or state.key in PLAIN_KEYS or (len(chosen) == 1 and state.side is None):
        return ""
    return f"{state.side or PART_SUFFIX.sub('', state.key)}."


def _named_values(state: _Entry, prefix: str) -> Iterator[tuple[Any, Any]]:
    """Yield names and values of a state dict; a prefix is added unless all names have it."""
    names = [name for name, value in state.items if isinstance(name, str) and _is_tensor(value)]
    prefix = "" if all(name.startswith(prefix) for name in names) else prefix
    for name, value in state.items:
        yield _join_names(prefix, name) if isinstance(name, str) else name, value


def _find_extras(root: Any, chosen: list[_Entry]) -> dict[str, Any]:
    """Return what is in and around state dicts besides their tensors; outer values take precedence."""
    chain = [entry for state in chosen for entry in state.chain()] or [_Entry(root)]
    inside = {id(entry.value) for entry in chain}
    extras: dict[str, Any] = {}
    for entry in chain:
        value = entry.value.state if isinstance(entry.value, PickledObject) else entry.value
        for key, part in value.items() if isinstance(value, dict) else ():
            if isinstance(key, str) and id(part) not in inside and not (entry in chosen and isinstance(part, Tensor)):
                extras[key] = part
    for state in chosen:
        if _is_module(state.value):
            extras[MODULE_SETTINGS] = module_settings(state.value)
    return extras


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
    for prefix, part in _walk_modules(module):
        non_persistent = part.state.get("_non_persistent_buffers_set")
        for name, value in _string_keys(_module_entries(part, "_parameters")).items():
            yield _join_names(prefix, name), value
        for name, value in _string_keys(_module_entries(part, "_buffers")).items():
            if not (isinstance(non_persistent, set) and name in non_persistent):
                yield _join_names(prefix, name), value


def _walk_modules(module: PickledObject) -> Iterator[tuple[str, PickledObject]]:
    """Yield a pickled module and all modules in it, each with what stands before the names of its parameters."""
    stack, count = [("", module, 0)], 0
    while stack:
        prefix, module, depth = stack.pop()
        children = _module_entries(module, "_modules")
        count += 1 + sum(len(_module_entries(module, f"_{kind}s")) for kind in ("module", "parameter", "buffer"))
        if depth > MAX_NESTING or count > MAX_ENTRIES:
            raise CheckpointError(
                f"modules and their entries must be at most {MAX_ENTRIES}, {MAX_NESTING} deep", SAVE_STATE_DICT
            )
        yield prefix, module
        modules = [(name, child) for name, child in _string_keys(children).items() if isinstance(child, PickledObject)]
        stack.extend((_join_names(prefix, f"{name}."), child, depth + 1) for name, child in reversed(modules))


def module_settings(module: PickledObject) -> dict[str, Any]:
    """Return the settings of a model that the modules in it hold, such as nn.MultiheadAttention its number of heads.

    A setting is left out if modules differ in it; heads may differ between encoder and decoder.
    """
    values: dict[str, set[Any]] = {}
    for prefix, part in _walk_modules(module):
        for attribute, (setting, mark) in MODULE_ATTRIBUTES.items():
            value = part.state.get(attribute)
            if isinstance(value, int | float) and mark in part.state:
                values.setdefault(setting, set()).add(value)
                for stack in ("encoder", "decoder"):
                    if stack in prefix and setting == "num_heads":
                        values.setdefault(f"{stack}_{setting}", set()).add(value)
    settings = {name: options.pop() for name, options in values.items() if len(options) == 1}
    if (kind := settings.pop("activation", None)) in TORCH_ACTIVATIONS:
        settings["activation"] = TORCH_ACTIVATIONS[kind]
    return settings


def _module_entries(module: PickledObject, attribute: str) -> dict[Any, Any]:
    entries = module.state.get(attribute)
    return entries if isinstance(entries, dict) else {}


def _string_keys(entries: dict[Any, Any]) -> dict[str, Any]:
    """Return the entries whose keys are strings."""
    return {key: value for key, value in entries.items() if isinstance(key, str)}
