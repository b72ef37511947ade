"""Fused key and value projections: one matrix in memory, so that one product computes both; two matrices in files.

In memory the rows of the keys come first. Arrays that belong to a matrix (bias, quantisation scales, optimizer state)
have the same number of rows and are split and fused along with it.
"""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

FUSED, KEY, VALUE = ".key_value_proj.", ".key_proj.", ".value_proj."


def split_projections(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of a model, or of a tree like it, under their names in files (lazily)."""
    arrays: dict[str, mx.array] = {}
    for name, array in dict(tree_flatten(tree)).items():
        names = split_names(name)
        arrays |= {name: array} if names == [name] else zip(names, mx.split(array, len(names)), strict=True)
    return arrays


def fuse_projections(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return arrays from files under their names in memory (lazily): the inverse of `split_projections`."""
    return {name: mx.concatenate([arrays[part] for part in split_names(name)]) for name in fused_names(arrays)}


def fused_names(names: Iterable[str]) -> list[str]:
    """Return the names in memory of arrays with these names in files."""
    return list(dict.fromkeys(name.replace(KEY, FUSED).replace(VALUE, FUSED) for name in names))


def split_names(name: str) -> list[str]:
    """Return the names in files, in the order of rows, of an array with this name in memory."""
    return [name.replace(FUSED, part) for part in (KEY, VALUE)] if FUSED in name else [name]
