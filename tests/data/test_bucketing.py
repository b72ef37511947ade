"""Each pair has a shape that holds it, few shapes serve many pairs, and what is left over has a larger one to go to."""

import numpy as np
import pytest

from mlx_transformer.data.bucketing import MIN_BATCH_SHARE, MIN_BATCHES, bucket_lengths, choose_batch_shapes


def test_lengths_are_padded_by_at_most_a_quarter():
    assert bucket_lengths(33).tolist() == [4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 33]
    assert bucket_lengths(32)[-2:].tolist() == [28, 32]
    assert bucket_lengths(2).tolist() == [2]
    long = bucket_lengths(100_000)
    assert (long[3:] <= 1.25 * long[2:-1]).all() and long[-1] == 100_000


def random_counts(seed, longest=(256, 200)):
    """How many of 20,000 pairs have such lengths, and these lengths."""
    rng = np.random.default_rng(seed)
    common = rng.normal(2.6, 0.7, 20_000)
    sources, targets = map(bucket_lengths, longest)
    cells = [
        np.searchsorted(lengths, np.clip(np.exp(common + rng.normal(0, 0.2, 20_000)), 2, lengths[-1]))
        for lengths in (sources, targets)
    ]
    counts = np.zeros((len(sources), len(targets)), int)
    np.add.at(counts, tuple(cells), 1)
    return counts, sources, targets


def octave(source_length, target_length):
    return np.ceil(np.log2(max(source_length, target_length)))


@pytest.mark.parametrize("batch_tokens", [1, 256, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_shapes_hold_their_pairs_within_an_octave(seed, batch_tokens):
    counts, sources, targets = random_counts(seed)
    shapes, numbers = choose_batch_shapes(counts, sources, targets, batch_tokens)
    for s, t in zip(*np.nonzero(counts), strict=True):
        shape = shapes[numbers[s, t]]
        assert sources[s] <= shape.source_length and targets[t] <= shape.target_length
        assert octave(sources[s], targets[t]) == octave(shape.source_length, shape.target_length)
    for number, shape in enumerate(shapes):
        assert shape.rows == max(1, min(batch_tokens // max(shape[1:3]), shape.rows))
        pairs = counts[numbers == number].sum()
        if shape.larger is not None:
            larger = shapes[shape.larger]
            assert shape.larger > number and larger[1] >= shape[1] and larger[2] >= shape[2]
            assert octave(*larger[1:3]) == octave(*shape[1:3])
            assert pairs >= MIN_BATCHES * shape.rows
    for one in {octave(*shape[1:3]) for shape in shapes}:
        last = [shape for shape in shapes if octave(*shape[1:3]) == one and shape.larger is None]
        assert len(last) == 1
        inside = sum(
            counts[numbers == number].sum() for number, shape in enumerate(shapes) if octave(*shape[1:3]) == one
        )
        assert len([shape for shape in shapes if octave(*shape[1:3]) == one]) <= 1 / MIN_BATCH_SHARE + 1
        assert all(shape.rows <= inside for shape in shapes if octave(*shape[1:3]) == one)


def test_a_few_pairs_make_no_large_batch():
    counts = np.zeros((3, 3), int)
    counts[0, 1] = 5
    shapes, _ = choose_batch_shapes(counts, bucket_lengths(8), bucket_lengths(8), 4096)
    assert shapes == [(5, 4, 6, None)]
