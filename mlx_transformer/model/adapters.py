"""Low-rank adapters of linear layers: LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) and rsLoRA (Kalajdzievski 2023).

An adapter also replaces the modules that it trains in full. In files a fused projection has one adapter for each part.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import mlx.core as mx
import mlx.nn as nn

from mlx_transformer.config.adapter import SAVED_PARTS, TARGET_GROUPS, AdapterConfig
from mlx_transformer.config.model import ModelConfig
from mlx_transformer.messages import short_names, short_repr, similar_names
from mlx_transformer.model.dense_weights import QUANTIZED, dense_weight
from mlx_transformer.model.dropout import dropout
from mlx_transformer.model.fused_projections import split_names
from mlx_transformer.model.layers import add_linear, linear
from mlx_transformer.model.quantization import plain_layer
from mlx_transformer.model.transformer import UNTIED_MODULES, Transformer

LAYER_PATH = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")


class LowRankUpdate(nn.Module):
    """The update of a weight matrix W, (output_dims, input_dims): W + scale * (lora_a @ lora_b).T.

    With DoRA each row is then scaled to the norm `m`.
    """

    def __init__(self, weight: mx.array, config: AdapterConfig) -> None:
        super().__init__()
        output_dims, input_dims = weight.shape
        limit = 1 / math.sqrt(input_dims)
        self.lora_a = mx.random.uniform(-limit, limit, (input_dims, config.rank))
        self.lora_b = mx.zeros((config.rank, output_dims))
        self.scale = config.scale
        if config.dora:
            self.m = mx.linalg.norm(weight.astype(mx.float32), axis=1)

    def __call__(self, x: mx.array, y: mx.array, weight: mx.array, offset: mx.array) -> mx.array:
        """Return the outputs of the updated layer, (..., output_dims).

        Args:
            x: Inputs of the layer, with dropout, (..., input_dims).
            y: Its outputs without the update.
            weight: W; only DoRA needs it.
            offset: What y is the sum of, beside the product with W: a bias, a shortcut or both.
        """
        update = (x @ self.lora_a * self.scale) @ self.lora_b
        if "m" not in self:
            return y + update
        factor = self._row_factor(self._sum(weight)).astype(y.dtype)
        return y + (factor - 1) * (y - offset) + factor * update

    def merge(self, weight: mx.array) -> mx.array:
        """Return the updated matrix, in float32."""
        total = self._sum(weight)
        return total * self._row_factor(total)[:, None] if "m" in self else total

    def _sum(self, weight: mx.array) -> mx.array:
        a, b = self.lora_a.astype(mx.float32), self.lora_b.astype(mx.float32)
        return weight.astype(mx.float32) + self.scale * (a @ b).T

    def _row_factor(self, total: mx.array) -> mx.array:
        """Return what DoRA multiplies each row by; its norm counts as a constant in gradients."""
        return self.m / mx.stop_gradient(mx.linalg.norm(total, axis=1))


class TrainedRows(nn.Module):
    """A part of a fused linear layer that is trained in full, with the weight and the bias of the part."""

    def __init__(self, weight: mx.array, bias: mx.array | None) -> None:
        super().__init__()
        self.weight = mx.array(weight)
        if bias is not None:
            self.bias = mx.array(bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Return the outputs of the part, (..., output_dims)."""
        y = x @ self.weight.T
        return y + self.bias if "bias" in self else y


