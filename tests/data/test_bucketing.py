"""Bucket lengths, and the choice of batch shapes."""

import numpy as np
import pytest

from mlx_transformer.data.bucketing import MIN_BATCH_SHARE, MIN_BATCHES, bucket_lengths, choose_batch_shapes


def test_bucket_lengths_add_at_most_a_quarter():
    assert bucket_lengths(33).tolist() == [4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 33]
    assert bucket_lengths(32)[-2:].tolist() == [28, 32]
    assert bucket_lengths(2).tolist() == [2]
    lengths = bucket_lengths(100_000)
    assert (lengths[3:] <= 1.25 * lengths[2:-1]).all() and lengths[-1] == 100_000


def random_counts(seed, max_lengths=(256, 200)):
    """The number of pairs in each pair of buckets, for 20,000 pairs of random lengths, and the buckets."""
    rng = np.random.default_rng(seed)
    common = rng.normal(2.6, 0.7, 20_000)
    sources, targets = map(bucket_lengths, max_lengths)
    buckets = [
        np.searchsorted(lengths, np.clip(np.exp(common + rng.normal(0, 0.2, 20_000)), 2, lengths[-1]))
        for lengths in (sources, targets)
    ]
    counts = np.zeros((len(sources), len(targets)), int)
    np.add.at(counts, tuple(buckets), 1)
    return counts, sources, targets


def octave(source_length, target_length):
    return np.ceil(np.log2(max(source_length, target_length)))


@pytest.mark.parametrize("batch_tokens", [1, 256, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_shapes_fit_their_pairs_within_an_octave(seed, batch_tokens):
    counts, sources, targets = random_counts(seed)
    shapes, shape_indices = choose_batch_shapes(counts, sources, targets, batch_tokens)
    for s, t in zip(*np.nonzero(counts), strict=True):
        shape = shapes[shape_indices[s, t]]
        assert sources[s] <= shape.source_length and targets[t] <= shape.target_length
        assert octave(sources[s], targets[t]) == octave(shape.source_length, shape.target_length)
    for index, shape in enumerate(shapes):
        assert shape.rows == max(1, min(batch_tokens // max(shape[1:3]), shape.rows))
        pairs = counts[shape_indices == index].sum()
        if shape.larger is not None:
            larger = shapes[shape.larger]
            assert shape.larger > index and larger[1] >= shape[1] and larger[2] >= shape[2]
            assert octave(*larger[1:3]) == octave(*shape[1:3])
            assert pairs >= MIN_BATCHES * shape.rows
    for one_octave in {octave(*shape[1:3]) for shape in shapes}:
        indices = [index for index, shape in enumerate(shapes) if octave(*shape[1:3]) == one_octave]
        assert len([index for index in indices if shapes[index].larger is None]) == 1
        assert len(indices) <= 1 / MIN_BATCH_SHARE + 1
        num_pairs = sum(counts[shape_indices == index].sum() for index in indices)
        assert all(shapes[index].rows <= num_pairs for index in indices)


def test_few_pairs_get_a_small_shape():
    counts = np.zeros((3, 3), int)
    counts[0, 1] = 5
    shapes, _ = choose_batch_shapes(counts, bucket_lengths(8), bucket_lengths(8), 4096)
    assert shapes == [(5, 4, 6, None)]
