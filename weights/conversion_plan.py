"""Plans a conversion: detects the family, derives the ModelConfig and finds a tensor for every parameter."""

import fnmatch
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_transformer.config.model import ModelConfig, PoolingConfig, StackConfig
from mlx_transformer.config.serialization import from_dict
from mlx_transformer.messages import short_repr, shorten
from mlx_transformer.model.fused_projections import fused_names, split_names, split_projections
from mlx_transformer.model.positions import sinusoidal_positions
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.weights.assumptions import Assumption, add_tables_by_shape, find_assumptions
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.spec import STACKS, Family
from mlx_transformer.weights.formats.checkpoint import Checkpoint
from mlx_transformer.weights.mismatches import mismatch_error
from mlx_transformer.weights.parameter_map import ConversionError, ParameterMap, is_broadcast
from mlx_transformer.weights.recognition import (
    Fit,
    check_model,
    family_of_model_type,
    find_family,
    is_encoder_alone,
    rename_tensors,
)

STACK_FIELDS = {item.name for item in fields(StackConfig)}
MODEL_FIELDS = {item.name for item in fields(ModelConfig)} - {"encoder", "decoder", "pooling"}
SPECIAL_IDS = {"pad_id": "<pad>", "eos_id": "<eos>", "start_id": "<bos>"}  # field of ModelConfig -> a usual token
# Settings of an encoder alone, which has no output layer and no start token.
ENCODER_SETTINGS = {"share_embeddings": True, "tie_output": True, "output_bias": False}
ENCODER_DEFAULTS = {"start_id": 0}
ProgressCallback = Callable[[int, int], None]  # called with the bytes done and the total
IGNORED_TENSORS = ("*.version",)  # in checkpoints of fairseq and its descendants
# Parameters without which the model's dimensions are unknown.
REQUIRED = (
    *("source_embedding.weight", "target_embedding.weight"),
    *("encoder.layers.0.feed_forward.up_proj.weight", "decoder.layers.0.feed_forward.up_proj.weight"),
)
# Setting -> a parameter and the axis of it that has this size.
SIZE_AXES = {
    "source_vocab_size": ("source_embedding.weight", 0),
    "target_vocab_size": ("target_embedding.weight", 0),
    "dims": ("source_embedding.weight", 1),
    "encoder.mlp_dims": ("encoder.layers.0.feed_forward.up_proj.weight", 0),
    "decoder.mlp_dims": ("decoder.layers.0.feed_forward.up_proj.weight", 0),
    "encoder.max_length": ("encoder.positions.weight", 0),
    "decoder.max_length": ("decoder.positions.weight", 0),
}


class VocabularyIds(NamedTuple):
    """The special ids that a vocabulary names.

    Attributes:
        ids: Field of ModelConfig, such as "pad_id" -> id.
        path: The vocabulary's file.
    """

    ids: dict[str, int]
    path: Path