class LoRALinear(nn.Module):
    """A linear layer, plain or quantised, that an adapter changes: if it is fused, in equal parts.

    Args:
        linear: The layer.
        kinds: What each part gets: LowRankUpdate, TrainedRows, or nn.Module for nothing.
        config: The configuration of the adapter.
    """

    def __init__(self, linear: nn.Module, kinds: Sequence[type[nn.Module]], config: AdapterConfig) -> None:
        super().__init__()
        self.linear = linear
        self.parts: list[nn.Module] = []
        biases = mx.split(linear.bias, len(kinds)) if "bias" in linear else [None] * len(kinds)
        for kind, weight, bias in zip(kinds, mx.split(dense_weight(linear), len(kinds)), biases, strict=True):
            arguments = {LowRankUpdate: (weight, config), TrainedRows: (weight, bias)}
            self.parts.append(kind(*arguments.get(kind, ())))
        self.dropout = config.dropout

    def __call__(self, x: mx.array, shortcut: mx.array | None = None) -> mx.array:
        """Apply the layer with its updates, (..., input_dims) -> (..., output_dims), and add a shortcut."""
        y = add_linear(self.linear, x, shortcut)
        offset = mx.zeros_like(y) if shortcut is None else shortcut
        offset = offset + self.linear.bias if "bias" in self.linear else offset
        outputs = list(mx.split(y, len(self.parts), axis=-1))
        inputs = dropout(x, self.dropout) if self.training else x
        size = y.shape[-1] // len(self.parts)
        for index, part in enumerate(self.parts):
            if isinstance(part, LowRankUpdate):
                rows = slice(index * size, (index + 1) * size)  # MLX 0.32 fails to compile a split of offsets here
                weight = dense_weight(self.linear, rows, after=[x])
                outputs[index] = part(inputs, outputs[index], weight, offset[..., rows])
            elif isinstance(part, TrainedRows):  # only parts of keys and values, which have no shortcut
                outputs[index] = part(x)
        return mx.concatenate(outputs, axis=-1)

    def merge(self) -> nn.Module:
        """Return a plain layer that computes the same."""
        weight = dense_weight(self.linear)
        merged: list[mx.array] = [
            part.merge(rows) if isinstance(part, LowRankUpdate) else part.get("weight", rows)
            for part, rows in zip(self.parts, mx.split(weight, len(self.parts)), strict=True)
        ]
        layer = plain_layer(self.linear)
        layer.weight = mx.concatenate(merged).astype(weight.dtype)
        if "bias" in layer:
            biases = mx.split(layer.bias, len(self.parts))
            layer.bias = mx.concatenate([p.get("bias", bias) for p, bias in zip(self.parts, biases, strict=True)])
        return layer


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model.

    Attributes:
        config: Its configuration.
        replaced: The modules of the base, by path, in whose place the adapter has its own.
        untied: Names of the adapter's modules that the base ties to its embeddings.
        on_remove: Undoes what else changed with the adapter, when it is removed for good.
    """

    config: AdapterConfig
    replaced: dict[str, nn.Module]
    untied: frozenset[str] = frozenset()
    on_remove: Callable[[], None] | None = None


def add_adapter(model: Transformer, config: AdapterConfig) -> None:
    """Add a new adapter to a model, in place; it changes no output until it is trained.

    The new arrays are trainable. To train nothing else, call `model.freeze()` first.

    Raises:
        ValueError: If the model has an adapter, a name matches nothing, or the rank is above a width.
    """
    if model.adapter is not None:
        raise ValueError("A model has one adapter at a time: call remove_adapter first.")
    untied = _untied_modules(model, config.modules_to_save)
    modules = dict(model.named_modules()) | untied
    saved = _saved_names(modules, config.modules_to_save)
    parts = {path: part_paths(path) for path in modules.keys() - saved if _is_linear(path, modules[path])}
    targets = _target_paths(sorted({name for names in parts.values() for name in names} - saved), config, model)
    _check_rank(config.rank, {path: modules[path] for path, names in parts.items() if targets & set(names)}, parts)
    kinds = dict.fromkeys(targets, LowRankUpdate) | dict.fromkeys(saved, TrainedRows)
    new: dict[str, nn.Module] = {
        path: LoRALinear(modules[path], [kinds.get(name, nn.Module) for name in names], config)
        for path, names in sorted(parts.items())
        if (targets | saved) & set(names)
    }
    replaced = {path: modules[path] for path in saved & modules.keys() - untied.keys()}
    model.replace_modules(new | untied | {path: _trainable_copy(module) for path, module in replaced.items()})
    model.adapter = Adapter(config, replaced, frozenset(untied))


def _untied_modules(model: Transformer, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return copies of the embeddings for modules that an adapter names and that the model ties to them."""
    names = [
        name for name in names if name in UNTIED_MODULES and name not in model and model.config.decoder is not None
    ]
    modules: dict[str, nn.Module] = {}
    for name in names:
        table = plain_layer(model["target_embedding" if "target_embedding" in model else "source_embedding"])
        modules[name] = table
        if name == "output":  # which keeps the bias of the model
            size, dims = table.weight.shape
            modules[name] = linear(dims, size, bias=False)
            modules[name].weight = table.weight
    return modules


