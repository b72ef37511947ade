"""What a row of the tables of families is, and how its names are written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_transformer.weights.families import transforms

Source = str | tuple[str, Callable] | list[Any]  # a name, a name and a function of its tensor, or several of these
NameTable = dict[str, Source]


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        names: Our module (or parameter) -> theirs; {i} is the layer, {leaf} "weight" or "bias" where it is no suffix.
            Of several, the first that a file has.
        fields: Our setting -> their key; (key, default); (key, default, function of the value); or a function of all
            their settings. "encoder." and "decoder." name a stack, other settings of a stack are those of both.
        constants: Settings that all models of the family have.
        model_types: What config.json calls them.
        signature: For files without a config.json, a tensor that only this family has.
        presence: Our setting -> a parameter of ours, what the setting is if the file has that, and what if not.
        rows: Makes the rows of sinusoidal positions.
        ignored: Patterns of tensors that hold nothing that is needed.
        allowed: Their key -> the values that are covered; others are refused.
        search: Fields of the search, for files without generation settings; a text is the key of theirs.
    """

    names: NameTable
    fields: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    signature: str = ""
    presence: dict[str, tuple[str, Any, Any]] = field(default_factory=dict)
    rows: Callable = transforms.sinusoidal_interleaved
    ignored: tuple[str, ...] = ()
    allowed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)


BIASES: dict[str, tuple[str, Any, Any]] = {
    "attention_bias": ("encoder.layers.0.self_attention.query_proj.bias", True, False),
    "mlp_bias": ("encoder.layers.0.feed_forward.up_proj.bias", True, False),
    "norm_bias": ("encoder.layers.0.self_attention_residual.norm.bias", True, False),
}
OUTPUT_BIAS: dict[str, tuple[str, Any, Any]] = {"output_bias": ("output.bias", True, False)}
POST_NORM = {"norm_first": False, "final_norm": False}
PRE_NORM = {"norm_first": True, "final_norm": True}
PROJECTIONS = ("query_proj", "key_proj", "value_proj", "out_proj")
SIDES = ("encoder", "decoder")


def on_each_side(setting: str, part: str, there: Any, absent: Any) -> dict[str, tuple[str, Any, Any]]:
    """A setting of each stack that the presence of a part of it tells."""
    return {f"{side}.{setting}": (f"{side}.{part}.weight", there, absent) for side in SIDES}


FINAL_NORMS = on_each_side("final_norm", "norm", True, False)


def attention_names(ours: str, theirs: str, *projections: str) -> NameTable:
    """The four projections of an attention, theirs in the order query, key, value, out."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in zip(PROJECTIONS, projections, strict=True)}


def stack_names(encoder: NameTable, decoder: NameTable, encoder_layer: str, decoder_layer: str) -> NameTable:
    """Names of the layers of both stacks, given those within a layer."""

    def within(layer: str, source: Source) -> Source:
        if isinstance(source, list):
            return [within(layer, item) for item in source]
        return f"{layer}.{source}" if isinstance(source, str) else (f"{layer}.{source[0]}", source[1])

    names = {f"encoder.layers.{{i}}.{ours}": within(encoder_layer, theirs) for ours, theirs in encoder.items()}
    return names | {f"decoder.layers.{{i}}.{ours}": within(decoder_layer, theirs) for ours, theirs in decoder.items()}


def packed_projections(ours: str, theirs: str, apart: str = "_proj") -> NameTable:
    """Projections of query, key and value in one tensor or apart, as q_proj and so on, and the last projection."""
    names: NameTable = {f"{ours}.out_proj": f"{theirs}.out_proj"}
    for part, name in enumerate(("query", "key", "value")):
        letter = name[0]
        names[f"{ours}.{name}_proj"] = [
            f"{theirs}.{letter}{apart}",
            (f"{theirs}.in_proj_{{leaf}}", transforms.slice_rows(part)),
        ]
    return names


def gamma_beta_norm(ours: str, theirs: str) -> NameTable:
    """A normalisation whose parameters may be called a_2 and b_2."""
    return {
        f"{ours}.weight": [f"{theirs}.weight", f"{theirs}.a_2"],
        f"{ours}.bias": [f"{theirs}.bias", f"{theirs}.b_2"],
    }


def on_both_sides(ours: str, theirs: str, function: Callable) -> NameTable:
    """A name for each side."""
    return {ours.format(side=side): (theirs.format(side=side), function) for side in SIDES}
