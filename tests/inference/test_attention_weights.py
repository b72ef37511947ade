"""Attention weights: compared with the formula, with transformers and with fused attention."""

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_families import MODELS, torch_model, torch_sources
from support.tiny_models import SETTINGS, padded, random_model, random_sources, random_targets

from mlx_transformer.inference.attention_weights import attention_ids
from mlx_transformer.model import attention
from mlx_transformer.model.attention import attention_weights, scaled_dot_product_attention
from mlx_transformer.weights import convert

LENGTHS = (3, 7, 5)


@pytest.fixture(params=SETTINGS, scope="module")
def model(request):
    return random_model(SETTINGS[request.param])


@pytest.fixture
def source(model):
    return padded(random_sources(model.config, LENGTHS), model.config)


@pytest.fixture
def target(model):
    return random_targets(model.config, rows=len(LENGTHS), length=6)


@pytest.fixture
def close(tolerance):
    def check(actual, expected, limit=1e-5):
        np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=tolerance(limit), atol=tolerance(limit))

    return check


@pytest.mark.parametrize("mask", ["causal", "boolean", "bias"])
def test_weights_equal_the_formula(mask, close):
    rng = np.random.default_rng(0)
    queries, keys = (rng.standard_normal((2, 3, 5, 4)).astype(np.float32) for _ in range(2))
    allowed = {"causal": np.tri(5, dtype=bool), "boolean": rng.random((2, 1, 1, 5)) < 0.7, "bias": True}[mask]
    bias = rng.standard_normal((1, 3, 5, 5)).astype(np.float32) if mask == "bias" else 0
    exponentials = np.where(allowed, np.exp(0.3 * np.einsum("bhqd,bhkd->bhqk", queries, keys) + bias), 0)
    given = mask if mask == "causal" else mx.array(allowed) if mask == "boolean" else mx.array(bias)
    found = attention_weights(mx.array(queries), mx.array(keys), scale=0.3, mask=given)
    close(found, exponentials / exponentials.sum(axis=-1, keepdims=True), 1e-6)


def test_weights_reproduce_fused_attention(model, source, target, close):
    def unfused(queries, keys, values, **options):
        return attention_weights(queries, keys, **options) @ values

    memory = model.encode(source, attend=unfused)
    close(model.decode(target, memory, attend=unfused), model(source, target), 1e-4)


def test_shapes_and_row_sums(model, source, target, close):
    config = model.config
    found = attention_ids(model, source, target)
    sizes = {"encoder": (7, 7), "decoder": (6, 6), "cross": (6, 7)}
    for name, size in sizes.items():
        stack = config.encoder if name == "encoder" else config.decoder
        layers = getattr(found, name)
        num_layers = 0 if name == "decoder" and config.decoder_self_attention != "attention" else stack.num_layers
        assert [layer.shape for layer in layers] == [(len(LENGTHS), stack.num_heads, *size)] * num_layers
        for layer in layers:
            assert layer.dtype == mx.float32 and layer.min().item() >= 0
            close(layer.sum(axis=-1), mx.ones(layer.shape[:-1]))


def test_padding_and_future_positions_have_weight_zero(model, source, target):
    found = attention_ids(model, source, target)
    for row, length in enumerate(LENGTHS):
        for layer in found.encoder + found.cross:
            assert not layer[row, ..., length:].any() and (layer[row, ..., :length] > 0).all()
    behind = mx.tril(mx.ones((6, 6), mx.bool_))
    for layer in found.decoder:
        assert ((layer > 0) == behind).all()


def test_weights_in_a_batch_equal_single_sentences(model, source, target, close):
    together = attention_ids(model, source, target)
    for row, length in enumerate(LENGTHS):
        alone = attention_ids(model, source[row : row + 1, :length], target[row : row + 1])
        for layer, own in zip(together.encoder, alone.encoder, strict=True):
            close(layer[row, :, :length, :length], own[0])
        for layer, own in zip(together.decoder + together.cross, alone.decoder + alone.cross, strict=True):
            close(layer[row, ..., : own.shape[-1]], own[0])


