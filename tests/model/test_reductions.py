"""Reductions in chunks against numpy, for rows of any length; top-k against a stable sort."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_transformer.model import reductions
from mlx_transformer.model.reductions import CHUNK_SIZE, reduce_chunks, reduce_rows, top_k

NEG_INF = -np.inf


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200])
@pytest.mark.parametrize(("reduce", "expected"), [(mx.max, np.max), (mx.sum, np.sum)], ids=["max", "sum"])
def test_chunks_and_rows(length, reduce, expected):
    x = np.random.default_rng(length).standard_normal((2, 3, length)).astype(np.float32)
    chunks = [expected(x[..., start : start + 64], axis=-1) for start in range(0, length, 64)]
    np.testing.assert_allclose(np.array(reduce_chunks(mx.array(x), reduce)), np.stack(chunks, axis=-1), atol=1e-5)
    rows = np.array(reduce_rows(mx.array(x), reduce))
    np.testing.assert_allclose(rows, expected(x, axis=-1, keepdims=True), atol=1e-5)


def test_sums_of_long_rows_are_more_exact_than_one_after_the_other():
    x = np.random.default_rng(0).random((4, 100_000)).astype(np.float32)
    error = np.abs(np.array(reduce_rows(mx.array(x), mx.sum))[:, 0] / x.astype(np.float64).sum(axis=1) - 1).max()
    assert error < 2e-6


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[CHUNK_SIZE], [CHUNK_SIZE, reductions.CPU_CHUNK_SIZE]], ids=str)
def test_top_k_equals_a_stable_sort(k, sizes, monkeypatch):
    """Ties (few distinct values, repeated across chunks) keep the lower index."""
    monkeypatch.setattr(reductions, "chunk_sizes", lambda: sizes)
    lengths = (1, 5, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 8 * CHUNK_SIZE, 8 * CHUNK_SIZE + 1, 6001)
    for length, distinct in itertools.product(lengths, (2, 1000, None)):
        case = f"length {length}, {distinct} distinct values"
        rng = np.random.default_rng(length)
        values = rng.normal(size=(5, length)) if distinct is None else rng.integers(0, distinct, (5, length))
        values = values.astype(np.float32)
        values[1, : length // 2] = NEG_INF
        values[2, :-1] = NEG_INF  # one finite value, as after a forced token, in a chunk that may be short
        values[3, 1:] = NEG_INF
        best, indices = (np.array(array) for array in top_k(mx.array(values), k))
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(best, np.take_along_axis(values, order, axis=1), err_msg=case)
        np.testing.assert_array_equal(indices[best > NEG_INF], order[best > NEG_INF], err_msg=case)
        assert ((indices >= 0) & (indices < length)).all(), case


@pytest.mark.parametrize("sizes", [[CHUNK_SIZE], [CHUNK_SIZE, reductions.CPU_CHUNK_SIZE]], ids=str)
def test_top_k_indices_are_in_range_for_any_order_of_ties(monkeypatch, sizes):
    """MLX does not check bounds, and its sort need not be stable on every device."""
    monkeypatch.setattr(reductions, "chunk_sizes", lambda: sizes)
    argsort = mx.argsort
    monkeypatch.setattr(mx, "argsort", lambda values, axis: values.shape[1] - 1 - argsort(values[:, ::-1], axis=axis))
    length = 8 * CHUNK_SIZE + 1
    values = np.full((2, length), NEG_INF, np.float32)
    values[0, -1] = values[1, 0] = 1
    best, indices = (np.array(array) for array in top_k(mx.array(values), 8))
    assert indices[:, 0].tolist() == [length - 1, 0] and (best[:, 1:] == NEG_INF).all()
    assert ((indices >= 0) & (indices < length)).all()
