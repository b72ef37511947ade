"""Output layers restricted to some tokens (Jean et al. 2015), so that a decode step multiplies by fewer rows."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

ROW_MULTIPLE = 512  # numbers of rows are rounded up to a multiple, so that few shapes are compiled


class Shortlist(NamedTuple):
    """The rows of an output layer for the tokens that may be generated.

    Attributes:
        rows: The arrays of the output layer and of an output bias, with these rows only.
        columns: The index of each token among the rows, int32 (vocab,); the number of rows for all other tokens.
    """

    rows: dict[str, Any]
    columns: mx.array


def select_rows(arrays: dict[str, Any], ids: np.ndarray, vocab_size: int) -> Shortlist:
    """Return the shortlist of tokens, from the arrays of an output layer, quantised or not."""
    ids = np.unique(ids)
    num_rows = min(-(-len(ids) // ROW_MULTIPLE) * ROW_MULTIPLE, vocab_size)
    columns = np.full(vocab_size, num_rows, np.int32)
    columns[ids] = np.arange(len(ids))
    indices = mx.array(np.pad(ids, (0, num_rows - len(ids)), mode="edge"), mx.uint32)
    rows = tree_map(lambda array: mx.take(array, indices, axis=0), arrays)
    return Shortlist(rows, mx.array(columns))


def expand_logits(logits: mx.array, columns: mx.array) -> mx.array:
    """Return logits of the whole vocabulary, -inf for tokens without a row, (..., rows) -> (..., vocab)."""
    absent = mx.full((*logits.shape[:-1], 1), -float("inf"), logits.dtype)
    return mx.take(mx.concatenate([logits, absent], axis=-1), columns, axis=-1)
