"""Sampling: frequencies, filters and independent noise."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import random_keys
from mlx_transformer.decoding.sampling import sample

NEG_INF = -np.inf
FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 3.0, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 2.0, "top_k": 500, "top_p": 0.01},
]


def probabilities(scores, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """Compute the next-token distribution of one row with loops over tokens."""
    left = {token: score / temperature for token, score in enumerate(scores) if score > NEG_INF}
    ranked = sorted(left, key=lambda token: -left[token])
    ranked = ranked[: top_k or None]
    weights = np.exp([left[token] - left[ranked[0]] for token in ranked])
    weights /= weights.sum()
    ranked = [token for i, token in enumerate(ranked) if weights[:i].sum() < top_p]
    ranked = [token for i, token in enumerate(ranked) if weights[i] >= min_p * weights[0]]
    weights = np.exp([left[token] - left[ranked[0]] for token in ranked])
    expected = np.zeros(len(scores))
    expected[ranked] = weights / weights.sum()
    return expected


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_tokens_are_sampled_with_their_probability(filters):
    draws, beams = 20_000, 4
    scores = np.random.default_rng(1).normal(size=12).astype(np.float32) * 1.5
    scores[5] = NEG_INF
    expected = probabilities(scores, **filters) * draws
    search = SearchConfig(beams, beams, **filters)
    key = mx.repeat(random_keys(0, range(draws // beams)), beams, axis=0)
    samples = sample(mx.broadcast_to(mx.array(scores), (draws, 12)), search, key, mx.array([[3]]))
    assert (samples.shape, samples.dtype) == ((draws, 1), mx.uint32)
    counts = np.bincount(np.array(samples)[:, 0], minlength=12)
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square <= freedom + 4 * np.sqrt(2 * freedom)


def drawable(scores, search, monkeypatch):
    """Return which tokens can be sampled, bool (rows, vocab), by concentrating all noise on one token at a time."""
    rows, vocab = scores.shape
    spike = mx.zeros(vocab)
    monkeypatch.setattr(mx.random, "gumbel", lambda shape, key: spike + 0 * key[0])
    columns = []
    for token in range(vocab):
        spike = mx.where(mx.arange(vocab) == token, 1e6, 0.0)
        tokens = sample(mx.array(scores), search, mx.zeros((rows, 2), mx.uint32), mx.array([[1]]))
        columns.append(np.array(tokens)[:, 0] == token)
    return np.array(columns).T


@pytest.mark.torch
@pytest.mark.parametrize(
    "filters", [*FILTERS, {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.1}, {"temperature": 1, "min_p": 1}]
)
def test_sampling_filters_equal_those_of_transformers(filters, monkeypatch):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers").generation.logits_process
    scores = np.random.default_rng(2).normal(size=(100, 40)).astype(np.float32) * 2
    scores[:, 7] = NEG_INF
    chain = [warpers.TemperatureLogitsWarper(float(filters["temperature"]))]
    chain += [warpers.TopKLogitsWarper(filters["top_k"])] if "top_k" in filters else []
    chain += [warpers.TopPLogitsWarper(filters["top_p"])] if "top_p" in filters else []
    chain += [warpers.MinPLogitsWarper(filters["min_p"])] if "min_p" in filters else []
    left = torch.tensor(scores)
    for warper in chain:
        left = warper(None, left)
    drawable_tokens = drawable(scores, SearchConfig(**filters), monkeypatch)
    np.testing.assert_array_equal(drawable_tokens, left.numpy() > NEG_INF)
    expected = [probabilities(row.astype(np.float64), **filters) > 0 for row in scores]
    np.testing.assert_array_equal(drawable_tokens, expected)


@pytest.mark.torch
def test_ties_at_the_top_k_boundary_are_kept_as_in_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    warper = pytest.importorskip("transformers").generation.logits_process.TopKLogitsWarper(3)
    scores = np.array([[1, 3, 2, 2, 0, 2, 4]], np.float32)
    drawable_tokens = drawable(scores, SearchConfig(temperature=1.0, top_k=3), monkeypatch)
    np.testing.assert_array_equal(drawable_tokens, warper(None, torch.tensor(scores)).numpy() > NEG_INF)
    assert drawable_tokens.sum() == 5


def test_samples_do_not_depend_on_other_rows():
    beams, lines = 3, [4, 0, 7, 2]
    search = SearchConfig(beams, beams, temperature=1.0, top_p=0.9)
    scores = mx.array(np.random.default_rng(0).normal(size=(len(lines) * beams, 50)).astype(np.float32))

    def drawn(rows, lines):
        key = mx.repeat(random_keys(5, lines), beams, axis=0)
        return sample(mx.take(scores, mx.array(list(rows)), axis=0), search, key, mx.array([[2]])).flatten().tolist()

    full = drawn(range(len(lines) * beams), lines)
    for i, line in enumerate(lines):
        assert drawn(range(i * beams, (i + 1) * beams), [line]) == full[i * beams : (i + 1) * beams]
    assert drawn([*range(6, 12), *range(6)], lines[2:] + lines[:2]) == full[6:] + full[:6]


def test_every_seed_line_position_and_hypothesis_has_its_own_noise():
    """With a uniform distribution over many tokens, two independent samples rarely agree."""
    vocab, beams, seeds = 20_000, 4, (0, 1, 2, 2**32 - 1)
    lines, positions = (0, 1, 2, 2**32 - 1), (1, 2, 3, 64, 1024)
    search = SearchConfig(beams, beams, temperature=1.0)
    drawn = []
    for seed, position in itertools.product(seeds, positions):
        key = mx.repeat(random_keys(seed, lines), beams, axis=0)
        drawn += sample(mx.zeros((len(key), vocab)), search, key, mx.array([[position]])).flatten().tolist()
    assert len(drawn) == len(seeds) * len(positions) * len(lines) * beams == 320
    assert len(set(drawn)) > 310
