"""Properties of the model in every setting: caching, batching, causality, gradients, compilation, parity with torch."""

import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, random_targets, stack

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model import transformer
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.transformer import FeedForward, Memory, Transformer, sinusoidal_positions

LENGTHS = (3, 7, 5)


@pytest.fixture(params=SETTINGS, scope="module")
def model(request):
    return random_model(SETTINGS[request.param])


@pytest.fixture
def close(tolerance):
    def check(actual, expected, limit=1e-5):
        np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=tolerance(limit), atol=tolerance(limit))

    return check


@pytest.fixture
def source(model):
    return padded(random_sources(model.config, LENGTHS), model.config)


@pytest.fixture
def target(model):
    return random_targets(model.config, rows=len(LENGTHS), length=6)


def cached_logits(model, target, memory, pieces, capacity):
    """Decode the target in pieces of the given lengths with a cache."""
    cache = model.new_cache(target.shape[0], capacity)
    logits = []
    start = 0
    for length in pieces:
        if start + length > capacity:
            capacity *= 2
            cache.resize(0, capacity)
        logits.append(model.decode(target[:, start : start + length], memory, cache))
        start += length
    assert cache.length.item() == target.shape[1]
    return mx.concatenate(logits, axis=1)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (6,)], ids=str)
@pytest.mark.parametrize("capacity", [3, 6, 11])
def test_cached_decoding_equals_full_decoding(model, source, target, close, pieces, capacity):
    memory = model.encode(source)
    close(cached_logits(model, target, memory, pieces, capacity), model.decode(target, memory))


def test_a_batch_equals_single_sentences(model, source, target, close):
    together = model(source, target)
    assert together.shape == (len(LENGTHS), 6, model.config.target_vocab_size)
    for row, length in enumerate(LENGTHS):
        close(together[row], model(source[row : row + 1, :length], target[row : row + 1])[0])


def test_masked_tokens_do_not_change_logits(model, source, target, close):
    mask = source != model.config.pad_id
    rubbish = mx.where(mask, source, 3 + mx.arange(source.shape[1]))
    memory = model.encode(rubbish, mask)
    close(model.decode(target, memory), model(source, target))
    assert memory.mask.tolist() == mask[:, None, None].tolist()


def test_only_trailing_pad_tokens_count_as_padding(model, source, target, close):
    """Elsewhere the pad id is an ordinary token of the text."""
    mask = source != model.config.pad_id
    typed = mx.array(source)
    typed[:, 0] = model.config.pad_id
    close(model(typed, target), model.decode(target, model.encode(typed, mask)))
    assert not mx.allclose(model(typed, target), model(source, target))


def test_decoder_is_causal(model, source, target, tolerance):
    expected = model(source, target)
    for position in range(1, target.shape[1]):
        other = mx.array(target)
        other[:, position] = (target[:, position] - 2) % (model.config.target_vocab_size - 3) + 3
        logits = model(source, other)
        assert mx.allclose(logits[:, :position], expected[:, :position], rtol=0, atol=tolerance(1e-6))
        assert not mx.any(mx.all(mx.isclose(logits, expected)[:, position:], axis=-1))


def test_every_source_token_affects_the_logits(model, source, target):
    expected = model(source, target)
    for row, length in enumerate(LENGTHS):
        for position in range(length):
            other = mx.array(source)
            other[row, position] = (source[row, position] - 2) % (model.config.source_vocab_size - 3) + 3
            changed = ~mx.all(mx.isclose(model(other, target), expected), axis=-1)
            assert changed.all(axis=1).tolist() == [i == row for i in range(len(LENGTHS))]


def test_every_trainable_parameter_gets_a_gradient(model, source, target):
    weights = mx.random.normal((*target.shape, model.config.target_vocab_size), key=mx.random.key(1))
    _, gradients = nn.value_and_grad(model, lambda: (model(source, target) * weights).sum())()
    largest = {name: mx.abs(value).max().item() for name, value in split_projections(gradients).items()}
    assert largest.keys() == split_projections(model.trainable_parameters()).keys()
    for name, value in largest.items():
        if name.endswith("key_proj.bias"):
            assert value < 1e-3, f"{name}: softmax is blind to a constant"
        else:
            assert value > 1e-2, name


