"""Embeddings: pooled hidden states in order, whatever the batch and its padding."""

import copy

import mlx.core as mx
import numpy as np
import pytest

import mlx_transformer as mt
from mlx_transformer.config.model import PoolingConfig
from mlx_transformer.inference import embedding
from mlx_transformer.inference.source_lines import make_source_lines

TEXTS = ["I am tired.", "Good morning! Did you sleep well last night, or not at all?", "", "No.", "I am tired."]


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


def hidden_states(bundled, text):
    model, tokenizer = bundled
    return np.array(model.encode_hidden(mx.array([tokenizer.encode(text)]))[0])


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_vectors_are_pooled_hidden_states_in_order(bundled, pooling, batch_tokens):
    vectors = mt.embed(*bundled, TEXTS, pooling, batch_tokens=batch_tokens)
    pool = {"mean": lambda h: h.mean(axis=0), "first": lambda h: h[0], "last": lambda h: h[-1]}[pooling]
    expected = [pool(hidden_states(bundled, text)) for text in TEXTS]
    assert vectors.dtype == np.float32 and np.abs(vectors - expected).max() < 1e-4
    assert len(np.unique(vectors.round(3), axis=0)) == 4


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_and_the_rest_of_the_batch_have_no_influence(bundled, pooling):
    texts = [*TEXTS, "No. " * 40]  # padded to 96 tokens together, and to 16 alone
    together = mt.embed(*bundled, texts, pooling, normalize=True)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(mt.embed(*bundled, text, pooling, normalize=True) - vector).max() < 1e-6


def test_hidden_states_that_are_not_finite_are_an_error_of_their_line(bundled):
    model, tokenizer = bundled
    broken = copy.deepcopy(model)
    (token,) = {*tokenizer.encode("No.")} - {*tokenizer.encode("I am tired.")} - {*tokenizer.encode("")}
    broken.source_embedding.weight[token] = mx.nan
    results = list(
        embedding.embed_lines(
            broken, tokenizer, make_source_lines(["I am tired.", "No.", "I am tired."]), PoolingConfig()
        )
    )
    assert [bool(result.error) for result in results] == [False, True, False] and np.isnan(results[1].vector).all()
    with pytest.raises(ValueError, match="Line 2: Hidden states must be finite"):
        mt.embed(broken, tokenizer, ["I am tired.", "No."])


def test_a_vector_of_zeros_stays_one_when_it_is_normalised(bundled):
    model, tokenizer = bundled
    broken = copy.deepcopy(model)
    broken.encoder.norm.weight, broken.encoder.norm.bias = (mx.zeros(model.config.dims) for _ in range(2))
    assert (mt.embed(broken, tokenizer, "No.", normalize=True) == 0).all()


def test_truncated_texts_are_marked(bundled):
    length = bundled[0].config.encoder.max_length
    lines = make_source_lines(["No.", "No. " * length])
    assert [result.truncated for result in embedding.embed_lines(*bundled, lines, PoolingConfig())] == [False, True]


def test_a_single_text_gives_one_vector(bundled):
    dims = bundled[0].config.dims
    vector = mt.embed(*bundled, TEXTS[0])
    assert vector.shape == (dims,) and np.allclose(vector, mt.embed(*bundled, TEXTS)[0], atol=1e-5)
    assert mt.embed(*bundled, []).shape == (0, dims)


def test_normalised_vectors_have_length_one_and_the_same_direction(bundled):
    plain, unit = (mt.embed(*bundled, TEXTS, normalize=normalize) for normalize in (False, True))
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.ptp(lengths) > 0.1 and np.allclose(unit * lengths, plain, atol=1e-5)


def test_memory_is_made_of_the_hidden_states(bundled):
    model, tokenizer = bundled
    source = mx.array([tokenizer.encode(TEXTS[0])])
    first = model.decoder.layers[0].cross_attention.key_values(model.encode_hidden(source))
    assert mx.array_equal(first, model.encode(source).key_values[0])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("a", "sum"), {}, "pooling must be one of mean, first, last, not 'sum'"),
        ((["a", None],), {}, "Line 2: The text must be a string, not None"),
        (("a",), {"target_language": "xx"}, "xx"),
        (("a",), {"batch_tokens": 0}, "batch_tokens must be more than 0"),
    ],
)
def test_bad_arguments_are_refused(bundled, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        mt.embed(*bundled, *arguments, **options)


def test_a_batch_that_does_not_fit_in_memory_is_halved(bundled, monkeypatch):
    def pad_few(rows, *arguments):
        if len(rows) > 1:
            raise RuntimeError("[malloc] Unable to allocate 9 bytes")
        return pad_ids(rows, *arguments)

    expected, pad_ids = mt.embed(*bundled, TEXTS), embedding.pad_ids
    monkeypatch.setattr(embedding, "pad_ids", pad_few)
    assert np.abs(mt.embed(*bundled, TEXTS) - expected).max() < 1e-4
    monkeypatch.setattr(embedding, "pad_ids", lambda *_: pad_few([1, 2]))
    with pytest.raises(ValueError, match="Line 1: It does not fit in memory"):
        mt.embed(*bundled, TEXTS)
