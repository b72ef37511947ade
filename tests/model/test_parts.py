"""The parts of the network on their own: stacks on embeddings, attention on queries, keys and values, masks."""

import mlx.core as mx
import pytest
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, random_targets

from mlx_transformer.model import Attention, causal_mask, padding_mask


@pytest.mark.parametrize("name", SETTINGS)
def test_stacks_give_the_hidden_states_of_the_model(name):
    model = random_model(SETTINGS[name])
    source, target = padded(random_sources(model.config, (3, 5)), model.config), random_targets(model.config, 2, 4)
    memory, embeddings = model.encode(source), model._target_embedding(target)
    hidden_states = model.encoder(model.source_embedding(source), padding_mask(source, model.config.pad_id))
    for layer, key_values in zip(model.decoder.layers, memory.key_values, strict=True):
        assert mx.array_equal(layer.cross_attention.key_values(hidden_states), key_values)
    expected = model.hidden_states(source, target)
    for mask in (None, "causal", causal_mask(4)):
        decoded = model.decoder(embeddings, mask, memory) * model.config.logit_scale
        assert mx.allclose(decoded, expected, rtol=1e-3, atol=1e-4)


def test_a_stack_refuses_token_ids():
    model = random_model(config())
    for wrong in (mx.array([3, 4]), mx.array([[3, 4]]), mx.zeros((1, 2, 3))):
        with pytest.raises(ValueError, match=r"takes token embeddings, .* call source_embedding on token ids"):
            model.encoder(wrong)


def test_attention_takes_queries_keys_values_and_a_mask():
    sizes = config()
    attention = Attention(sizes, sizes.encoder)
    queries, keys, values = (mx.random.normal((2, length, sizes.dims)) for length in (3, 5, 5))
    q = attention.split_heads(attention.query_proj(queries), 2)
    k, v = attention.key_values(keys)[:, :, 0], attention.key_values(values)[:, :, 1]
    mask = mx.array([[True, True, False, True, False]] * 2)[:, None, None]
    for given, allowed in ((None, mx.array(True)), (mask, mask)):
        scores = mx.where(allowed, q @ k.swapaxes(-1, -2) * attention.scale, -1e9)
        heads = mx.softmax(scores, axis=-1) @ v
        expected = attention.out_proj(heads.swapaxes(1, 2).reshape(2, 3, -1))
        assert mx.allclose(attention.attend(queries, keys, values, given), expected, atol=1e-4)
    assert mx.array_equal(attention.attend(queries, keys), attention.attend(queries, keys, keys))


def test_masks():
    assert padding_mask(mx.array([[5, 0, 6], [5, 0, 0]]), 0).tolist() == [[[[True] * 3]], [[[True, False, False]]]]
    assert causal_mask(2).tolist() == [[[[True, False], [True, True]]]]