def untied_config(model: Transformer) -> ModelConfig:
    """Return the configuration of a model with its adapter, which may have modules that the base ties."""
    shared, tied = ("target_embedding" not in model, "output" not in model)
    config = model.config
    return replace(config, share_embeddings=config.share_embeddings and shared, tie_output=config.tie_output and tied)


def part_paths(path: str) -> list[str]:
    """Return the names in files of the parts of a linear layer, of which a fused one has several."""
    return [name.removesuffix(".") for name in split_names(f"{path}.")]


def _is_linear(path: str, module: nn.Module) -> bool:
    return LAYER_PATH.match(path) is not None and isinstance(module, nn.Linear | nn.QuantizedLinear)


def _trainable_copy(module: nn.Module) -> nn.Module:
    copied = plain_layer(module) if isinstance(module, QUANTIZED) else copy.deepcopy(module)
    copied.unfreeze()
    return copied


def _matches(pattern: str, names: Iterable[str]) -> set[str]:
    """Return the names that match a pattern as a whole or from one of their dots on."""
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")}


def _target_paths(names: list[str], config: AdapterConfig, model: Transformer) -> set[str]:
    """Return which of the names of linear layers an adapter targets."""
    if config.layers is not None:
        sizes = {side: len(model[side].layers) for side in ("encoder", "decoder") if side in model}
        if config.layers > max(sizes.values()):
            raise ValueError(f"layers must be at most {max(sizes.values())}, as the model has, not {config.layers}.")
        places = {name: LAYER_PATH.match(name) for name in names}
        names = [name for name, match in places.items() if match and int(match[2]) >= sizes[match[1]] - config.layers]
    targets: set[str] = set()
    for target in config.targets:
        matched = set().union(*(_matches(pattern, names) for pattern in TARGET_GROUPS.get(target, (target,))))
        if not matched:
            known = [*TARGET_GROUPS, *sorted({name.rpartition(".")[2] for name in names})]
            raise ValueError(
                f"targets must name linear layers of the model, but {short_repr(target)} matches none. "
                f"{similar_names(target, known)}"
            )
        targets |= matched
    return targets


def _saved_names(modules: dict[str, nn.Module], parts: Iterable[str]) -> set[str]:
    """Return the names in files of the modules, and of parts of fused ones, that an adapter trains in full."""
    paths = [path for path, module in modules.items() if not module.children() and module.parameters()]
    names = [name for path in paths for name in part_paths(path)]
    saved: set[str] = set()
    for part in parts:
        matched = set().union(*(_matches(pattern, names) for pattern in SAVED_PARTS.get(part, (part,))))
        if not matched:
            known = [*SAVED_PARTS, *sorted({name.rpartition(".")[2] for name in names})]
            raise ValueError(
                f"modules_to_save must name modules of the model, but {short_repr(part)} matches none. "
                f"{similar_names(part, known)}"
            )
        saved |= matched
    return saved


