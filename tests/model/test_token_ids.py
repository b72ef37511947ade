"""Token ids that a model does not have are refused at every entry: MLX would read foreign memory or crash."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.decoding.beam_search import stream_ids

SEARCH = mt.SearchConfig(max_tokens=2)
GOOD = mx.array([[3, 4, 1]])
ENTRIES = {
    "source": {
        "model": lambda model, ids: model(ids, GOOD),
        "hidden_states": lambda model, ids: model.hidden_states(ids, GOOD),
        "encode": lambda model, ids: model.encode(ids),
        "generate_ids": lambda model, ids: mt.generate_ids(model, ids, SEARCH),
        "stream_ids": lambda model, ids: list(stream_ids(model, ids, SEARCH)),
        "score_ids": lambda model, ids: mt.score_ids(model, ids, GOOD),
        "attention": lambda model, ids: mt.attention_ids(model, ids, GOOD),
    },
    "target": {
        "model": lambda model, ids: model(GOOD, ids),
        "hidden_states": lambda model, ids: model.hidden_states(GOOD, ids),
        "decode": lambda model, ids: model.decode(ids, model.encode(GOOD)),
        "cached decode": lambda model, ids: model.decode(ids, model.encode(GOOD), model.new_cache(1, 8)),
        "score_ids": lambda model, ids: mt.score_ids(model, GOOD, ids),
        "attention": lambda model, ids: mt.attention_ids(model, GOOD, ids),
    },
}
CASES = [(side, name) for side, entries in ENTRIES.items() for name in entries]


@pytest.fixture(scope="module")
def model():
    return random_model(config(share_embeddings=False, target_vocab_size=17))


@pytest.mark.parametrize(("side", "name"), CASES)
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64])
def test_ids_of_the_vocabulary_are_accepted(model, side, name, dtype):
    ids = mx.array([[3, 0, {"source": 18, "target": 16}[side], 1]], mx.int32)
    results = [ENTRIES[side][name](model, array) for array in (ids, ids.astype(dtype))]
    assert repr(results[0]) == repr(results[1])


@pytest.mark.parametrize(("side", "name"), CASES)
@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(None, mx.int32), (10_000, mx.int32), (-1, mx.int32), (2**32 + 4, mx.int64), (2**32 - 1, mx.uint32)],
)
def test_other_ids_are_refused(model, side, name, wrong, dtype):
    limit = {"source": 18, "target": 16}[side]
    wrong = limit + 1 if wrong is None else wrong
    with pytest.raises(ValueError, match=f"^{side} must be token ids from 0 to {limit}, not {wrong}:"):
        ENTRIES[side][name](model, mx.array([[3, wrong, 1]], dtype))


@pytest.mark.parametrize(("side", "name"), CASES)
def test_floats_and_lists_of_ids_are_refused(model, side, name):
    with pytest.raises(ValueError, match=f"^{side} must be integer token ids, not mlx.core.float32"):
        ENTRIES[side][name](model, mx.array([[3.0, 4.0]]))
    with pytest.raises(ValueError, match=rf"^{side} must have two axes, \(rows, length\), not the shape \(2,\)"):
        ENTRIES[side][name](model, mx.array([3, 4]))
    for ids in ([[3, 4]], np.array([[3, 4]]), None):
        with pytest.raises(ValueError, match=f"^{side} must be token ids in an mlx.core.array, not "):
            ENTRIES[side][name](model, ids)


@pytest.mark.parametrize("name", ["model", "hidden_states", "score_ids", "attention_ids"])
def test_numbers_of_sources_and_targets_must_fit(model, name):
    calls = {"model": model, "hidden_states": model.hidden_states}
    calls |= {"score_ids": partial(mt.score_ids, model), "attention_ids": partial(mt.attention_ids, model)}
    calls[name](mx.repeat(GOOD, 2, axis=0), mx.repeat(GOOD, 4, axis=0))
    with pytest.raises(ValueError, match="3 is not a multiple of 2"):
        calls[name](mx.repeat(GOOD, 2, axis=0), mx.repeat(GOOD, 3, axis=0))


def test_ids_of_traced_functions_are_not_looked_at(model):
    compiled = mx.compile(lambda source, target: model(source, target))
    assert mx.allclose(compiled(GOOD, GOOD), model(GOOD, GOOD), atol=1e-5)
