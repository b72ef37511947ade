"""From a checkpoint's names and settings to a model's: its family, what it is made of, where each tensor goes."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_transformer.checkpoints.model_folder import describe_mismatches
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.serialization import from_dict
from mlx_transformer.model.fused_projections import fused_names, split_names, split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.weights.families.huggingface import FAMILIES, REFUSED
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.formats.checkpoint import Checkpoint
from mlx_transformer.weights.parameter_map import ConversionError, ParameterMap, strip_wrappers

STACK_FIELDS = {item.name for item in fields(StackConfig)}
MODEL_FIELDS = {item.name for item in fields(ModelConfig)} - {"encoder", "decoder"}
SIDES = ("encoder", "decoder")
ProgressCallback = Callable[[int, int], None]  # of the bytes done so far, and all bytes
IGNORED_TENSORS = ("*.version",)  # of fairseq, which many checkpoints descend from
# Setting -> the parameter of ours, and its side, that has this size, for files that do not say.
SIZE_FIELDS = {
    "source_vocab_size": ("source_embedding.weight", 0),
    "target_vocab_size": ("target_embedding.weight", 0),
    "dims": ("source_embedding.weight", 1),
    "encoder.mlp_dims": ("encoder.layers.0.feed_forward.up_proj.weight", 0),
    "decoder.mlp_dims": ("decoder.layers.0.feed_forward.up_proj.weight", 0),
    "encoder.max_length": ("encoder.positions.weight", 0),
    "decoder.max_length": ("decoder.positions.weight", 0),
}


@dataclass
class ConversionPlan:
    """A conversion that was checked: everything is known, nothing is read.

    Attributes:
        family: The name of the family.
        config: What the model is.
        makers: Our parameter -> what reads or computes it.
        names: Which tensor is whose.
    """

    family: str
    config: ModelConfig
    loaders: dict[str, Callable[[], mx.array]]
    names: ParameterMap

    def parts(self, ours: str) -> Iterator[mx.array]:
        """A parameter of ours, some rows at a time where it is a tensor of the file as it stands."""
        name, function = self.names.find(ours) or (None, None)
        if name is None or function is not None:
            yield self.loaders[ours]()
        else:
            yield from map(self.names.checkpoint.load, self.names.checkpoint.tensors[name].pieces())

    def fill(self, model: Transformer, dtype: mx.Dtype | None = None, report: ProgressCallback | None = None) -> None:
        """Read the parameters of a model, one at a time; what is quantised in it is quantised as it comes."""
        if dtype is not None:
            model.set_dtype(dtype)
        layers = dict(model.named_modules())
        done, total = 0, sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
        weights: list[tuple[str, mx.array]] = []
        for name in fused_names(self.loaders):
            parts = {name: self._read(name, dtype)}
            layer = layers[name.rpartition(".")[0]]
            if name.endswith(".weight") and isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
                names = (name, name.replace(".weight", ".scales"), name.replace(".weight", ".biases"))
                parts = dict(zip(names, mx.quantize(parts[name], layer.group_size, layer.bits), strict=True))
            mx.eval(parts)
            weights += parts.items()
            done += sum(part.nbytes for part in parts.values())
            if report is not None:
                report(done, total)
        model.load_weights(weights)

    def _read(self, name: str, dtype: mx.Dtype | None) -> mx.array:
        """What a model in memory has by this name."""
        rows: list[mx.array] = []
        for ours in split_names(name):
            rows.append(self.loaders[ours]())
            mx.eval(rows)  # or the tensor that it is a part of would be held until the end
        array = mx.concatenate(rows)
        return array if dtype is None else array.astype(dtype)


def detect_family(names: Iterable[str], settings: dict[str, Any], family: str | None = None) -> str:
    """The name of the family.

    Raises:
        ValueError: If it is unknown, or not covered.
    """
    known = ", ".join(sorted(FAMILIES))
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {known}, not {family!r}.")
        return family
    kind = settings.get("model_type")
    if isinstance(kind, str):
        if kind in REFUSED:
            raise ValueError(f"Checkpoints of model_type {kind!r} cannot be converted: {REFUSED[kind]}.")
        for name, row in FAMILIES.items():
            if kind in row.model_types:
                return name
        raise ValueError(f"model_type {kind!r} of config.json is not covered. Families that are: {known}.")
    for name, row in FAMILIES.items():
        if row.signature and any(fnmatchcase(plain, row.signature) for plain in names):
            return name
    raise ValueError(
        f"The family is not told by config.json, nor by the names of tensors: name it. The families are {known}."
    )


def plan_conversion(
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    *,
    family: str | None = None,
    rename: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
) -> ConversionPlan:
    """Find out what a checkpoint holds and where each of its tensors goes.

    Args:
        checkpoint: The open checkpoint.
        settings: What its config.json or its training program says.
        family: Its family, if known.
        rename: Regular expressions -> what to put in their place in names of tensors.
        overrides: Settings of ours that count more than what the checkpoint says.
        defaults: Settings of ours that count less.

    Raises:
        ConversionError: If tensors are missing, unexpected or misshapen: all of them are told.
        ValueError: If the family is not covered or a setting is unknown, missing or wrong.
    """
    kind = detect_family(strip_wrappers(checkpoint.tensors, rename or {}), settings, family)
    row = FAMILIES[kind]
    names = ParameterMap(checkpoint, row, rename or {})
    tied, read = find_tied_tensors(names)
    # What comes later counts more.
    overrides = overrides or {}
    stated = fields_from_config(row, settings, known=overrides)
    config = build(family_defaults(names, row), tied, defaults or {}, row.constants, stated, overrides)
    check_sizes(config, checkpoint)
    return ConversionPlan(kind, config, check_complete(names, row, config, read), names)


def find_tied_tensors(names: ParameterMap) -> tuple[dict[str, Any], set[str]]:
    """Which of the tables of embeddings and the output layer are one, and the tensors that this was found out from."""
    tables = [names.candidates(f"{name}.weight") for name in ("source_embedding", "target_embedding", "output")]
    source, target, output = (found[0] if found else None for found in tables)
    if source is None or target is None:
        return {}, set()
    settings = {
        "share_embeddings": names.same(source, target),
        "tie_output": output is None or names.same(output, target),
    }
    read = {source, target, output} - {None}
    for name in set(itertools.chain(*tables)) - read:
        if any(names.same(name, other) for other in (source, target)):
            read.add(name)
    return settings, {name for name in read if name is not None}


def family_defaults(names: ParameterMap, family: Family) -> dict[str, Any]:
    """What shapes and the presence of tensors say."""
    found: dict[str, Any] = {
        setting: there if names.find(ours) is not None else absent
        for setting, (ours, there, absent) in family.presence.items()
    }
    for setting, (ours, side) in SIZE_FIELDS.items():
        shape = names.shape(ours)
        if shape is not None and side < len(shape):
            found[setting] = shape[side]
    for stack in SIDES:
        layers = (names.find(f"{stack}.layers.{i}.feed_forward.up_proj.weight") for i in itertools.count())
        found[f"{stack}.num_layers"] = sum(1 for _ in itertools.takewhile(lambda tensor: tensor is not None, layers))
    return found


def fields_from_config(family: Family, settings: dict[str, Any], known: Iterable[str] = ()) -> dict[str, Any]:
    """Our settings out of theirs, but for those that are known already."""
    for key, covered in family.allowed.items():
        if settings.get(key) not in (None, *covered):
            raise ValueError(f"A checkpoint with {key} {settings[key]!r} cannot be converted: this is not covered.")
    found = {}
    for ours, rule in family.fields.items():
        if ours in known:
            continue
        if callable(rule):
            try:
                value = rule(settings)
            except (LookupError, TypeError, ValueError, ArithmeticError):
                raise ValueError(f"The checkpoint's settings do not tell {ours}: set it.") from None
        else:
            key, default, function = (rule, None, None) if isinstance(rule, str) else (*rule, None)[:3]
            value = settings.get(key)
            value = default if value is None else value
            if isinstance(function, dict):
                value = function.get(value, value)
            elif function is not None and isinstance(value, str):
                value = function(value)
        if value is not None:
            found[ours] = value
    return found


def build(*layers: dict[str, Any]) -> ModelConfig:
    """A ModelConfig out of settings, of which later ones count more.

    "encoder." and "decoder." name a stack, other settings of a stack count for both.
    """
    data: dict[str, Any] = {side: {} for side in SIDES}
    for settings in layers:
        # Within a layer, what names a stack counts more than what counts for both.
        for key, value in sorted(settings.items(), key=lambda item: "." in item[0]):
            side, _, name = key.rpartition(".")
            if side in SIDES and name in STACK_FIELDS:
                data[side][name] = value
            elif key in STACK_FIELDS:
                for stack in SIDES:
                    data[stack][key] = value
            elif key in MODEL_FIELDS:
                data[key] = value
            else:
                known = ", ".join(sorted(MODEL_FIELDS | STACK_FIELDS))
                raise ValueError(f"{key!r} is no setting of a model. They are {known}.")
    needed = [name for name in ("pad_id", "eos_id", "start_id") if name not in data]
    if any("num_heads" not in data[side] for side in SIDES):
        needed.append("num_heads")
    if needed:
        raise ValueError(f"The checkpoint does not tell {', '.join(needed)}: convert it with --set {needed[0]}=...")
    return from_dict(ModelConfig, data, "The model of the checkpoint")


def check_complete(
    names: ParameterMap, family: Family, config: ModelConfig, read: set[str]
) -> dict[str, Callable[[], mx.array]]:
    """Where each parameter of the model comes from, once all are there and nothing else is.

    Raises:
        ConversionError: If they are not.
    """
    loaders: dict[str, Callable[[], mx.array]] = {}
    missing, misshapen, used = [], [], set(read)
    for ours, wanted in parameter_shapes(config).items():
        found = names.find(ours)
        if found is not None:
            used.add(found[0])
            loaders[ours] = partial(names.read, ours)
            if (shape := names.shape(ours)) != wanted:
                misshapen.append(f"{found[0]} {shape} instead of {wanted}")
        elif ours.endswith("positions.weight") and stack_config(config, ours).positions == "sinusoidal":
            loaders[ours] = partial(family.rows, config, stack_config(config, ours))
        else:
            missing.append(ours)
    unexpected = [
        theirs
        for plain, theirs in names.plain.items()
        if theirs not in used
        and not any(fnmatchcase(plain, pattern) for pattern in (*IGNORED_TENSORS, *family.ignored))
    ]
    if told := describe_mismatches(missing, unexpected, misshapen):
        raise ConversionError(f"The tensors do not fit the family: {told}.", missing, unexpected)
    return loaders


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of a model and their shapes; nothing is computed."""
    return {name: array.shape for name, array in split_projections(Transformer(config).parameters()).items()}


def check_sizes(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Refuse absurd sizes before anything is made of them.

    Raises:
        ConversionError: If a size is larger than any side of the checkpoint's tensors.
    """
    largest = max((side for tensor in checkpoint.tensors.values() for side in tensor.shape), default=0)
    limits = {name: largest for name in ("dims", "head_dims", "num_heads", "mlp_dims")}
    limits["num_layers"] = len(checkpoint.tensors)
    for values in (config, config.encoder, config.decoder):
        for name, limit in limits.items():
            if (vars(values).get(name) or 0) > limit:
                raise ConversionError(f"{name} {vars(values)[name]} does not fit the checkpoint's tensors: check it.")


def stack_config(config: ModelConfig, ours: str) -> StackConfig:
    """The stack that a parameter belongs to."""
    return config.encoder if ours.startswith("encoder.") else config.decoder
