"""The recurrences of the SSRU and of average attention: equal to loops over positions, at any length."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import SETTINGS, padded, random_model, random_sources, random_targets

from mlx_transformer.config.model import AverageAttentionConfig, ModelConfig
from mlx_transformer.model.kv_cache import CellCache, SumCache
from mlx_transformer.model.recurrence import linear_recurrence, running_sums
from mlx_transformer.model.transformer import SSRU

LENGTHS = (1, 2, 3, 7, 8, 33, 1024)


def random_gates(length, rows=2, dims=5, scale=2.0):
    return scale * mx.random.normal((rows, length, 2, dims), key=mx.random.key(length))


def step_by_step(gates, state=None):
    """The recurrence as a loop over positions."""
    cell = mx.zeros((gates.shape[0], gates.shape[3])) if state is None else state
    cells = []
    for position in range(gates.shape[1]):
        forget = mx.sigmoid(gates[:, position, 1])
        cell = forget * cell + (1 - forget) * gates[:, position, 0]
        cells.append(cell)
    return mx.stack(cells, axis=1)


def numpy_ssru(layer, x):
    """The sublayer in float64, from the formulas of the paper."""
    weights = {name: np.array(module.weight, np.float64) for name, module in layer.items()}
    forget_bias = np.array(layer.forget_proj.bias, np.float64)
    cell = np.zeros((x.shape[0], x.shape[2]))
    outputs = []
    for position in np.array(x, np.float64).swapaxes(0, 1):
        forget = 1 / (1 + np.exp(-(position @ weights["forget_proj"].T + forget_bias)))
        cell = forget * cell + (1 - forget) * (position @ weights["input_proj"].T)
        outputs.append(np.maximum(cell, 0))
    outputs = np.stack(outputs, axis=1)
    return outputs @ weights["out_proj"].T + np.array(layer.out_proj.bias) if "out_proj" in layer else outputs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_all_positions_at_once_equal_the_loop(length, with_state):
    gates = random_gates(length)
    state = 3 * mx.random.normal((2, 5), key=mx.random.key(1)) if with_state else None
    np.testing.assert_allclose(linear_recurrence(gates, state), step_by_step(gates, state), rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [1, 6, 33])
def test_gradients_equal_those_of_the_loop(length):
    weights = mx.random.normal((2, length, 5), key=mx.random.key(3))
    gates, state = random_gates(length), mx.random.normal((2, 5), key=mx.random.key(4))

    def gradients(function):
        return mx.grad(lambda *arrays: (function(*arrays) * weights).sum(), argnums=(0, 1))(gates, state)

    for ours, expected in zip(gradients(linear_recurrence), gradients(step_by_step), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("gate", [-1e4, -50.0, 50.0, 1e4])
def test_saturated_gates_stay_finite_at_1024_positions(gate):
    """Gates of 0 take each input, gates of 1 keep the state; a quotient of cumulative products would be NaN."""
    gates = random_gates(1024)
    gates[:, :, 1] = gate
    state = mx.ones((2, 5))
    cells = linear_recurrence(gates, state)
    expected = mx.broadcast_to(state[:, None], cells.shape) if gate > 0 else gates[:, :, 0]
    np.testing.assert_allclose(cells, expected, rtol=0, atol=1e-5)
    assert mx.isfinite(mx.grad(lambda gates: linear_recurrence(gates).sum())(gates)).all()


@pytest.mark.parametrize("projection", [False, True])
def test_ssru_equals_a_plain_numpy_pass(projection):
    layer = random_model(dataclasses.replace(SETTINGS["ssru"], ssru_projection=projection)).decoder.layers[1].ssru
    x = mx.random.normal((3, 20, 16), key=mx.random.key(5))
    cells = linear_recurrence(layer.gates(x))
    np.testing.assert_allclose(layer(cells), numpy_ssru(layer, x), rtol=0, atol=2e-6)
    np.testing.assert_allclose(layer(cells, x), numpy_ssru(layer, x) + np.array(x), rtol=0, atol=3e-6)
    assert ("out_proj" in layer, "bias" in layer.input_proj, "bias" in layer.forget_proj) == (projection, False, True)


def test_cache_holds_one_state_of_constant_size():
    gates = random_gates(12)
    cache = CellCache([mx.zeros((2, 5)), mx.zeros((2, 5))], mx.array(0, mx.int32))
    pieces = [cache.update_and_fetch(1, piece) for piece in mx.split(gates, [1, 5, 6], axis=1)]
    cache.resize(3, 100)
    np.testing.assert_allclose(mx.concatenate(pieces, axis=1), step_by_step(gates), rtol=0, atol=2e-6)
    assert cache.layers[1].shape == (2, 5)
    assert not cache.layers[0].any()


def test_sums_of_pieces_equal_those_of_all_positions_at_once():
    x = mx.random.normal((2, 12, 5), key=mx.random.key(6))
    cache = SumCache([mx.zeros((2, 6))], mx.array(0, mx.int32))
    pieces = [cache.update_and_fetch(0, piece) for piece in mx.split(x, [1, 5, 6], axis=1)]
    sums = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(sums, running_sums(x), rtol=0, atol=2e-6)
    np.testing.assert_allclose(sums[..., :5], np.cumsum(x, axis=1), rtol=0, atol=2e-6)
    assert (sums[..., 5] == np.arange(1, 13)).all() and cache.layers[0].shape == (2, 6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mlp_dims", [None, 20])
def test_average_attention_equals_a_plain_numpy_pass(gated, mlp_dims):
    average = AverageAttentionConfig(mlp_dims, activation="tanh", gated=gated)
    layer = random_model(dataclasses.replace(SETTINGS["average"], average_attention=average))
    layer = layer.decoder.layers[1].average_attention
    inputs = mx.random.normal((3, 20, 16), key=mx.random.key(5))
    x = np.array(inputs, np.float64)

    def apply(module, x):
        return x @ np.array(module.weight, np.float64).T + np.array(module.bias)

    y = np.cumsum(x, axis=1) / np.arange(1, 21)[:, None]
    if mlp_dims:
        y = apply(layer.network.down_proj, np.tanh(apply(layer.network.up_proj, y)))
    if gated:
        gates = apply(layer.input_gate, x), apply(layer.mean_gate, y)
        y = x / (1 + np.exp(-gates[0])) + y / (1 + np.exp(-gates[1]))
    np.testing.assert_allclose(layer(inputs, running_sums(inputs)), y, rtol=0, atol=3e-6)
    np.testing.assert_allclose(layer(inputs, running_sums(inputs), inputs), x + y, rtol=0, atol=3e-6)
    assert (len(layer), "network" in layer) == (2 * gated + (mlp_dims is not None), mlp_dims is not None)


@pytest.mark.parametrize("name", ["ssru", "average"])
def test_low_precision_keeps_the_state_in_float32(name):
    model = random_model(SETTINGS[name])
    model.set_dtype(mx.float16)
    cache = model.new_cache(2, 4)
    source, target = padded(random_sources(model.config, [4, 4]), model.config), random_targets(model.config, 2, 3)
    assert model.decode(target, model.encode(source), cache).dtype == mx.float16
    assert {layer.dtype for layer in cache.layers} == {mx.float32}


def test_gates_keep_a_state_over_the_whole_target():
    """A copy of the first input survives 1,023 further positions if the gates say so."""
    layer = SSRU(dataclasses.replace(SETTINGS["ssru"], ssru_projection=False))
    layer.input_proj.weight = mx.eye(16)
    layer.forget_proj.weight = mx.zeros((16, 16))
    layer.forget_proj.bias = mx.full(16, 30.0)
    gates = layer.gates(mx.random.normal((1, 1024, 16)))
    first = mx.ones((1, 16))
    np.testing.assert_allclose(layer(linear_recurrence(gates, first))[:, -1], first, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_self_attention": "attention", "ssru_projection": True}, "ssru_projection needs decoder_self_attent"),
        ({"decoder": None, "ssru_projection": False}, "decoder_self_attention 'ssru' needs a decoder, but the model"),
        (
            {"decoder": dataclasses.replace(SETTINGS["ssru"].decoder, positions="relative")},
            "decoder_self_attention 'ssru' has no relative positions: set the decoder's positions to",
        ),
        (
            {"decoder_self_attention": "aan"},
            "must be one of 'attention', 'ssru', 'average', not 'aan'",
        ),
        ({"average_attention": AverageAttentionConfig()}, "average_attention belongs to .* 'average': set both, or"),
        ({"decoder_self_attention": "average", "ssru_projection": False}, "average_attention belongs to .*: set both"),
    ],
)
def test_what_does_not_fit_an_ssru_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS["ssru"], **changes)
    assert isinstance(SETTINGS["ssru"], ModelConfig)
