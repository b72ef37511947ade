"""Reads adapters of PEFT: LoRA, DoRA and rsLoRA of models of transformers, for the converted models."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_transformer.checkpoints.model_folder import preserve_random_state
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.messages import short_names
from mlx_transformer.model.adapters import base_modules
from mlx_transformer.model.dense_weights import dense_weight
from mlx_transformer.model.transformer import UNTIED_MODULES, Transformer
from mlx_transformer.storage.files import read_json
from mlx_transformer.weights.adapters.module_names import (
    ENCODER,
    WRAPPER,
    Shapes,
    has_decoder,
    parameters_by_tensor,
    shortest_names,
    table_names,
)
from mlx_transformer.weights.adapters.peft_config import (
    CONFIG_FILE,
    LORA_A,
    LORA_B,
    MAGNITUDE,
    MERGE,
    PREFIX,
    WEIGHT_FILES,
    PeftConfig,
    read_peft_config,
)
from mlx_transformer.weights.conversion_plan import parameter_shapes
from mlx_transformer.weights.formats.checkpoint import Checkpoint
from mlx_transformer.weights.formats.containers import open_container
from mlx_transformer.weights.formats.tensors import CheckpointError
from mlx_transformer.weights.parameter_map import TensorSource

TABLE_A, TABLE_B = "lora_embedding_A", "lora_embedding_B"
BASE = "base_layer.weight"  # a copy of the base's weight
# What follows a module's name in those of its tensors.
LEAVES = (LORA_A, LORA_B, f"{MAGNITUDE}.weight", MAGNITUDE, TABLE_A, TABLE_B, BASE, "weight", "bias")
OWN_BASE = "use it with its own base model"
TENSOR_NAME = re.compile(rf"{re.escape(PREFIX)}(.+?)\.({'|'.join(map(re.escape, LEAVES))})")
UNUSED = "shared"  # transformers computes with the tables of the encoder and the decoder, which were copied from it
LINEAR = re.compile(r"(encoder|decoder)\.layers\.\d+\.(\w+_attention|feed_forward)\.\w+_proj\.weight")


@dataclass(frozen=True)
class PeftModule:
    """A module that has tensors in an adapter of PEFT.

    Attributes:
        name: Its name in transformers.
        parameter: The name of its weight in the model.
        function: The function to apply to a weight that is stored as a whole; None for none.
        tensors: Leaf, one of LEAVES -> the tensor's name in the file.
    """

    name: str
    parameter: str
    function: Callable | None
    tensors: dict[str, str]

    @property
    def has_update(self) -> bool:
        """Whether it has low-rank updates, complete or not, rather than being stored as a whole."""
        return not self.tensors.keys().isdisjoint((LORA_A, LORA_B, MAGNITUDE, TABLE_A, TABLE_B))


def is_peft_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter of PEFT."""
    if any((folder / name).exists() for name in WEIGHT_FILES):
        return True
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else None
    return isinstance(config, dict) and "peft_type" in config


def read_peft_adapter(folder: Path, model: Transformer) -> tuple[AdapterConfig, dict[str, mx.array]]:
    """Read an adapter of PEFT.

    Low-rank updates of embeddings and of the output layer are added to these, which become modules stored as a whole.

    Args:
        folder: The folder with adapter_config.json and adapter_model.safetensors or adapter_model.bin.
        model: The converted base model.

    Returns:
        The adapter's configuration, and its arrays by the names that adapter folders have.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is damaged, does not fit the model, or is of another method than LoRA.
    """
    config = read_peft_config(folder)
    with preserve_random_state():
        shapes = parameter_shapes(model.config)
    with _open_weights(folder) as checkpoint:
        modules = find_modules(checkpoint, shapes)
        check_complete(config, modules, shapes, checkpoint.files[0])
        reader = _Reader(checkpoint, config, model)
        updates: dict[str, mx.array] = {}
        whole: dict[str, mx.array] = {}
        for module in modules.values():
            if LINEAR.fullmatch(module.parameter) and module.has_update:
                updates |= reader.read_update(module)
            else:
                whole |= reader.read_whole(module)
        reader.name_tables(whole)
        reader.complete_modules(whole)
        mx.eval(updates, whole)
    layers = [name.removesuffix(".weight") for name in shapes if LINEAR.fullmatch(name)]
    return adapter_config(config, updates, whole, layers), updates | whole


