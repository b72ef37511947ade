"""Reductions in chunks against numpy, for rows of any length."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_transformer.model.reductions import reduce_chunks, reduce_rows


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
