"""Hypotheses recovered from backpointers, checked against known trees."""

import numpy as np
import pytest

from mlx_transformer.decoding.hypothesis import backtrace


@pytest.mark.parametrize(
    "batch, beams, vocab, steps", [(1, 1, 5, 1), (3, 1, 7, 12), (4, 3, 7, 12), (2, 5, 100_000, 33)]
)
def test_backtrace_recovers_the_tokens_of_every_hypothesis(batch, beams, vocab, steps):
    rng = np.random.default_rng(steps)
    backpointers = np.zeros((steps, batch, beams), np.int32)
    finished = [[] for _ in range(batch)]  # (length, last link, its tokens)
    for row in range(batch):
        living = [()] * beams
        for step in range(steps):
            extended = []
            for _ in range(beams):
                parent = int(rng.integers(beams)) if step else 0
                token = int(rng.integers(vocab))
                extended.append((parent * vocab + token, (*living[parent], token)))
                ended = int(rng.integers(vocab))  # a candidate that ends here is none of the living
                finished[row].append((step + 1, parent * vocab + ended, (*living[parent], ended)))
            backpointers[step, row] = [link for link, _ in extended]
            living = [ids for _, ids in extended]
        finished[row] += [(0, 0, ())]  # as where there is none yet
    lengths, last = (np.array([[entry[i] for entry in row] for row in finished]) for i in (0, 1))
    # Each row begins at a step of its own.
    starts = rng.integers(0, 5, batch)
    later = np.stack(
        [np.roll(np.pad(backpointers[:, row], [(0, 5), (0, 0)]), n, axis=0) for row, n in enumerate(starts)], 1
    )
    results = backtrace(later, last, lengths, vocab, starts)[..., :steps]
    assert results.shape == (*last.shape, steps)
    for row, entries in enumerate(finished):
        for k, (length, _, ids) in enumerate(entries):
            assert tuple(results[row, k, :length].tolist()) == ids
