"""What must hold for the search: plain loops, brute force and transformers find the same hypotheses and scores."""

import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from plain_search import CLOSE, Teacher, check_equals_plain, with_end
from tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from mlx_transformer.config import SearchConfig
from mlx_transformer.layout import join
from mlx_transformer.model import Transformer
from mlx_transformer.request import token_limit
from mlx_transformer.search import generate_ids
from mlx_transformer.selection import top_k

LENGTHS = (3, 7, 5, 4, 6)
LENGTH_PENALTIES = (0, 0.6, 1, 2, -1)
EARLY_STOPPING = (False, True, "never")
SMALL = config(source_vocab_size=9, target_vocab_size=9, output_bias=True)


@pytest.fixture(autouse=True)
def uncompiled(request):
    """Most tests compile nothing, for on a CPU every new trace costs seconds."""
    if "compiled" not in request.node.name:
        mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def model():
    """Some of its hypotheses end early, some late, some never."""
    return random_model(SMALL, gain=2, eos_bias=3, seed=1)


@pytest.fixture(scope="module")
def other_model():
    """Separate vocabularies, an output layer of its own, learned positions."""
    return random_model(SETTINGS["learned_positions"], gain=2, eos_bias=2, seed=2)


@pytest.fixture(params=["model", "other_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def sources(model):
    return random_sources(model.config, LENGTHS, seed=5)


@pytest.fixture(scope="module")
def teacher(model):
    return Teacher(model)


def naive_greedy(model, source, limit):
    """The most probable token at each step, without cache."""
    ids = []
    while len(ids) < limit:
        logits = model(mx.array([source]), mx.array([[model.config.start_id, *ids]]))
        ids.append(mx.argmax(logits[0, -1]).item())
        if ids[-1] == model.config.eos_id:
            break
    return tuple(ids)


def test_a_beam_of_one_is_the_naive_argmax(any_model):
    model = any_model
    sources = random_sources(model.config, LENGTHS, seed=5)
    found = generate_ids(model, padded(sources, model.config), SearchConfig(max_tokens=12))
    expected = [naive_greedy(model, source, limit=12) for source in sources]
    assert [with_end(h, model.config.eos_id) for (h,) in found] == expected
    assert len(set(map(len, expected))) > 1


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_a_score_is_the_teacher_forced_score(any_model, beam_size, length_penalty, tolerance):
    model = any_model
    sources = random_sources(model.config, LENGTHS, seed=5)
    search = SearchConfig(beam_size, beam_size, max_tokens=9, length_penalty=length_penalty)
    reasons = set()
    for source, hypotheses in zip(sources, generate_ids(model, padded(sources, model.config), search), strict=True):
        for hypothesis in hypotheses:
            ids = with_end(hypothesis, model.config.eos_id)
            target = mx.array([[model.config.start_id, *ids[:-1]]])
            logits = np.array(model(mx.array([source]), target)[0], np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            expected = logprobs[np.arange(len(ids)), ids].sum() / len(ids) ** length_penalty
            assert hypothesis.score == pytest.approx(expected, abs=tolerance(CLOSE))
            reasons.add(hypothesis.finish_reason)
    assert reasons == {"stop", "length"}


# Content tokens, most tokens, and the number of sequences that there are: those that end, and those that are cut.
@pytest.mark.parametrize("content, limit, count", [(3, 3, 1 + 3 + 9 * 4), (2, 4, 1 + 2 + 4 + 8 * 3)])
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_a_wide_beam_is_brute_force(content, limit, count, early_stopping, length_penalty, tolerance):
    vocab = 3 + content
    model = random_model(config(source_vocab_size=vocab, target_vocab_size=vocab, output_bias=True), eos_bias=0.5)
    teacher = Teacher(model)
    source = random_sources(model.config, [5])[0]
    eos_id = model.config.eos_id
    tokens = [eos_id, *range(3, vocab)]
    expected = []
    for ids in itertools.chain(*(itertools.product(tokens, repeat=n) for n in range(1, limit + 1))):
        if eos_id not in ids[:-1] and (ids[-1] == eos_id or len(ids) == limit):
            logprob = sum(teacher(source, [ids[:i]])[0, token] for i, token in enumerate(ids))
            expected.append((logprob / len(ids) ** length_penalty, ids))
    expected.sort(reverse=True)
    assert len(expected) == count

    # Wide enough for all: no sequence is ever cut off, and none may stop the search before the last.
    search = SearchConfig(count, count, limit, 0, length_penalty, early_stopping, suppress_ids=(0, 2))
    found = generate_ids(model, mx.array([source]), search)[0]
    assert {with_end(h, eos_id) for h in found} == {ids for _, ids in expected}
    np.testing.assert_allclose([h.score for h in found], [score for score, _ in expected], atol=tolerance(CLOSE))


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_beam_search_is_the_plain_one(teacher, sources, beam_size, length_penalty, early_stopping, tolerance):
    search = SearchConfig(beam_size, beam_size, 8, 0, length_penalty, early_stopping)
    check_equals_plain(teacher, sources, search, tolerance)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{"min_tokens": 4}, {"suppress_ids": (0, 4, 7)}, {"max_tokens": 1}, {"min_tokens": 8}, {"suppress_ids": (1,)}],
    ids=str,
)
def test_constrained_search_is_the_plain_one(teacher, sources, beam_size, changes, tolerance):
    search = dataclasses.replace(SearchConfig(beam_size, beam_size, 8), **changes)
    check_equals_plain(teacher, sources, search, tolerance)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
def test_the_plain_search_of_a_model_with_two_vocabularies(other_model, early_stopping, tolerance):
    sources = random_sources(other_model.config, LENGTHS, seed=5)
    search = SearchConfig(4, 3, 8, early_stopping=early_stopping)
    check_equals_plain(Teacher(other_model), sources, search, tolerance)


@pytest.mark.parametrize("length_penalty", [-0.3, -0.6, -1])
def test_with_a_negative_penalty_shorter_is_better_so_nothing_is_gained_later(sources, length_penalty, tolerance):
    teacher = Teacher(random_model(SMALL, gain=2, eos_bias=4, seed=5))
    search = SearchConfig(3, 3, 12, 0, length_penalty, early_stopping="never")
    check_equals_plain(teacher, sources, search, tolerance)


@pytest.mark.parametrize("max_tokens", [32, 33, 70])
@pytest.mark.parametrize("beam_size", [1, 2])
def test_long_targets_outgrow_the_first_capacity(sources, beam_size, max_tokens, tolerance):
    long = dataclasses.replace(SMALL, decoder=stack(max_length=70))
    teacher = Teacher(random_model(long, gain=2, seed=2))
    search = SearchConfig(beam_size, beam_size, max_tokens, suppress_ids=(1,))
    assert check_equals_plain(teacher, sources[:2], search, tolerance) == [max_tokens] * 2


def assert_same(actual, expected, tolerance):
    for hypotheses, others in zip(actual, expected, strict=True):
        assert [(h.ids, h.finish_reason) for h in hypotheses] == [(h.ids, h.finish_reason) for h in others]
        scores = [[h.score for h in group] for group in (hypotheses, others)]
        np.testing.assert_allclose(*scores, atol=tolerance(CLOSE))


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("beam_size", [1, 3, 4])
def test_a_sentence_in_any_batch_is_the_sentence_alone(model, sources, beam_size, early_stopping, tolerance):
    search = SearchConfig(beam_size, beam_size, 20, early_stopping=early_stopping)
    alone = [generate_ids(model, mx.array([source]), search)[0] for source in sources]
    lengths = {len(hypothesis.ids) for hypotheses in alone for hypothesis in hypotheses}
    assert len(lengths) >= 3, "the sentences must end at different steps"
    assert_same(generate_ids(model, padded(sources, model.config), search), alone, tolerance)
    assert_same(generate_ids(model, padded(sources[::-1], model.config, 16), search), alone[::-1], tolerance)
    assert_same(generate_ids(model, padded(sources[1:3], model.config), search), alone[1:3], tolerance)


@pytest.mark.parametrize("num_hypotheses", [1, 3, 4])
def test_hypotheses_are_as_many_as_asked_for_distinct_and_best_first(model, sources, num_hypotheses):
    search = SearchConfig(4, num_hypotheses, max_tokens=8)
    best = generate_ids(model, padded(sources, model.config), dataclasses.replace(search, num_hypotheses=4))
    for hypotheses, all_four in zip(generate_ids(model, padded(sources, model.config), search), best, strict=True):
        assert hypotheses == all_four[:num_hypotheses]
        assert len(hypotheses) == num_hypotheses
        assert len({with_end(h, 1) for h in hypotheses}) == num_hypotheses
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_fewer_hypotheses_where_no_more_exist(model, sources):
    search = SearchConfig(4, 4, max_tokens=1, suppress_ids=tuple(range(2, 8)))
    for hypotheses in generate_ids(model, padded(sources, model.config), search):
        assert {with_end(h, 1) for h in hypotheses} == {(1,), (8,)}


def test_limits_of_sources_hold_for_each(teacher, sources, tolerance):
    limits = [1, 9, 2, 5, 3]
    for beam_size in (1, 3):
        for early_stopping in EARLY_STOPPING:
            search = SearchConfig(beam_size, beam_size, early_stopping=early_stopping)
            check_equals_plain(teacher, sources, search, tolerance, limits)


def test_the_finish_reason_tells_an_end_from_a_cut(model, sources):
    source = padded(sources, model.config)
    for (hypothesis,) in generate_ids(model, source, SearchConfig(max_tokens=5, suppress_ids=(1,))):
        assert (hypothesis.finish_reason, len(hypothesis.ids)) == ("length", 5)
    for (hypothesis,) in generate_ids(model, source, SearchConfig(max_tokens=5, suppress_ids=(0, *range(2, 9)))):
        assert (hypothesis.finish_reason, hypothesis.ids) == ("stop", [])


def test_the_limit_follows_the_source_but_never_exceeds_the_positions(model, sources):
    assert token_limit(model, 3, SearchConfig()) == 40
    assert token_limit(model, 3, SearchConfig(max_tokens=7)) == 7
    short = random_model(config(decoder=stack(max_length=100)))
    assert token_limit(short, 3, SearchConfig()) == 56
    source = padded(sources, model.config)
    endless = SearchConfig(suppress_ids=(model.config.eos_id,))
    for limits in (None, [500] * len(sources)):
        found = generate_ids(model, source, endless, limits)
        assert [len(hypothesis.ids) for (hypothesis,) in found] == [40] * len(sources)


def test_the_models_own_search_is_the_default(model, sources):
    source = padded(sources, model.config)
    ours = Transformer(SMALL, search_defaults=SearchConfig(3, 2, max_tokens=4))
    ours.eval()
    ours.update(model.parameters())
    assert generate_ids(ours, source) == generate_ids(model, source, ours.search_defaults)


def test_sources_longer_than_the_positions_are_refused(model):
    with pytest.raises(ValueError, match="A source must be at most 40 tokens long, not 41: shorten or split it."):
        generate_ids(model, mx.full((1, 41), 3))


def test_compiled_search_is_the_uncompiled_one_and_sees_new_weights(sources, tolerance):
    model = random_model(SMALL)
    source = padded(sources, SMALL)
    search = SearchConfig(3, 3, max_tokens=40, min_tokens=2, length_penalty=0.6, suppress_ids=(0,))
    results = []
    for seed in (0, 1):
        model.update(random_model(SMALL, gain=2, seed=seed).parameters())
        compiled = generate_ids(model, source, search)
        mx.disable_compile()
        results.append(generate_ids(model, source, search))
        mx.enable_compile()
        assert_same(compiled, results[-1], tolerance)
    assert max(len(h.ids) for hypotheses in results[0] for h in hypotheses) > 32
    assert results[0] != results[1]


@pytest.mark.parametrize("size, k", [(5, 1), (5, 3), (5, 5), (4, 9), (1000, 8)])
def test_top_k_is_sorted(size, k):
    values = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    values[0, 0] = -np.inf
    found, places = top_k(mx.array(values), k)
    np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, np.array(places), axis=1), found)


