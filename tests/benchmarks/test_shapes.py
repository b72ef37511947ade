"""Tests of checkpoints with random weights."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import peers, shapes


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[1, 2, 3, 4] * 2, [5, 6, 5, 5] * 2], True),
        ([[1] * 16, [2] * 16], False),
        ([[*range(8)], [*range(1, 9)]], False),
        ([[1, 2, 3, 4] * 2] * 2, False),
        ([[1, 2, 3, 4] * 2], True),
    ],
)
def test_outputs_vary_rejects_repetitive_distinct_and_identical_outputs(outputs, expected):
    assert shapes.outputs_vary(outputs) == expected


@pytest.mark.parametrize("name", ["marian-tiny", "t5-tiny"])
def test_random_weights_generate_varied_outputs(name, tmp_path):
    shape = shapes.SHAPES[name]
    shapes.write_checkpoint(shape, tmp_path)
    outputs = peers.Ours(shape, tmp_path).generate(shapes.random_sources(shape, 8, 24), 1, 32)
    assert shapes.outputs_vary(outputs), shapes.distinct_token_counts(outputs)
    assert {len(ids) for ids in outputs} == {32}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_padding_and_eos_have_zero_embeddings_and_are_not_in_sources(name):
    shape = replace(shapes.SHAPES[name], dims=8, num_heads=2, mlp_dims=8)
    (embeddings,) = (
        array for array in shapes.hf_tensors(shape).values() if array.shape == (shape.vocab_size, shape.dims)
    )
    zero_rows = np.flatnonzero(~embeddings.any(axis=1)).tolist()
    assert zero_rows == sorted((shape.pad_id, shape.eos_id))
    assert not set(zero_rows) & set(shapes.random_sources(shape, 200, 50).flatten().tolist())