@dataclass
class ConversionPlan:
    """A complete and checked conversion, of which no tensor has been read yet.

    Attributes:
        family: The name of the family.
        config: The model's configuration.
        loaders: Parameter -> a function that reads or computes it.
        names: The checkpoint's tensors by the names of parameters.
        fit: How its tensors fit the family.
        settings_read: Fields of the configuration that the options of a training program determine, for models of
            people's own.
        assumptions: Fields of the configuration that nothing in the checkpoint determines.
        reordered: Parameters two of whose rows are exchanged.
    """

    family: str
    config: ModelConfig
    loaders: dict[str, Callable[[], mx.array]]
    names: ParameterMap
    fit: Fit
    settings_read: dict[str, Any] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    reordered: set[str] = field(default_factory=set)

    def read_pieces(self, parameter: str) -> Iterator[mx.array]:
        """Read a parameter some rows at a time, or at once if it is computed."""
        source = None if parameter in self.reordered else self.names.find(parameter)
        if source is None or source.function or source.factor or self.names.checkpoint.tensors[source.name].size == 1:
            yield self.loaders[parameter]()
        else:
            yield from map(self.names.checkpoint.load, self.names.checkpoint.tensors[source.name].pieces())

    def exchange_rows(self, parameter: str, first: int, second: int) -> None:
        """Exchange two rows of a parameter in the converted model."""
        load = self.loaders[parameter]

        def load_reordered() -> mx.array:
            array = load()
            array[mx.array([first, second])] = array[mx.array([second, first])]
            return array

        self.loaders[parameter] = load_reordered
        self.reordered.add(parameter)

    def fill(self, model: Transformer, dtype: mx.Dtype | None = None, report: ProgressCallback | None = None) -> None:
        """Load all parameters into a model, and quantise those that are quantised in it.

        They are read, quantised and converted to `dtype` one at a time, so that little more memory is needed than that
        of the result.
        """
        if dtype is not None:
            model.set_dtype(dtype)
        layers = dict(model.named_modules())
        done, total = 0, sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
        weights: list[tuple[str, mx.array]] = []
        for name in fused_names(self.loaders):
            parts = {name: self._read(name)}
            layer = layers[name.rpartition(".")[0]]
            if name.endswith(".weight") and isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
                names = (name, name.replace(".weight", ".scales"), name.replace(".weight", ".biases"))
                parts = dict(zip(names, mx.quantize(parts[name], layer.group_size, layer.bits), strict=True))
            if dtype is not None:
                floats = {part: array.astype(dtype) for part, array in parts.items() if array.dtype != mx.uint32}
                parts |= floats
            mx.eval(parts)
            mx.clear_cache()
            weights += parts.items()
            done += sum(part.nbytes for part in parts.values())
            if report is not None:
                report(done, total)
        model.load_weights(weights)

    def _read(self, name: str) -> mx.array:
        """Read a parameter of a model in memory, where some projections are fused."""
        rows: list[mx.array] = []
        for parameter in split_names(name):
            rows.append(self.loaders[parameter]())
            mx.eval(rows)  # otherwise a packed tensor would stay in memory until the end
        return mx.concatenate(rows)


