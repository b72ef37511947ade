"""The description of a checkpoint family, and helpers to write its table of tensor names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_transformer.weights.families import transforms

# The name of a tensor; or its name, a function to apply to it (None for none) and, optionally, the name of a tensor of
# one value to multiply it by; or several of these, the best first.
Source = str | tuple[Any, ...] | list[Any]
NameTable = dict[str, Source]
# Setting -> a parameter, the setting's value if the checkpoint has that parameter, and its value otherwise.
Presence = dict[str, tuple[str, Any, Any]]


@dataclass(frozen=True)
class Family:
    """A family of checkpoints. Settings are fields of ModelConfig and StackConfig, keys those of the checkpoint.

    "encoder." and "decoder." before a setting name one stack; without them a setting of a stack counts for both.

    Attributes:
        names: Module or parameter of the model -> its tensor. {i} is the layer and {leaf} "weight" or "bias", if that
            is not simply appended. Tensor names come without wrappers such as "model.".
        fields: Setting -> key; (key, default); (key, default, function or dict of the value); or a function of all
            the checkpoint's settings.
        constants: Settings that all models of the family share.
        model_types: The family's values of model_type in config.json.
        presence: Settings that follow from whether a parameter is in the checkpoint.
        sinusoids: Computes the table of sinusoidal positions.
        ignored: Patterns of tensors that the model does not need.
        supported: Key -> its supported values; any other value is an error.
        search: Field of SearchConfig -> its value, as a string the key of its value, or a function of the settings and
            the model's configuration; for checkpoints without generation settings.
        defaults: Settings that a file cannot show, such as the activation, with the family's usual values or functions
            from the fields that tensors determine to them; those that nothing else determines are reported as
            assumptions.
        defaults_from: Where these values come from, such as "torch.nn.Transformer".
        source_specials: Special tokens around a source: "start", "end" or both.
        adapt: Returns the family for a checkpoint with these settings, whose tensors have these shapes; None for the
            same family.
    """

    names: NameTable
    fields: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    presence: Presence = field(default_factory=dict)
    sinusoids: Callable = transforms.sinusoidal_interleaved
    ignored: tuple[str, ...] = ()
    supported: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    defaults_from: str = ""
    source_specials: tuple[str, ...] = ()
    adapt: Callable[["Family", dict[str, Any], dict[str, tuple[int, ...]]], "Family"] | None = None

    def default_values(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the values of `defaults`, from the fields that the tensors determine."""
        return {name: value(tensors) if callable(value) else value for name, value in self.defaults.items()}


STACKS = ("encoder", "decoder")
PROJECTIONS = ("query_proj", "key_proj", "value_proj", "out_proj")
POST_NORM = {"norm_first": False, "final_norm": False}
PRE_NORM = {"norm_first": True, "final_norm": True}
OUTPUT_BIAS: Presence = {"output_bias": ("output.bias", True, False)}
BIASES: Presence = {
    "attention_bias": ("encoder.layers.0.self_attention.query_proj.bias", True, False),
    "mlp_bias": ("encoder.layers.0.feed_forward.up_proj.bias", True, False),
    "norm_bias": ("encoder.layers.0.self_attention_residual.norm.bias", True, False),
}


def presence_per_stack(setting: str, module: str, present: Any, absent: Any) -> Presence:
    """Return the rule that sets a setting of each stack by whether that stack has a module."""
    return {f"{stack}.{setting}": (f"{stack}.{module}.weight", present, absent) for stack in STACKS}


FINAL_NORMS = presence_per_stack("final_norm", "norm", True, False)


def attention_names(attention: str, source: str, *projections: str) -> NameTable:
    """Return the names of an attention's four projections, in the order query, key, value, output."""
    return {f"{attention}.{ours}": f"{source}.{theirs}" for ours, theirs in zip(PROJECTIONS, projections, strict=True)}


def stack_names(encoder: NameTable, decoder: NameTable, encoder_layer: str, decoder_layer: str) -> NameTable:
    """Return the names of all layers of both stacks, from the names within an encoder and a decoder layer."""

    def with_prefix(prefix: str, source: Source) -> Source:
        if isinstance(source, list):
            return [with_prefix(prefix, item) for item in source]
        return f"{prefix}.{source}" if isinstance(source, str) else (f"{prefix}.{source[0]}", *source[1:])

    names = {f"encoder.layers.{{i}}.{name}": with_prefix(encoder_layer, source) for name, source in encoder.items()}
    return names | {
        f"decoder.layers.{{i}}.{name}": with_prefix(decoder_layer, source) for name, source in decoder.items()
    }


def packed_projections(attention: str, source: str, suffix: str = "_proj") -> NameTable:
    """Return the names of an attention whose query, key and value projections may be packed in one tensor.

    Separate tensors are called q, k and v with the suffix, a packed one in_proj_weight or in_proj_bias.
    """
    names: NameTable = {f"{attention}.out_proj": f"{source}.out_proj"}
    for part, name in enumerate(("query", "key", "value")):
        names[f"{attention}.{name}_proj"] = [
            f"{source}.{name[0]}{suffix}",
            (f"{source}.in_proj_{{leaf}}", transforms.slice_rows(part)),
        ]
    return names


def norm_names(norm: str, source: str, weight: str, bias: str) -> NameTable:
    """Return the names of a normalisation, from what its parameters are called."""
    return {f"{norm}.weight": f"{source}.{weight}", f"{norm}.bias": f"{source}.{bias}"}


def gamma_beta_norm(norm: str, source: str) -> NameTable:
    """Return the names of a normalisation whose parameters may be called a_2 and b_2."""
    return {
        f"{norm}.weight": [f"{source}.weight", f"{source}.a_2"],
        f"{norm}.bias": [f"{source}.bias", f"{source}.b_2"],
    }


def names_per_stack(parameter: str, source: str, function: Callable) -> NameTable:
    """Return one name per stack: {stack} in both names becomes encoder and decoder."""
    return {parameter.format(stack=stack): (source.format(stack=stack), function) for stack in STACKS}
