"""Settings of models that people define themselves, under the names that training programs give them."""

import itertools
import re
from collections.abc import Callable
from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import STACKS

OTHER_SECTIONS = {"output", "data", "dataset", "audio", "image", "vision", "optimizer", "scheduler", "criterion"}
STACK_NAMES = {"encoder": ("encoder", "enc", "src"), "decoder": ("decoder", "dec", "tgt", "trg")}


def option(*names: str, function: Callable[[Any], Any] | None = None) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to the value of the first of these names; None if there is none.

    A name also stands for that option of any section: "nhead" for "model.nhead", but not for "cross_nhead". Sections
    that disagree, or are of something else such as the data, tell nothing.
    """

    def read(settings: dict[str, Any]) -> Any:
        for name in names:
            value = settings.get(name)
            if value is None:
                inner = [
                    key for key in settings if key.endswith(f".{name}") and not OTHER_SECTIONS & {*key.split(".")[:-1]}
                ]
                values = [settings[key] for key in inner if settings[key] is not None]
                value = values[0] if values and all(other == values[0] for other in values) else None
            if value is not None:
                return value if function is None else function(value)
        return None

    return read


def special_id(*names: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to a special token's id, under names such as pad_idx; targets have precedence."""
    parts = itertools.product(
        ("trg_", "tgt_", "target_", ""), names, ("_id", "_idx", "_index", "_token_id", "_token_idx")
    )
    # "start" and "end" alone may count something else, such as the lines of a file.
    spelled = [name for name in map("".join, parts) if not re.search(r"(^|_)(start|end)_(idx|index)$", name)]
    return option(*spelled, function=to_number)


def to_number(value: Any) -> Any:
    """Return the number that a text such as "8" or "1e-5" stands for; other values as they are."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            continue
    return value


def to_activation(value: Any) -> Any:
    """Return the name that StackConfig has for an activation such as "ReLU" or "nn.functional.gelu"."""
    return transforms.activation(value.rpartition(".")[2].lower()) if isinstance(value, str) else value


def heads_option(*names: str, short: tuple[str, ...]) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to a number of heads; those named short ("h") may also be widths."""

    def read(settings: dict[str, Any]) -> Any:
        if (heads := option(*names, function=to_number)(settings)) is not None:
            return heads
        heads = option(*short, function=to_number)(settings)
        return heads if isinstance(heads, int) and heads <= MAX_H and heads != settings["tensors"].get("dims") else None

    return read


HEADS = (
    *("num_heads", "n_heads", "nhead", "n_head", "num_attention_heads", "attention_heads", "number_of_heads"),
    *("nheads", "heads", "nh"),
)
MAX_H = 32
OWN_FIELDS: dict[str, Any] = {
    "num_heads": heads_option(*HEADS, short=("h",)),
    **{
        f"{stack}.num_heads": heads_option(
            *(f"{name}{mark}{heads}" for name in STACK_NAMES[stack] for mark in "_." for heads in HEADS),
            short=tuple(f"{name}.h" for name in STACK_NAMES[stack]),
        )
        for stack in STACKS
    },
    "norm_first": option("norm_first", "pre_norm", "prenorm", "normalize_before"),
    "norm_eps": option("layer_norm_eps", "norm_eps", "layer_norm_epsilon", function=to_number),
    "activation": option("activation", "activation_fn", "activation_function", function=to_activation),
    "scale_embeddings": option("scale_embeddings", "scale_embedding"),
    "pad_id": special_id("pad", "padding"),
    "start_id": special_id("start", "bos", "sos", "decoder_start"),
    "eos_id": special_id("eos", "end"),
}
# Settings that no file of weights can show; torch's defaults, and the special tokens of most tutorials.
OWN_DEFAULTS: dict[str, Any] = {
    "num_heads": 8,
    "norm_first": False,
    "norm_eps": 1e-5,
    "activation": "relu",
    "scale_embeddings": True,
    "max_length": 512,
    "pad_id": 1,
    "start_id": 2,
    "eos_id": 3,
}