# Marian's name -> ours, inside a layer.
MARIAN = {
    "self_attn.q_proj": "self_attention.query_proj",
    "self_attn.k_proj": "self_attention.key_proj",
    "self_attn.v_proj": "self_attention.value_proj",
    "self_attn.out_proj": "self_attention.out_proj",
    "self_attn_layer_norm": "self_attention_residual.norm",
    "encoder_attn.q_proj": "cross_attention.query_proj",
    "encoder_attn.k_proj": "cross_attention.key_proj",
    "encoder_attn.v_proj": "cross_attention.value_proj",
    "encoder_attn.out_proj": "cross_attention.out_proj",
    "encoder_attn_layer_norm": "cross_attention_residual.norm",
    "fc1": "feed_forward.up_proj",
    "fc2": "feed_forward.down_proj",
    "final_layer_norm": "feed_forward_residual.norm",
}
MARIAN_PAD, MARIAN_EOS = 18, 0


def marian_pair(activation, seed):
    """A tiny random Marian of transformers, whose start token is its padding, and ours with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # its threads wait for each other busily: on a loaded machine that takes minutes
    theirs = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=19,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=20,
            max_position_embeddings=40,
            activation_function=activation,
            scale_embedding=True,
            pad_token_id=MARIAN_PAD,
            eos_token_id=MARIAN_EOS,
            decoder_start_token_id=MARIAN_PAD,
            forced_eos_token_id=None,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in theirs.named_parameters():
        if "embed_positions" not in name:
            deviation = 0.5 if name == "model.shared.weight" else 0.3
            torch.nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, deviation, generator=generator)
    torch.nn.init.normal_(theirs.final_logits_bias, generator=generator)
    theirs.final_logits_bias[0, MARIAN_EOS] = 6.0

    state = theirs.state_dict()
    table = theirs.model.encoder.embed_positions.weight  # sines in the left half, cosines in the right
    weights = {"source_embedding.weight": state["model.shared.weight"], "output_bias": state["final_logits_bias"][0]}
    weights |= {f"{name}.positions.weight": table for name in ("encoder", "decoder")}
    for name, value in state.items():
        if name.startswith(("model.encoder.layers", "model.decoder.layers")):
            _, name, _, layer, part = name.split(".", 4)
            part, kind = part.rsplit(".", 1)
            weights[f"{name}.layers.{layer}.{MARIAN[part]}.{kind}"] = value
    ours = random_model(
        config(
            encoder=stack(num_layers=2, num_heads=2, mlp_dims=24),
            decoder=stack(num_layers=1, num_heads=4, mlp_dims=20),
            output_bias=True,
            activation={"swish": "silu", "relu": "relu"}[activation],
            pad_id=MARIAN_PAD,
            eos_id=MARIAN_EOS,
            start_id=MARIAN_PAD,
        )
    )
    arrays = {name: mx.array(value.detach().numpy()) for name, value in weights.items()}
    ours.load_weights(list(join(arrays).items()))
    return theirs, ours


@pytest.fixture(scope="module", params=["swish", "relu"])
def marian(request):
    theirs, ours = marian_pair(request.param, seed=0)
    sources = np.random.default_rng(0).integers(1, MARIAN_PAD, (6, 9))
    for row, length in zip(sources, (9, 4, 7, 3, 8, 5), strict=True):
        row[length - 1] = MARIAN_EOS
        row[length:] = MARIAN_PAD
    return theirs, ours, sources


@pytest.mark.torch
def test_logits_equal_those_of_transformers(marian, tolerance):
    import torch

    theirs, ours, sources = marian
    target = np.random.default_rng(1).integers(0, 19, (len(sources), 7))
    target[:, 0] = MARIAN_PAD
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor(sources),
            attention_mask=torch.tensor(sources != MARIAN_PAD).long(),
            decoder_input_ids=torch.tensor(target),
        ).logits
    found = ours(mx.array(sources.astype(np.int32)), mx.array(target.astype(np.int32)))
    np.testing.assert_allclose(np.array(found), logits.numpy(), atol=tolerance(CLOSE))


def check_equals_transformers(marian, search, tolerance):
    import torch

    theirs, ours, sources = marian
    output = theirs.generate(
        torch.tensor(sources),
        attention_mask=torch.tensor(sources != MARIAN_PAD).long(),
        num_beams=search.beam_size,
        num_return_sequences=search.num_hypotheses,
        max_new_tokens=search.max_tokens,
        min_length=search.min_tokens,  # counts the start token, but not the end token
        length_penalty=search.length_penalty if search.beam_size > 1 else None,
        early_stopping=search.early_stopping if search.beam_size > 1 else None,
        suppress_tokens=list(search.suppress_ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = [tuple(i for i in row[1:].tolist() if i != MARIAN_PAD) for row in output.sequences]
    found = generate_ids(ours, mx.array(sources.astype(np.int32)), search)
    found = [hypothesis for hypotheses in found for hypothesis in hypotheses]
    assert [with_end(hypothesis, MARIAN_EOS) for hypothesis in found] == expected
    if search.beam_size > 1:  # greedy search of transformers gives no scores
        scores = [hypothesis.score for hypothesis in found]
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), atol=tolerance(CLOSE))
    return {hypothesis.finish_reason for hypothesis in found}


@pytest.mark.torch
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_beams_equal_those_of_transformers(marian, length_penalty, early_stopping, tolerance):
    for beam_size, num_hypotheses in ((3, 1), (4, 4)):
        search = SearchConfig(
            beam_size, num_hypotheses, 8, 0, length_penalty, early_stopping, suppress_ids=(MARIAN_PAD,)
        )
        assert "stop" in check_equals_transformers(marian, search, tolerance)


@pytest.mark.torch
@pytest.mark.parametrize("min_tokens", [0, 4])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_limits_equal_those_of_transformers(marian, beam_size, min_tokens, tolerance):
    search = SearchConfig(beam_size, max_tokens=6, min_tokens=min_tokens, suppress_ids=(MARIAN_PAD, 3))
    check_equals_transformers(marian, search, tolerance)


@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("length", [5, 128, 1024, 1025, 3001])
def test_top_k_gives_the_largest_values_and_their_places(k, length):
    values = np.random.default_rng(length).normal(size=(3, length)).astype(np.float32)
    values[1, : length // 2] = -np.inf
    found, places = (np.array(array) for array in top_k(mx.array(values), k))
    order = np.argsort(-values, axis=1)[:, :k]
    np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=1))
    np.testing.assert_array_equal(places[found > -np.inf], order[found > -np.inf])
    assert ((places >= 0) & (places < length)).all()


def test_padding_is_never_generated(model, sources):
    eager = random_model(SMALL, gain=2, eos_bias=0, seed=1)
    eager.output_bias = mx.where(mx.arange(9) == 0, 50.0, eager.output_bias)
    for beam_size in (1, 3):
        for hypotheses in generate_ids(eager, padded(sources, SMALL), SearchConfig(beam_size, beam_size, 6)):
            assert all(0 not in hypothesis.ids for hypothesis in hypotheses)


@pytest.mark.parametrize("beam_size, repetition_penalty", [(1, 1.0), (3, 1.0), (3, 1.5)])
def test_each_source_may_have_a_start_and_a_forced_first_token_of_its_own(
    model, sources, beam_size, repetition_penalty, tolerance
):
    search = SearchConfig(beam_size=beam_size, max_tokens=9, repetition_penalty=repetition_penalty)
    starts, firsts = [2, 5, 3, 7, 2], [4, 4, 6, 3, 8]
    batch = padded(sources, model.config)
    found = generate_ids(model, batch, search, start_ids=starts, forced_bos_ids=firsts)
    free = generate_ids(model, batch, search, start_ids=starts)
    for row, (source, start, first) in enumerate(zip(sources, starts, firsts, strict=True)):
        alone = Transformer(dataclasses.replace(model.config, start_id=start), search)
        alone.update(model.parameters())
        alone.eval()
        for result, rules in ((found[row], {"forced_bos_id": first}), (free[row], {})):
            (expected,) = generate_ids(alone, mx.array([source]), dataclasses.replace(search, **rules))
            assert [h.ids for h in result] == [h.ids for h in expected]
            np.testing.assert_allclose([h.score for h in result], [h.score for h in expected], atol=tolerance(CLOSE))
        assert found[row][0].ids[0] == first
    assert [h.ids for (h,) in free] != [h.ids for (h,) in generate_ids(model, batch, search)]


@pytest.mark.parametrize(
    "changes", [{"start_ids": [2]}, {"start_ids": [2, 2, 2, 2, 9]}, {"forced_bos_ids": [0, 1, 2, 3, -1]}]
)
def test_starts_are_tokens_one_for_each_source(model, sources, changes):
    with pytest.raises(ValueError, match="_ids must be 5 numbers from 0 to 8, one for each source"):
        generate_ids(model, padded(sources, model.config), SearchConfig(max_tokens=3), **changes)
