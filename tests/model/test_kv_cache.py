"""The key-value cache: where it writes, and its mask."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_transformer.model.kv_cache import KVCache


def empty_cache(capacity, num_layers=2):
    layers = [mx.zeros((2, 3, 2, capacity, 4)) for _ in range(num_layers)]
    return KVCache(layers, mx.array(0, mx.int32))


def test_cache_writes_only_the_next_positions():
    cache = empty_cache(capacity=6)
    written = [mx.random.normal((2, 3, 2, n, 4)) for n in (1, 3, 1)]
    for key_values in written:
        updated = cache.update_and_fetch(1, key_values)
        assert updated is cache.layers[1]
        cache.length = cache.length + key_values.shape[3]
    assert cache.capacity == 6
    np.testing.assert_array_equal(cache.layers[1][:, :, :, :5], mx.concatenate(written, axis=3))
    assert not cache.layers[1][:, :, :, 5:].any().item()
    assert not cache.layers[0].any().item()


def test_cache_mask_is_causal():
    cache = empty_cache(capacity=6)
    cache.length = mx.array(2, mx.int32)
    expected = [[key <= 2 + query for key in range(6)] for query in range(3)]
    mask = cache.mask(3)
    assert mask.dtype == mx.bool_
    assert mask.shape == (1, 1, 3, 6)
    assert mask[0, 0].tolist() == expected


def test_cache_mask_begins_at_the_start_of_each_row():
    cache = empty_cache(capacity=6)
    cache.length, cache.starts = mx.array(3, mx.int32), mx.array([[0], [2]])
    mask = cache.mask(2)
    assert mask.shape == (2, 1, 2, 6)
    assert mask[:, 0].tolist() == [
        [[start <= key <= 3 + query for key in range(6)] for query in range(2)] for start in (0, 2)
    ]


@pytest.mark.parametrize(("first", "capacity"), [(0, 9), (2, 4), (2, 3), (1, 9), (0, 6)])
def test_resizing_keeps_the_positions_from_the_first_on(first, capacity):
    cache = empty_cache(capacity=6)
    written = cache.update_and_fetch(0, mx.random.normal((2, 3, 2, 6, 4)))
    cache.resize(first, capacity)
    assert cache.capacity == capacity
    kept = min(6 - first, capacity)
    np.testing.assert_array_equal(cache.layers[0][:, :, :, :kept], written[:, :, :, first : first + kept])
    assert not cache.layers[0][:, :, :, kept:].any().item()
