"""Finds embeddings and the output layer by their shapes, where a user's own module has names of its own for them."""

import re
from collections.abc import Iterator

from mlx_transformer.weights.parameter_map import ParameterMap
from mlx_transformer.weights.recognition import Fit

WORDS = {
    "source_embedding": re.compile(r"src|source|enc|input|(^|[._])in([._]|$)"),
    "target_embedding": re.compile(r"tgt|trg|target|dec|output|(^|[._])out([._]|$)"),
}


def find_tables_by_shape(names: ParameterMap, fit: Fit) -> dict[str, str]:
    """Return modules of the model that no name of the family gave -> tensors of the checkpoint that have their shape.

    Only "source_embedding", "target_embedding" and "output" are looked for, among tables as wide as the model.
    """
    width = names.shape("encoder.layers.0.feed_forward.up_proj.weight")
    if width is None or len(width) != 2:
        return {}
    tables = list(_unused_tables(names, fit, width[1]))
    found: dict[str, str] = {}
    if names.find("output.weight") is None:
        with_bias = [name for name in tables if _bias_of(name) in names.checkpoint.tensors]
        if len(with_bias) == 1:
            found["output"] = with_bias[0]
    tables = [name for name in tables if name not in found.values()]
    missing = [module for module in WORDS if names.find(f"{module}.weight") is None]
    if len(tables) == 1:
        found |= dict.fromkeys(missing, tables[0])  # a shared one, if both are missing
    elif len(tables) == 2 and len(missing) == 2:
        found |= dict(zip(missing, sorted(tables, key=_is_for_target), strict=True))
    return found


def _unused_tables(names: ParameterMap, fit: Fit, dims: int) -> Iterator[str]:
    """Yield the tensors of shape (any, dims) that have no other use, without positions."""
    unused = [original for short, original in fit.names.items() if short not in fit.fitting]
    for name in (*unused, *fit.left_out):
        shape = names.checkpoint.tensors[name].shape
        if len(shape) == 2 and shape[1] == dims and "pos" not in name and not name.startswith(fit.copies):
            yield name


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _is_for_target(name: str) -> int:
    """Return 0 for names of a source's table, 2 for those of a target's, 1 for others."""
    source, target = (bool(words.search(name)) for words in WORDS.values())
    return 1 + target - source
