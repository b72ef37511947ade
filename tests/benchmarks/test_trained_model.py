"""Tests of the sentences of the benchmark of trained models."""

from benchmarks import trained_model


def test_mixed_lines_are_reproducible():
    sentences = trained_model.simple_sentences()
    assert len(set(sentences)) == len(sentences) > 100
    first, again, other = (trained_model.mixed_lines(sentences, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({line.count(".") for line in first}) > 2