def adapter_config(
    config: PeftConfig, updates: dict[str, mx.array], whole: dict[str, mx.array], layers: list[str]
) -> AdapterConfig:
    """Return our configuration of an adapter from its arrays and the names of all linear layers."""
    rank = min((array.shape[1] for name, array in updates.items() if name.endswith(".lora_a")), default=config.r)
    alpha = config.scale() * (math.sqrt(rank) if config.use_rslora else rank)  # so that it is the scale of this rank
    return AdapterConfig(
        rank=rank,
        alpha=config.lora_alpha if rank == config.r else alpha,
        dropout=config.lora_dropout,
        targets=tuple(shortest_names({name.rpartition(".")[0] for name in updates}, layers)),
        dora=config.use_dora,
        rslora=config.use_rslora,
        modules_to_save=tuple(sorted({name.rpartition(".")[0] for name in whole})),
        base_model=config.base_model_name_or_path,
    )


def _open_weights(folder: Path) -> Checkpoint:
    """Open the weights of an adapter; safetensors are preferred."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"An adapter of PEFT must have {' or '.join(WEIGHT_FILES)}, but {folder} has none: download it again."
        )
    container = open_container(path)
    try:
        return Checkpoint([container], [path])
    except BaseException:
        container.close()
        raise


def find_modules(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, PeftModule]:
    """Return the modules of an adapter by name, without `model.` and without those that transformers does not use.

    Raises:
        CheckpointError: If the model lacks a module.
    """
    parameters, prefix = parameters_by_tensor(shapes), "" if has_decoder(shapes) else ENCODER
    modules: dict[str, PeftModule] = {}
    unknown = []
    for tensor, entry in checkpoint.tensors.items():
        name, leaf = match.groups() if (match := TENSOR_NAME.fullmatch(tensor)) else (tensor, "")
        short = name.removeprefix(WRAPPER)
        short = short if short.startswith((prefix, UNUSED)) else prefix + short
        if short == UNUSED:
            continue
        if not leaf or not (sources := parameters.get(f"{short}.weight")):
            unknown.append(tensor)
            continue
        source = next((source for source in sources if _fits(source, entry.shape, shapes)), sources[0])
        module = modules.setdefault(short, PeftModule(name, source.name, source.function, {}))
        module.tensors[leaf.removesuffix(".weight") if leaf.startswith(MAGNITUDE) else leaf] = tensor
    if unknown:
        raise CheckpointError(
            f"an adapter must have modules of its model only, not {short_names(unknown, 2)}",
            OWN_BASE,
            checkpoint.files[0],
        )
    return modules


def _fits(source: TensorSource, shape: tuple[int, ...], shapes: Shapes) -> bool:
    """Return whether a tensor of a shape is a parameter after the function is applied."""
    try:
        array = mx.zeros(shape)
        return (array if source.function is None else source.function(array)).shape == shapes.get(source.name)
    except (IndexError, ValueError):
        return False


def check_complete(config: PeftConfig, modules: dict[str, PeftModule], shapes: Shapes, path: Path) -> None:
    """Raise CheckpointError if linear layers that an adapter lists as its targets have no tensors in its file.

    Stacks without any are not checked, because the adapter may be of an encoder alone; nor are layers that have several
    names, because models have one of them.
    """
    stacks = [_stack(name) for name in modules]
    names: dict[str, list[str]] = {}
    for tensor, (source, *_) in parameters_by_tensor(shapes).items():
        if LINEAR.fullmatch(source.name) and source.function is None and _stack(tensor) in stacks:
            names.setdefault(source.name, []).append(tensor.removesuffix(".weight"))
    wrapper = WRAPPER if any(module.name.startswith(WRAPPER) for module in modules.values()) else ""
    present = {module.parameter for module in modules.values()}
    for parameter, (name, *others) in names.items():
        if not others and parameter not in present and config.targets(wrapper + name):
            raise CheckpointError(
                f"an adapter must have tensors for all target_modules, {name} has none",
                "download the file again",
                path,
            )


def _stack(name: str) -> list[str]:
    """Return the first two parts of a module's name, such as encoder.layers or encoder.block."""
    return name.split(".")[:2]


def _is_equal(table: mx.array, other: mx.array) -> bool:
    """Return whether two tables are equal in the type of the second."""
    return bool(mx.array_equal(table.astype(other.dtype), other))