def test_only_learned_positions_are_trainable(model):
    trained = dict(tree_flatten(model.trainable_parameters()))
    for name in ("encoder", "decoder"):
        kind = getattr(model.config, name).positions
        assert (f"{name}.positions.weight" in trained) == (kind == "learned")
        rows = kind in ("learned", "sinusoidal")
        assert (f"{name}.positions.weight" in dict(tree_flatten(model.parameters()))) == rows


@pytest.mark.parametrize("length", [1, 3])
def test_folded_beams_equal_repeated_memory(model, source, close, length):
    beams = 3
    target = random_targets(model.config, rows=beams * len(LENGTHS), length=2 * length, seed=1)
    memory = model.encode(source)
    repeated = Memory([mx.repeat(kv, beams, axis=0) for kv in memory.key_values], mx.repeat(memory.mask, beams, axis=0))
    pieces = (length, length)
    close(
        cached_logits(model, target, memory, pieces, capacity=8),
        cached_logits(model, target, repeated, pieces, capacity=8),
    )
    close(model.decode(target, memory), model.decode(target, repeated))


def forward(model, source, target):
    return model(source, target)


@pytest.mark.parametrize("name", ["pre_norm", "learned_positions"])
def test_compiled_model_equals_uncompiled_and_sees_new_weights(name, close):
    model = random_model(SETTINGS[name])
    source = padded(random_sources(model.config, LENGTHS), model.config)
    target = random_targets(model.config, rows=len(LENGTHS), length=6)
    before = model(source, target)
    close(model.compiled(forward)(source, target), before)
    model.update(random_model(SETTINGS[name], seed=1).parameters())
    after = model(source, target)
    assert not mx.allclose(before, after, atol=0.1)
    close(model.compiled(forward)(source, target), after)


def test_compiled_functions_depend_on_the_training_flag(close):
    model = random_model(config(dropout=0.5))
    source = padded(random_sources(model.config, LENGTHS), model.config)
    target = random_targets(model.config, rows=len(LENGTHS), length=6)
    expected = model(source, target)
    close(model.compiled(forward)(source, target), expected)
    model.train()
    assert not mx.allclose(model.compiled(forward)(source, target), expected, atol=0.1)
    model.eval()
    close(model.compiled(forward)(source, target), expected)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_low_precision_stays_close_to_float32(model, source, target, dtype):
    expected = model(source, target)
    low = Transformer(model.config)
    low.eval()
    low.update(model.parameters())
    low.set_dtype(dtype)
    assert low.dtype == dtype
    memory = low.encode(source)
    logits = low.decode(target, memory)
    steps = cached_logits(low, target, memory, pieces=(1, 5), capacity=8)
    assert {logits.dtype, steps.dtype, *(kv.dtype for kv in memory.key_values)} == {dtype}
    limit = 0.02 if dtype == mx.float16 else 0.15
    assert mx.abs(logits - expected).max().item() < limit
    assert mx.abs(steps - expected).max().item() < limit


def test_sequences_longer_than_the_position_table_are_rejected(model):
    source, target = model.config.encoder.max_length, model.config.decoder.max_length
    memory = model.encode(mx.full((1, source), 3))
    assert model.decode(mx.full((1, target), 3), memory).shape[1] == target
    with pytest.raises(ValueError, match=f"A source must be at most {source} tokens long, not {source + 1}: shorten"):
        model.encode(mx.full((1, source + 1), 3))
    with pytest.raises(ValueError, match=f"A target must be at most {target} tokens long, not {target + 1}: shorten"):
        model.decode(mx.full((1, target + 1), 3), memory)