def check_convertible(settings: dict[str, Any]) -> None:
    """Raise ValueError if a config.json rules out a conversion, whatever its weights are."""
    family_of_model_type(settings)
    if quantization := settings.get("quantization_config") or settings.get("quantization"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        by = f"by {short_repr(method)}" if method else "already"
        raise ConversionError(
            f"A checkpoint must not be quantised, as this one is {by}: convert the original model, and quantise that."
        )


def plan_conversion(
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    *,
    family: str | None = None,
    rename: dict[str, str] | None = None,
    ignore: Iterable[str] = (),
    overrides: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    vocabulary: VocabularyIds | None = None,
    pooling: PoolingConfig | None = None,
) -> ConversionPlan:
    """Plan the conversion of a checkpoint.

    Args:
        checkpoint: The open checkpoint.
        settings: Its config.json, or the options of its training program.
        family: The name of its family; None to detect it.
        rename: Regular expressions -> their replacements in names of tensors.
        ignore: Regular expressions of tensors to drop.
        overrides: Fields of ModelConfig and StackConfig that take precedence over the checkpoint's settings.
        defaults: Such fields for what the checkpoint's settings leave open.
        vocabulary: Special ids from a vocabulary that the user gives. They take precedence over the settings of
            people's own models, which are the families with defaults, and fill what the settings of others leave open.
            A family's defaults for other special ids are not used.
        pooling: How the checkpoint's program embeds texts, if it does.

    Raises:
        ConversionError: If tensors are missing, unexpected or of the wrong shape; the message lists them.
        ValueError: If the family is not supported, or a setting is unknown, missing or wrong.
    """
    tensor_names = rename_tensors(checkpoint.tensors, rename or {}, ignore)
    fit = find_family(tensor_names, checkpoint, settings, family)
    encoder_alone = is_encoder_alone(fit, settings, embeds=pooling is not None)
    check_model(fit.names, tensor_names.values(), checkpoint, may_be_encoder=encoder_alone)
    spec = adapted_family(fit, settings, checkpoint)
    names = ParameterMap(checkpoint, spec, fit.names)
    guesses = add_tables_by_shape(names, fit) if spec.defaults else []
    check_required(names, fit, guesses, encoder_alone, rename or {})
    tied, compared = find_tied_tensors(names)
    overrides = overrides or {}
    is_own_model = bool(spec.defaults)
    from_tensors = fields_from_tensors(names, spec) | tied | (fields_from_positions(names) if is_own_model else {})
    from_settings = fields_from_config(spec, settings | {"tensors": from_tensors}, skip=overrides)
    layers = [from_tensors, defaults or {}, spec.constants, from_settings, overrides]
    # Ids of a vocabulary come after an own model's settings, but before those of a library's checkpoint.
    layers.insert(4 if is_own_model else 1, vocabulary.ids if vocabulary else {})
    defaults_used = spec.default_values(from_tensors)
    if vocabulary is not None:
        defaults_used = {name: value for name, value in defaults_used.items() if name not in SPECIAL_IDS}
        check_special_ids(layers, vocabulary.path)
    config = replace(build_config(defaults_used, *layers, has_decoder=not encoder_alone), pooling=pooling)
    if spec.defaults:
        config = with_head_dims(config, names)
    check_sizes(config, checkpoint)
    loaders = find_loaders(names, fit, config, compared, rename or {})
    check_dtypes(names, loaders)
    assumptions = (*guesses, *find_assumptions(spec, defaults_used, names, config, layers))
    settings_read = from_settings if is_own_model else {}
    return ConversionPlan(fit.family, config, loaders, names, fit, settings_read, assumptions)


def adapted_family(fit: Fit, settings: dict[str, Any], checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint, adapted to its settings and tensors."""
    family = FAMILIES[fit.family]
    shapes = {name: checkpoint.tensors[full].shape for name, full in fit.names.items()}
    return family.adapt(family, settings, shapes) if family.adapt is not None else family


def check_required(
    names: ParameterMap, fit: Fit, guesses: Iterable[Assumption], encoder_alone: bool, rename: dict[str, str]
) -> None:
    """Raise ConversionError if a parameter that determines the model's dimensions has no tensor."""
    required = [name for name in REQUIRED if not (encoder_alone and name.startswith("decoder."))]
    if missing := {name: None for name in required if names.find(name) is None}:
        fitting = {fit.names[name] for name in fit.fitting} | {guess.value for guess in guesses}
        unexpected = [name for name in dict.fromkeys(fit.names.values()) if name not in fitting]
        raise mismatch_error(fit, names, missing, unexpected, {}, rename)


def with_head_dims(config: ModelConfig, names: ParameterMap) -> ModelConfig:
    """Return a configuration with the width of attention heads that the projections have, unless it has one."""
    width, *_ = names.shape("encoder.layers.0.self_attention.query_proj.weight") or (config.dims,)
    if config.head_dims is not None or width == config.dims or width % config.encoder.num_heads:
        return config
    return replace(config, head_dims=width // config.encoder.num_heads)


def check_special_ids(layers: Iterable[dict[str, Any]], vocabulary: Path) -> None:
    """Raise ValueError if neither a vocabulary nor a checkpoint's settings specify the id of a special token."""
    for name, token in SPECIAL_IDS.items():
        if not any(name in layer for layer in layers):
            raise ValueError(
                f"A vocabulary must name its special tokens, but {vocabulary} has none for {name}, such as {token}: "
                f"give the id that the model was trained with by convert --set {name}=N."
            )


def find_tied_tensors(names: ParameterMap) -> tuple[dict[str, Any], set[str]]:
    """Find out whether the embeddings and the output layer are tied, by comparing their tensors.

    Returns:
        The settings share_embeddings and tie_output, and the tensors that need no parameter of their own.
    """
    candidates = [names.candidates(f"{name}.weight") for name in ("source_embedding", "target_embedding", "output")]
    source, target, output = (tensors[0] if tensors else None for tensors in candidates)
    if source is None or target is None:
        return {}, set()
    settings = {
        "share_embeddings": names.is_same(source, target),
        "tie_output": output is None or names.is_same(output, target),
    }
    compared = {source, target, output} - {None}
    for name in set(itertools.chain(*candidates)) - compared:
        if any(names.is_same(name, embedding) for embedding in (source, target)):
            compared.add(name)
    return settings, {name for name in compared if name is not None}


def fields_from_tensors(names: ParameterMap, family: Family) -> dict[str, Any]:
    """Return the fields that follow from which tensors there are, and from their shapes."""
    values: dict[str, Any] = {
        setting: present if names.find(parameter) is not None else absent
        for setting, (parameter, present, absent) in family.presence.items()
    }
    if values.get("attention_out_bias") == values.get("attention_bias"):
        values.pop("attention_out_bias", None)
    for setting, (parameter, axis) in SIZE_AXES.items():
        shape = names.shape(parameter)
        if shape is not None and axis < len(shape):
            values[setting] = shape[axis]
    for stack in STACKS:
        layers = (names.find(f"{stack}.layers.{i}.feed_forward.up_proj.weight") for i in itertools.count())
        values[f"{stack}.num_layers"] = sum(1 for _ in itertools.takewhile(lambda tensor: tensor is not None, layers))
    return values


def fields_from_positions(names: ParameterMap) -> dict[str, Any]:
    """Return which stacks have learned positions, of those whose table was renamed or found by its shape."""
    values = {}
    for stack in STACKS:
        parameter = f"{stack}.positions.weight"
        if parameter in names.tensor_names and len(names.shape(parameter) or ()) == 2:
            table = names.read(parameter).astype(mx.float32)
            is_usual = mx.allclose(table, sinusoidal_positions(*table.shape), atol=1e-3)
            values[f"{stack}.positions"] = "sinusoidal" if is_usual else "learned"
    return values


def fields_from_config(family: Family, settings: dict[str, Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Translate a checkpoint's settings into fields of ModelConfig and StackConfig, except those to skip."""
    for key, supported in family.supported.items():
        if settings.get(key) not in (None, *supported):
            allowed = " or ".join(map(short_repr, supported))
            raise ValueError(
                f"A checkpoint with {key} {short_repr(settings[key])} cannot be converted: it must be {allowed}; "
                "choose another model."
            )
    values = {}
    for name, rule in family.fields.items():
        if name in skip:
            continue
        if callable(rule):
            try:
                value = rule(settings)
            except (LookupError, TypeError, ArithmeticError) as error:
                reason = f"they lack {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"The checkpoint's settings do not determine {name}, {reason}: set it.") from None
        else:
            key, default, function = (rule, None, None) if isinstance(rule, str) else (*rule, None)[:3]
            value = settings.get(key)
            value = default if value is None else value
            if function is not None and isinstance(value, str):
                value = function.get(value, value) if isinstance(function, dict) else function(value)
        if value is not None:
            values[name] = value
    return values


def build_config(*layers: dict[str, Any], has_decoder: bool = True) -> ModelConfig:
    """Build a ModelConfig from dicts of fields, of which later ones take precedence.

    "encoder." and "decoder." name a stack; other fields of a stack count for both. A model without a decoder has no
    output layer and no start token, whatever the fields say.
    """
    layers = layers if has_decoder else (ENCODER_DEFAULTS, *layers, ENCODER_SETTINGS)
    data: dict[str, Any] = {stack: {} for stack in STACKS}
    for values in layers:
        # A field of one stack takes precedence over the same field for both.
        for key, value in sorted(values.items(), key=lambda item: "." in item[0]):
            prefix, _, name = key.rpartition(".")
            if prefix in STACKS and name in STACK_FIELDS:
                data[prefix][name] = value
            elif key in STACK_FIELDS:
                for stack in STACKS:
                    data[stack][key] = value
            elif key in MODEL_FIELDS:
                data[key] = value
            else:
                supported = ", ".join(sorted(MODEL_FIELDS | STACK_FIELDS))
                raise ValueError(f"{key!r} is not a setting of a model. The settings are {supported}.")
    missing = [name for name in SPECIAL_IDS if name not in data]
    if not has_decoder:
        data["decoder"] = None
    if any("num_heads" not in data[stack] for stack in STACKS if data[stack] is not None):
        missing.append("num_heads")
    if missing:
        names = ", ".join(missing)
        remedy = "=... or convert --tokenizer FILE" if missing[0] in SPECIAL_IDS else "=..."
        raise ValueError(f"The checkpoint does not specify {names}: use convert --set {missing[0]}{remedy}")
    return from_dict(ModelConfig, data, "The model of the checkpoint")


def find_loaders(
    names: ParameterMap, fit: Fit, config: ModelConfig, used: set[str], rename: dict[str, str]
) -> dict[str, Callable[[], mx.array]]:
    """Return a function that reads or computes each parameter of the model.

    Args:
        names: The checkpoint's tensors by the names of parameters.
        fit: How they fit the family.
        config: The model's configuration.
        used: Tensors that need no parameter of their own.
        rename: Regular expressions -> their replacements, for error messages.

    Raises:
        ConversionError: If tensors are missing, unexpected or of the wrong shape.
    """
    family = FAMILIES[fit.family]
    loaders: dict[str, Callable[[], mx.array]] = {}
    missing: dict[str, tuple[int, ...] | None] = {}
    misshapen, used = {}, set(used)
    for parameter, expected in parameter_shapes(config).items():
        source = names.find(parameter)
        if source is not None:
            used.add(source.name)
            if source.factor is not None:
                used.add(source.factor)
            loaders[parameter] = partial(names.read, parameter, expected)
            if (shape := names.shape(parameter)) != expected and not is_broadcast(shape, expected):
                misshapen[parameter] = expected
        elif parameter.endswith("positions.weight") and stack_config(config, parameter).positions == "sinusoidal":
            loaders[parameter] = partial(family.sinusoids, config, stack_config(config, parameter))
        else:
            missing[parameter] = expected
    unexpected = unused_tensors(names, used, (*IGNORED_TENSORS, *family.ignored))
    if missing or unexpected or misshapen:
        raise mismatch_error(fit, names, missing, unexpected, misshapen, rename)
    return loaders


def check_dtypes(names: ParameterMap, parameters: Iterable[str]) -> None:
    """Raise ConversionError if a parameter is stored as integers or complex numbers, as no floating-point model is."""
    for source in filter(None, map(names.find, parameters)):
        if "float" not in (dtype := names.checkpoint.tensors[source.name].dtype):
            raise ConversionError(
                f"Weights must be floating-point numbers, but {shorten(source.name, 100)} is {dtype}: convert the "
                "original model, if this one was quantised."
            )


def unused_tensors(names: ParameterMap, used: Collection[str], ignored: Iterable[str] = ()) -> list[str]:
    """Return the tensors of a model that are not used, nor match one of the patterns to ignore."""
    patterns = re.compile("|".join(map(fnmatch.translate, ignored)) or r"\b\B")
    return [tensor for name, tensor in names.tensor_names.items() if tensor not in used and not patterns.match(name)]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a model and their shapes; nothing is computed."""
    return {name: array.shape for name, array in split_projections(Transformer(config).parameters()).items()}


def check_sizes(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Check sizes before anything of that size is allocated.

    Raises:
        ConversionError: If a size exceeds every dimension of the checkpoint's tensors.
    """
    largest = max((size for tensor in checkpoint.tensors.values() for size in tensor.shape), default=0)
    limits = {name: largest for name in ("dims", "head_dims", "num_heads", "mlp_dims")}
    limits |= dict.fromkeys(("num_layers", "mlp_layers"), len(checkpoint.tensors))
    for values in filter(None, (config, *config.stacks.values(), config.average_attention)):
        for name, limit in limits.items():
            if (vars(values).get(name) or 0) > limit:
                raise ConversionError(f"{name} {vars(values)[name]} does not fit the checkpoint's tensors: check it.")


def stack_config(config: ModelConfig, parameter: str) -> StackConfig:
    """Return the configuration of the stack that a parameter belongs to."""
    return config.stacks[parameter.partition(".")[0]]