def test_several_targets_per_source(model, source, close):
    target = random_targets(model.config, rows=3 * len(LENGTHS), length=4, seed=1)
    found = attention_ids(model, source, target)
    repeated = attention_ids(model, mx.repeat(source, 3, axis=0), target)
    for name in ("decoder", "cross"):
        for layer, expected in zip(getattr(found, name), getattr(repeated, name), strict=True):
            close(layer, expected)


def test_unequal_numbers_of_targets_are_rejected(model, source):
    with pytest.raises(ValueError, match="but 4 is not a multiple of 3"):
        attention_ids(model, source, random_targets(model.config, rows=4, length=3))


def test_weights_are_float32_in_low_precision(source, target, model):
    expected = attention_ids(model, source, target)
    low = random_model(model.config)
    low.set_dtype(mx.float16)
    for layer, exact in zip(attention_ids(low, source, target).cross, expected.cross, strict=True):
        assert layer.dtype == mx.float32 and mx.abs(layer - exact).max().item() < 0.02


def test_custom_attention_function_gets_all_arguments(model, source, target):
    calls = []

    def counting(*arrays, **options):
        calls.append(options["mask"])
        return scaled_dot_product_attention(*arrays, **options)

    memory = model.encode(source, attend=counting)
    assert len(calls) == model.config.encoder.num_layers
    logits = model.decode(target, memory, attend=counting)
    per_layer = 2 if model.config.decoder_self_attention == "attention" else 1
    assert len(calls) == model.config.encoder.num_layers + per_layer * model.config.decoder.num_layers
    assert mx.array_equal(logits, model(source, target))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("mask", ["causal", "boolean", "additive"])
def test_attention_that_is_written_out_equals_the_fused_one(monkeypatch, mask, dtype):
    rng = np.random.default_rng(0)
    queries, keys, values = (
        mx.array(rng.standard_normal((2, 3, length, 8)), mx.float32).astype(dtype) for length in (5, 70, 70)
    )
    if mask == "boolean":
        mask = mx.array(rng.random((2, 1, 1, 70)) < 0.5)
    elif mask == "additive":
        mask = mx.array(rng.standard_normal((1, 3, 5, 70)), mx.float32).astype(dtype)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    monkeypatch.setattr(attention, "MIN_UNFUSED_WEIGHTS", 0)
    monkeypatch.setattr(attention.exponential, "is_exp_scalar", lambda: True)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", None)  # it is not called
    found = scaled_dot_product_attention(queries, keys, values, scale=0.3, mask=mask)
    assert found.dtype == dtype
    assert mx.allclose(found, expected, rtol=0, atol=1e-5 if dtype == mx.float32 else 4e-3)


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_weights_equal_those_of_transformers(name, tmp_path, tolerance):
    torch = pytest.importorskip("torch")
    original = torch_model(name)
    original.save_pretrained(tmp_path)
    theirs = type(original).from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours = convert.load(tmp_path)[0]
    source = torch_sources(theirs)
    target = np.random.default_rng(1).integers(3, ours.config.target_vocab_size - 1, (len(source), 7))
    tokens = source != theirs.config.pad_token_id
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(tokens.astype(np.int64)),
            decoder_input_ids=torch.tensor(target),
            output_attentions=True,
        )
    found = attention_ids(ours, mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32)))
    for kind, layers in (
        ("encoder", expected.encoder_attentions),
        ("decoder", expected.decoder_attentions),
        ("cross", expected.cross_attentions),
    ):
        # Padding queries mean nothing; some originals count their positions otherwise.
        real = tokens[:, None, :, None] if kind == "encoder" else True
        for layer, own in zip(layers, getattr(found, kind), strict=True):
            assert layer.numpy().std() > 0.02, "the weights must not be trivial"
            assert np.abs(np.where(real, layer.numpy() - np.array(own), 0)).max() <= tolerance(1e-4)
