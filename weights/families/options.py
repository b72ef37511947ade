"""Settings of models that people define themselves, under the names that training programs give them."""

import itertools
from collections.abc import Callable
from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import STACKS

STACK_NAMES = {"encoder": ("encoder", "enc", "src"), "decoder": ("decoder", "dec", "tgt", "trg")}


def option(*names: str, function: Callable[[Any], Any] | None = None) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to the value of the first of these names; None if there is none.

    A name also matches inside a section: "nhead" the key "model_nhead".
    """

    def read(settings: dict[str, Any]) -> Any:
        for name in names:
            inner = sorted((key for key in settings if key.endswith(f"_{name}")), key=len) if len(name) > 1 else []
            value = next((settings[key] for key in (name, *inner) if settings.get(key) is not None), None)
            if value is not None:
                return value if function is None else function(value)
        return None

    return read


def special_id(role: str, *names: str) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to a special token's id, under names such as pad_idx; targets have precedence."""
    parts = itertools.product(
        ("trg_", "tgt_", "target_", ""), (role, *names), ("_id", "_idx", "_index", "_token_id", "_token_idx")
    )
    return option(*map("".join, parts))


HEADS = ("num_heads", "n_heads", "nhead", "n_head", "num_attention_heads", "attention_heads", "number_of_heads")
OWN_FIELDS: dict[str, Any] = {
    "num_heads": option(*HEADS, "nheads", "heads", "h"),
    **{
        f"{stack}.num_heads": option(*(f"{name}_{heads}" for name in STACK_NAMES[stack] for heads in (*HEADS, "heads")))
        for stack in STACKS
    },
    "norm_first": option("norm_first", "pre_norm", "prenorm", "normalize_before"),
    "norm_eps": option("layer_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "activation": option("activation", "activation_fn", "activation_function", function=transforms.activation),
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