def _check_rank(rank: int, layers: dict[str, nn.Module], parts: dict[str, list[str]]) -> None:
    """Raise ValueError for a rank above a width of one of the layers."""
    for path, layer in layers.items():
        rows, width = dense_weight(layer).shape
        if rank > (smallest := min(rows // len(parts[path]), width)):
            raise ValueError(
                f"rank must be at most the width of each layer, {smallest} of {parts[path][0]}, not {rank}."
            )


def _updates(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Yield each update of a linear layer's part with its name in files."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            for name, part in zip(part_paths(path), module.parts, strict=True):
                if isinstance(part, LowRankUpdate | TrainedRows):
                    yield name, part


def _adapter_modules(model: Transformer) -> dict[str, nn.Module]:
    """Return the modules with the arrays of an adapter, by their names in files."""
    modules = dict(model.named_modules())
    adapter = _adapter(model)
    return dict(_updates(model)) | {path: modules[path] for path in (*adapter.replaced, *adapter.untied)}


def _adapter(model: Transformer) -> Adapter:
    if not isinstance(model.adapter, Adapter):
        raise ValueError("The model has no adapter: add one first.")
    return model.adapter


def adapter_arrays(model: Transformer) -> dict[str, mx.array]:
    """Return the arrays of a model's adapter by their names in files.

    These are those of `LowRankUpdate` for each linear layer, and the parameters of modules that are trained in full.
    """
    modules = sorted(_adapter_modules(model).items())
    return {f"{path}.{name}": array for path, module in modules for name, array in module.items()}


def set_adapter_arrays(model: Transformer, arrays: dict[str, mx.array], origin: str) -> None:
    """Replace the arrays of a model's adapter; the ranks of updates may be others.

    Args:
        model: A model with an adapter.
        arrays: The arrays by their names in files; they are converted to the types of those that they replace.
        origin: Where they are from, for errors.

    Raises:
        ValueError: If names or shapes do not match, or a value is not finite.
    """
    expected = adapter_arrays(model)
    missing, unexpected = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if missing or unexpected:
        kinds = {"missing": missing, "unexpected": unexpected}
        details = "; ".join(f"{len(names)} {kind} ({short_names(names)})" for kind, names in kinds.items() if names)
        raise ValueError(f"{origin} does not hold the arrays of this adapter on this model: {details}.")
    for path, module in _adapter_modules(model).items():
        own = {name: arrays[f"{path}.{name}"] for name in module}
        _check_arrays(path, module, own, origin)
        module.update({name: array.astype(module[name].dtype) for name, array in own.items()})


def _check_arrays(path: str, module: nn.Module, arrays: dict[str, mx.array], origin: str) -> None:
    shapes = {name: array.shape for name, array in module.items()}
    if isinstance(module, LowRankUpdate):
        *_, rank = (0, *arrays["lora_a"].shape)
        shapes |= {"lora_a": (module.lora_a.shape[0], rank), "lora_b": (rank, module.lora_b.shape[1])}
    for name, array in arrays.items():
        if array.shape != shapes[name] or not mx.issubdtype(array.dtype, mx.floating):
            kind = f"{array.shape} of {str(array.dtype).removeprefix('mlx.core.')}"
            raise ValueError(
                f"{origin}: {path}.{name} must have the shape {shapes[name]} and floating-point numbers, not {kind}."
            )
        if not mx.isfinite(array).all():
            raise ValueError(f"{origin}: the values of {path}.{name} must be finite: train the adapter again.")


def remove_adapter(model: Transformer) -> None:
    """Remove the adapter of a model, in place; the base computes as before, with its own source prefix.

    Raises:
        ValueError: If the model has no adapter.
    """
    on_remove = _adapter(model).on_remove
    detach_adapter(model)
    if on_remove is not None:
        on_remove()


def detach_adapter(model: Transformer) -> None:
    """Let a model compute without its adapter, which may be put back."""
    for path in _adapter(model).untied:
        del model[path]
    model.replace_modules(base_modules(model))
    model.adapter = None


@contextmanager
def restore_adapter_on_error(model: Transformer) -> Iterator[None]:
    """Let a block change the adapter of a model; if it raises an error, the model has the earlier one again."""
    adapter, modules = model.adapter, _replaced_modules(model)
    try:
        yield
    except BaseException:
        if model.adapter is not None:
            detach_adapter(model)
        model.replace_modules(modules)
        model.adapter = adapter
        raise


def base_modules(model: Transformer) -> dict[str, nn.Module]:
    """Return the modules of the base, by path, in whose place a model's adapter has its own."""
    adapted = {path: module.linear for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    return adapted | _adapter(model).replaced


def _replaced_modules(model: Transformer) -> dict[str, nn.Module]:
    """Return the modules of an adapter by path; none for a model without an adapter."""
    if model.adapter is None:
        return {}
    modules = dict(model.named_modules())
    return {path: modules[path] for path in (*base_modules(model), *model.adapter.untied)}


def fuse_adapter(model: Transformer) -> None:
    """Merge the adapter of a model into its weights, in place; quantised layers are quantised again.

    Raises:
        ValueError: If the model has no adapter.
    """
    bases, modules = base_modules(model), _replaced_modules(model)
    fused = {path: module.merge() if isinstance(module, LoRALinear) else module for path, module in modules.items()}
    table = bases.get("source_embedding", model.source_embedding)  # what untied modules were tied to
    model.replace_modules({path: _quantize_like(bases.get(path, table), module) for path, module in fused.items()})
    model.config = untied_config(model)
    if "output" in model and "output_bias" in model:
        model.output.bias = model.pop("output_bias")
    model.adapter = model.weights_source = None


def _quantize_like(base: nn.Module, layer: nn.Module) -> nn.Module:
    """Return a layer, quantised as that of the base is."""
    if not isinstance(base, QUANTIZED):
        return layer
    quantized: nn.Module = layer.to_quantized(base.group_size, base.bits)
    return quantized
