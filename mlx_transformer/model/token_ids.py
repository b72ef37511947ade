"""Checks of token ids and shapes: MLX would read foreign memory for ids that an embedding does not have."""

from typing import cast

import mlx.core as mx

from mlx_transformer.model.process import check_process


def check_token_ids(name: str, ids: mx.array, vocab_size: int) -> None:
    """Raise ValueError unless `ids` is an array of integers from 0 to `vocab_size` - 1, (rows, length).

    Values are not looked at while a function is traced, when arrays have none.
    """
    check_process()
    if not isinstance(ids, mx.array):
        raise ValueError(f"{name} must be token ids in an mlx.core.array, not {type(ids).__name__}: convert them.")
    if ids.ndim != 2:
        raise ValueError(f"{name} must have two axes, (rows, length), not the shape {ids.shape}: add an axis.")
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"{name} must be integer token ids, not {ids.dtype}: convert it with astype(mlx.core.int32).")
    if not ids.size:
        return
    try:
        lowest, highest = (cast(int, bound.item()) for bound in (ids.min(), ids.max()))
    except ValueError:  # of MLX, for arrays that are being traced
        return
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{name} must be token ids from 0 to {vocab_size - 1}, not {wrong}: use the model's tokenizer."
        )


def check_embeddings(embeddings: mx.array, dims: int) -> None:
    """Raise ValueError unless an array has the shape of token embeddings, (rows, length, dims)."""
    if embeddings.ndim != 3 or embeddings.shape[-1] != dims:
        raise ValueError(
            f"A stack takes token embeddings, (rows, length, {dims}), not the shape {embeddings.shape}: call "
            "source_embedding on token ids of two axes first."
        )


def check_target_rows(source_rows: int, target_rows: int) -> None:
    """Raise ValueError unless every source has the same number of targets."""
    if not source_rows or target_rows % source_rows:
        raise ValueError(
            "The number of targets must be a multiple of the number of sources, but "
            f"{target_rows} is not a multiple of {source_rows}."
        )
