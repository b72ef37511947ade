"""Output layers restricted to some tokens (Jean et al. 2015), so that a decode step multiplies by fewer rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

ROW_MULTIPLE = 512  # numbers of rows are rounded up to a multiple, so that few shapes are compiled


class Shortlist(NamedTuple):
    """The rows of an output layer for the tokens that may be generated.

    Attributes:
        rows: The arrays of the output layer and of an output bias, with these rows only.
        ids: The token of each row, uint32 (rows,); no token has two rows.
        columns: The row of each token, which is its column in the logits, int32 (vocab,); the number of rows for tokens
            without one.
        is_listed: Whether a row's token may be generated without being forced, bool (rows,).
    """

    rows: dict[str, Any]
    ids: mx.array
    columns: mx.array
    is_listed: mx.array


def select_rows(arrays: dict[str, Any], ids: np.ndarray, forced_ids: Sequence[int], vocab_size: int) -> Shortlist:
    """Return the shortlist of tokens.

    Args:
        arrays: The arrays of an output layer, quantised or not.
        ids: The tokens that may be generated.
        forced_ids: Tokens of which a search may force one, whatever its probability.
        vocab_size: Number of tokens.
    """
    ids = np.unique(ids)
    tokens = np.concatenate([ids, np.setdiff1d(np.array(forced_ids, np.int64), ids)])
    num_rows = min(-(-len(tokens) // ROW_MULTIPLE) * ROW_MULTIPLE, vocab_size)
    is_other = np.ones(vocab_size, np.bool_)
    is_other[tokens] = False
    tokens = np.concatenate([tokens, np.flatnonzero(is_other)[: num_rows - len(tokens)]])
    columns = np.full(vocab_size, num_rows, np.int32)
    columns[tokens] = np.arange(num_rows)
    indices = mx.array(tokens, mx.uint32)
    rows = tree_map(lambda array: mx.take(array, indices, axis=0), arrays)
    return Shortlist(rows, indices, mx.array(columns), mx.arange(num_rows) < len(ids))


def columns_to_ids(columns: mx.array, shortlist: Shortlist | None) -> mx.array:
    """Return the tokens of columns of the logits; without a shortlist each token has its own column."""
    return columns if shortlist is None else mx.take(shortlist.ids, columns)


def ids_to_columns(ids: mx.array, shortlist: Shortlist | None) -> mx.array:
    """Return the columns of tokens in the logits; without a shortlist each token has its own column."""
    return ids if shortlist is None else mx.take(shortlist.columns, ids)