class _Reader:
    """Reads the tensors of modules from an adapter's file for a model."""

    def __init__(self, checkpoint: Checkpoint, config: PeftConfig, model: Transformer) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.model_config, self.layers = model.config, dict(model.named_modules())
        if model.adapter is not None:
            self.layers |= base_modules(model)
            self.layers = {path: layer for path, layer in self.layers.items() if path not in model.adapter.untied}

    def read_update(self, module: PeftModule) -> dict[str, mx.array]:
        """Read the update of a linear layer; a scale of its own becomes part of the second factor."""
        a, b, magnitude = self._read_factors(module, LORA_A, LORA_B)
        path = module.parameter.removesuffix(".weight")
        factor = self.config.scale(module.name) / self.config.scale()
        arrays = {f"{path}.lora_a": a.T, f"{path}.lora_b": b.T if factor == 1 else b.T.astype(mx.float32) * factor}
        return arrays if magnitude is None else arrays | {f"{path}.m": magnitude}

    def read_whole(self, module: PeftModule) -> dict[str, mx.array]:
        """Read the parameters of a module that is stored as a whole, or add its update to the base's."""
        if module.has_update:
            return {module.parameter: self._updated_weight(module)}
        arrays = {leaf: self.checkpoint.load(name) for leaf, name in module.tensors.items() if "." not in leaf}
        if "weight" in arrays and module.function is not None:
            arrays["weight"] = module.function(arrays["weight"])
        return {module.parameter.removesuffix("weight") + leaf: array for leaf, array in arrays.items()}

    def name_tables(self, whole: dict[str, mx.array]) -> None:
        """Give embeddings and the output layer the names that they have in the model.

        Of those that the model ties, one that differs with the adapter keeps its own name; the next follows it.
        """
        for parameter, names in table_names(self.model_config).items():
            if whole.keys().isdisjoint(names):
                continue
            base = self._base_weight(parameter)
            tables = [whole.pop(name, base) for name in names]
            for table in tables:
                self._check_shape(parameter, table.shape, base.shape)
            is_same = [_is_equal(table, before) for table, before in zip(tables, [base, *tables], strict=False)]
            is_same[0] = is_same[0] and not all(is_same)
            whole |= {name: table for name, table, same in zip(names, tables, is_same, strict=True) if not same}

    def complete_modules(self, whole: dict[str, mx.array]) -> None:
        """Add the weights and biases of the base to modules of which only the other one is stored."""
        paths = {name.rpartition(".")[0] for name in whole}
        for path in paths & (self.layers.keys() | UNTIED_MODULES):  # parts of fused layers must be complete
            whole.setdefault(f"{path}.weight", self._base_weight(f"{path}.weight"))
            if path in self.layers and "bias" in self.layers[path]:
                whole.setdefault(f"{path}.bias", self.layers[path].bias)

    def _updated_weight(self, module: PeftModule) -> mx.array:
        """Return the updated weight of an embedding or of the output layer, in float32."""
        is_table = TABLE_A in module.tensors or TABLE_B in module.tensors
        if module.function is not None or len(self._base_weight(module.parameter).shape) != 2:
            raise self._error(f"an update of {module.name} is not supported", MERGE)
        a, b, magnitude = self._read_factors(module, *((TABLE_A, TABLE_B) if is_table else (LORA_A, LORA_B)))
        product = b.astype(mx.float32) @ a.astype(mx.float32)
        weight = self._base_weight(module.parameter)
        product = product.T if is_table else product
        self._check_shape(module.parameter, product.shape, weight.shape)
        total = weight.astype(mx.float32) + self.config.scale(module.name) * product
        if magnitude is None:
            return total
        # PEFT normalises the rows of a linear layer, but the columns of a table.
        axis = 0 if is_table else 1
        norm = mx.linalg.norm(total, axis=axis)
        self._check_shape(f"{module.name}.{MAGNITUDE}", magnitude.shape, norm.shape)
        return total * mx.expand_dims(magnitude / norm, axis)

    def _read_factors(self, module: PeftModule, first: str, second: str) -> tuple[mx.array, mx.array, mx.array | None]:
        """Read lora_A, (rank, input_dims), lora_B, (output_dims, rank), and the magnitude of DoRA."""
        expected = [first, second, *([MAGNITUDE] if self.config.use_dora else [])]
        if {*module.tensors} - {BASE} != {*expected}:
            raise self._error(
                f"{module.name} must have {' and '.join(expected)}, not {' and '.join(sorted(module.tensors))}"
            )
        a, b, *magnitude = (self.checkpoint.load(module.tensors[leaf]) for leaf in expected)
        rank = self.config.rank(module.name)
        if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
            raise self._error(f"{module.name} must have rank {rank} as in {CONFIG_FILE}, not {a.shape} and {b.shape}")
        if rank > min(a.shape[1], b.shape[0]):
            raise self._error(f"a rank must be at most a layer's widths, {rank} is above those of {module.name}", MERGE)
        return a, b, magnitude[0] if magnitude else None

    def _base_weight(self, parameter: str) -> mx.array:
        """Return a weight of the base, dequantised; of a table under the name of any that it stands for."""
        tables = table_names(self.model_config).items()
        stored = next((stored for stored, names in tables if parameter in names), parameter)
        return dense_weight(self.layers[stored.removesuffix(".weight")])

    def _check_shape(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise self._error(f"{name} must have the shape {expected} of the model, not {shape}", OWN_BASE)

    def _error(self, problem: str, remedy: str = "download the file again") -> CheckpointError:
        return CheckpointError(problem, remedy, self.checkpoint.files[0])
