"""Keys' and values' projections: one matrix in memory, so that one product gives both; in files a matrix each.

In memory the rows of keys come first. What stands beside a matrix (bias, scales and biases of a quantised one, what an
optimizer keeps of it) has a row for each of its rows, and goes the same way.
"""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

FUSED, KEY, VALUE = ".key_value_proj.", ".key_proj.", ".value_proj."


def split_projections(tree: Any) -> dict[str, mx.array]:
    """The arrays of a model, or of a tree like it, by their names in files; nothing is computed."""
    arrays: dict[str, mx.array] = {}
    for name, array in dict(tree_flatten(tree)).items():
        names = split_names(name)
        arrays |= {name: array} if names == [name] else zip(names, mx.split(array, len(names)), strict=True)
    return arrays


def fuse_projections(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The opposite of `split`: a model's arrays by their names in memory; nothing is computed."""
    return {name: mx.concatenate([arrays[part] for part in split_names(name)]) for name in fused_names(arrays)}


def fused_names(names: Iterable[str]) -> list[str]:
    """The names in memory of what has these names in files."""
    return list(dict.fromkeys(name.replace(KEY, FUSED).replace(VALUE, FUSED) for name in names))


def split_names(name: str) -> list[str]:
    """The names in files, in the order of rows, of what has this name in memory."""
    return [name.replace(FUSED, part) for part in (KEY, VALUE)] if FUSED in name else [name]
