"""Tests of the systems whose generation is compared."""

import pytest

from benchmarks import peers, shapes


@pytest.mark.torch
@pytest.mark.parametrize("name", ["marian-tiny", "t5-tiny"])
@pytest.mark.slow
def test_transformers_generates_the_same_tokens(name, tmp_path):
    pytest.importorskip("transformers")
    shape = shapes.SHAPES[name]
    shapes.write_checkpoint(shape, tmp_path)
    source = shapes.random_sources(shape, 2, 24)
    theirs = peers.Transformers(shape, tmp_path, "float32", "cpu", threads=1)
    for beams in (1, 4):
        assert peers.Ours(shape, tmp_path).generate(source, beams, 12) == theirs.generate(source, beams, 12)
    assert sorted(theirs.token_timestamps(source[:1], 5)) == [1, 2, 3, 4, 5]


def test_missing_mlx_examples_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="--mlx-examples must be"):
        peers.load_mlx_examples_model(tmp_path, tmp_path)