@pytest.mark.parametrize("dims", [8, 7])
def test_sinusoidal_positions_follow_the_paper(dims, close):
    table = sinusoidal_positions(50, dims)
    assert table.shape == (50, dims)
    for position in (0, 1, 2, 17, 49):
        for column in range(dims):
            angle = position / 10000 ** (2 * (column // 2) / dims)
            close(table[position, column], math.cos(angle) if column % 2 else math.sin(angle))


@pytest.mark.parametrize("scaled", [True, False])
def test_token_embeddings_are_scaled_by_sqrt_dims(scaled, close):
    model = random_model(config(encoder=stack(scale_embeddings=scaled)))
    tokens = model.source_embedding(mx.array([[5, 6, 5]]))
    embedded = model.encoder.embed(tokens)
    close(embedded - sinusoidal_positions(3, 16), tokens * (4 if scaled else 1))
    close(model.encoder.embed(tokens, mx.array(7)) - sinusoidal_positions(10, 16)[7:], tokens * (4 if scaled else 1))


def test_scaled_embeddings_have_unit_standard_deviation():
    model = Transformer(config(source_vocab_size=3000, target_vocab_size=3000))
    table = model.source_embedding.weight * model.encoder.scale
    assert table.var().item() == pytest.approx(1, rel=0.05)
    assert all(not value.any() for name, value in tree_flatten(model.parameters()) if name.endswith("bias"))


def linear_names(prefix, *parts):
    return {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def layer_names(prefix, *attentions):
    names = linear_names(f"{prefix}.feed_forward", "up_proj", "down_proj")
    for sublayer in (*attentions, "feed_forward"):
        names |= linear_names(f"{prefix}.{sublayer}_residual", "norm")
    for attention in attentions:
        names |= linear_names(f"{prefix}.{attention}", "query_proj", "key_proj", "value_proj", "out_proj")
    return names


def test_parameter_names_match_the_file_format():
    shared = {"source_embedding.weight", "encoder.positions.weight", "decoder.positions.weight"}
    shared |= layer_names("encoder.layers.0", "self_attention")
    shared |= layer_names("decoder.layers.0", "self_attention", "cross_attention")
    assert set(split_projections(Transformer(SETTINGS["post_norm"]).parameters())) == shared

    final_norms = linear_names("encoder", "norm") | linear_names("decoder", "norm")
    pre_norm = shared | layer_names("encoder.layers.1", "self_attention") | final_norms | {"output_bias"}
    assert set(split_projections(Transformer(SETTINGS["pre_norm"]).parameters())) == pre_norm

    separate = shared | layer_names("decoder.layers.1", "self_attention", "cross_attention") | final_norms
    separate |= {"target_embedding.weight", "output.weight", "output.bias"}
    assert set(split_projections(Transformer(SETTINGS["learned_positions"]).parameters())) == separate


def test_model_without_biases_has_no_bias_parameter(model):
    biasless = dict.fromkeys(("output_bias", "attention_bias", "attention_out_bias", "mlp_bias", "norm_bias"), False)
    biasless |= {"norm": "rms" if model.config.norm == "rms" else "layer"}
    names = dict(tree_flatten(Transformer(dataclasses.replace(model.config, **biasless)).parameters()))
    # The gates of an SSRU and of average attention always have biases, as in Marian, and the SSRU's output projection.
    assert not [name for name in names if name.endswith("bias") and ".ssru." not in name and "_gate." not in name]


def test_deep_feed_forward_networks_activate_and_drop_after_each_layer_but_the_last(monkeypatch, close):
    monkeypatch.setattr(transformer, "dropout", lambda x, rate: x / (1 - rate))  # so that each one can be counted
    network = FeedForward(config(activation_dropout=0.75), stack(mlp_layers=4))
    names = {f"x.{name}" for name, _ in tree_flatten(network.parameters())}
    assert names == linear_names("x", "up_proj", "hidden_projs.0", "hidden_projs.1", "down_proj")
    x = inner = mx.random.normal((2, 3, 16))
    for layer in (network.up_proj, *network.hidden_projs):
        inner = mx.maximum(inner @ layer.weight.T, 0)
    expected = inner @ network.down_proj.weight.T
    close(network(x), expected * 4**3)
    network.eval()
    close(network(x), expected)


def test_search_defaults_are_stored():
    assert Transformer(config()).search_defaults == SearchConfig()
    assert Transformer(config(), SearchConfig(beam_size=4)).search_defaults.beam_size == 4


# PyTorch's layer -> ours; norms are counted in the order of the sublayers.
TORCH_ENCODER = {"self_attn": "self_attention"}
TORCH_DECODER = {"self_attn": "self_attention", "multihead_attn": "cross_attention"}


def from_torch(state, config):
    """Copy the weights of torch.nn.Transformer into our stacks."""
    weights = {}
    for name, num_layers, attentions in (
        ("encoder", config.encoder.num_layers, TORCH_ENCODER),
        ("decoder", config.decoder.num_layers, TORCH_DECODER),
    ):
        for kind in ("weight", "bias"):
            weights[f"{name}.norm.{kind}"] = state[f"{name}.norm.{kind}"]
            for layer in (f"{name}.layers.{i}" for i in range(num_layers)):
                for theirs, ours in attentions.items():
                    parts = state[f"{layer}.{theirs}.in_proj_{kind}"].chunk(3)
                    for part, rows in zip(("query", "key", "value"), parts, strict=True):
                        weights[f"{layer}.{ours}.{part}_proj.{kind}"] = rows
                    weights[f"{layer}.{ours}.out_proj.{kind}"] = state[f"{layer}.{theirs}.out_proj.{kind}"]
                for number, ours in enumerate([*attentions.values(), "feed_forward"], start=1):
                    weights[f"{layer}.{ours}_residual.norm.{kind}"] = state[f"{layer}.norm{number}.{kind}"]
                weights[f"{layer}.feed_forward.up_proj.{kind}"] = state[f"{layer}.linear1.{kind}"]
                weights[f"{layer}.feed_forward.down_proj.{kind}"] = state[f"{layer}.linear2.{kind}"]
    return list(fuse_projections({name: mx.array(value.detach().numpy()) for name, value in weights.items()}).items())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("depths", [(1, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_torch_nn_transformer(norm_first, depths, activation, close):
    torch = pytest.importorskip("torch")
    dims, num_heads, mlp_dims, vocab = 16, 4, 24, 19
    stacks = [
        stack(num_layers=depth, num_heads=num_heads, mlp_dims=mlp_dims, norm_first=norm_first, final_norm=True)
        for depth in depths
    ]
    plain = config(dims=dims, encoder=stacks[0], decoder=stacks[1], activation=activation, tie_output=False)
    ours = Transformer(dataclasses.replace(plain, norm_eps=1e-2))
    ours.eval()
    torch.manual_seed(0)
    theirs = torch.nn.Transformer(
        dims,
        num_heads,
        *depths,
        mlp_dims,
        0.0,
        activation,
        layer_norm_eps=1e-2,
        batch_first=True,
        norm_first=norm_first,
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.4)
    embedding, output = torch.randn(vocab, dims), torch.randn(vocab, dims)
    weights = from_torch(theirs.state_dict(), ours.config)
    weights += [("source_embedding.weight", mx.array(embedding.numpy())), ("output.weight", mx.array(output.numpy()))]
    fixed = [(f"{name}.positions.weight", sinusoidal_positions(40, dims)) for name in ("encoder", "decoder")]
    ours.load_weights(weights + fixed)

    source = padded(random_sources(ours.config, LENGTHS), ours.config)
    target = random_targets(ours.config, rows=len(LENGTHS), length=6)
    table = torch.tensor(np.array(sinusoidal_positions(40, dims)))

    def embed(ids):
        ids = torch.tensor(np.array(ids)).long()
        return embedding[ids] * dims**0.5 + table[: ids.shape[1]]

    padding = torch.tensor(np.array(source == ours.config.pad_id))
    hidden_states = theirs(
        embed(source),
        embed(target),
        tgt_mask=torch.ones(6, 6).triu(1).bool(),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    close(ours(source, target), (hidden_states @ output.T).detach().numpy())
