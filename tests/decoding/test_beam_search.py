"""Properties of the search: reference loops, brute force and transformers give the same hypotheses and scores.

And a sentence gets the same ones in any batch, whatever leaves it or grows meanwhile.
"""

import dataclasses
import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.reference_search import CLOSE, Teacher, check_equals_reference, reference_search, with_end
from support.searches import RULES, SEARCHES
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding import beam_search, decode_step, logits_processors, running_search
from mlx_transformer.decoding.beam_search import generate_ids, stream_ids
from mlx_transformer.decoding.hypothesis import NoHypothesisError
from mlx_transformer.model.fused_projections import fuse_projections
from mlx_transformer.model.quantization import quantize_weights
from mlx_transformer.model.transformer import Transformer

LENGTHS = (3, 7, 5, 4, 6)
LENGTH_PENALTIES = (0, 0.6, 1, 2, -1)
EARLY_STOPPING = (False, True, "never")
SMALL = config(source_vocab_size=9, target_vocab_size=9, output_bias=True)


@pytest.fixture(autouse=True)
def uncompiled(request):
    """Most tests disable compilation, because every trace takes seconds on a CPU."""
    if "compiled" not in request.node.name:
        mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def model():
    """A model whose hypotheses end early, late or never."""
    return random_model(SMALL, gain=2, eos_bias=3, seed=1)


@pytest.fixture(scope="module")
def other_model():
    """A model with two vocabularies, an untied output layer and learned positions."""
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
    """Greedy decoding without a cache."""
    ids = []
    while len(ids) < limit:
        logits = model(mx.array([source]), mx.array([[model.config.start_id, *ids]]))
        ids.append(mx.argmax(logits[0, -1]).item())
        if ids[-1] == model.config.eos_id:
            break
    return tuple(ids)


def test_beam_of_one_equals_naive_argmax(any_model):
    model = any_model
    sources = random_sources(model.config, LENGTHS, seed=5)
    results = generate_ids(model, padded(sources, model.config), SearchConfig(max_tokens=12))
    expected = [naive_greedy(model, source, limit=12) for source in sources]
    assert [with_end(h) for (h,) in results] == expected
    assert len(set(map(len, expected))) > 1


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"suppress_ids": (3, 5), "bad_words": ((7,),), "min_tokens": 4}, {}),
        ({"forced_bos_id": 4, "forced_eos_id": 1}, {"forced_bos_ids": [4, 5, 6, 3, 3]}),
        ({"forced_eos_id": 6}, {"prefix_ids": [[3], [], [4, 4, 0], [5, 6], []]}),
        ({"suppress_ids": (3,), "forced_eos_id": 1}, {"shortlist": [4, 6, 7], "prefix_ids": [[3], [], [5], [6], [8]]}),
    ],
    ids=["none", "suppressed", "forced", "prefix", "shortlist"],
)
def test_processing_only_the_best_logits_changes_nothing(model, sources, monkeypatch, settings, options):
    search = SearchConfig(beam_size=3, num_hypotheses=3, max_tokens=8, **settings)
    results = []
    for reads_all in (False, True):
        monkeypatch.setattr(decode_step, "reads_all_logits", lambda search, config, reads_all=reads_all: reads_all)
        results.append(generate_ids(model, padded(sources, model.config), search, **options))
    assert results[0] == results[1]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_step_keeps_the_types_of_its_state(model, sources, monkeypatch, beam_size):
    """Otherwise the next one would be traced again."""
    search = SearchConfig(beam_size, max_tokens=3, suppress_ids=(5,), forced_bos_id=4, forced_eos_id=1)
    step, types = decode_step.decode_step, []

    def watch(model, search, scores, state, *arguments):
        for each in (state, step(model, search, scores, state, *arguments)):
            types.append([array.dtype for _, array in tree_flatten(each)])
        return each

    monkeypatch.setattr(beam_search, "decode_step", watch)
    generate_ids(model, padded(sources, model.config), search, prefix_ids=[[4, 3], [], [4], [], [4, 4]])
    assert len(types) > 4 and all(each == types[0] for each in types)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_a_token_is_forced_if_all_others_are_suppressed(model, beam_size):
    """Only the end token is left, which the minimum excludes at first."""
    rules = {"suppress_ids": (3,), "forced_bos_id": 4, "renormalize": True}
    search = SearchConfig(beam_size, max_tokens=4, min_tokens=2, **rules)
    ((hypothesis,),) = generate_ids(model, mx.array([[3, 4]]), search, shortlist=[3])
    assert hypothesis.ids == [4] and hypothesis.score == 0


def teacher_forced(model, source, hypothesis, length_penalty, prefix_length=0):
    """Score a hypothesis in one teacher-forced pass, without its first `given` tokens."""
    ids = with_end(hypothesis)
    logits = model(mx.array([source]), mx.array([[model.config.start_id, *ids[:-1]]]))
    logits = np.array(logits[0], np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logprobs[np.arange(len(ids)), ids][prefix_length:].sum() / (len(ids) - prefix_length) ** length_penalty


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_scores_equal_teacher_forced_scores(any_model, beam_size, length_penalty, tolerance):
    model = any_model
    sources = random_sources(model.config, LENGTHS, seed=5)
    search = SearchConfig(beam_size, beam_size, max_tokens=9, length_penalty=length_penalty)
    reasons = set()
    for source, hypotheses in zip(sources, generate_ids(model, padded(sources, model.config), search), strict=True):
        for hypothesis in hypotheses:
            expected = teacher_forced(model, source, hypothesis, length_penalty)
            assert hypothesis.score == pytest.approx(expected, abs=tolerance(CLOSE))
            reasons.add(hypothesis.finish_reason)
    assert reasons == {"stop", "length"}


# Content tokens, most tokens, and the number of sequences that there are: those that end, and those that are cut.
@pytest.mark.parametrize("content, limit, count", [(3, 3, 1 + 3 + 9 * 4), (2, 4, 1 + 2 + 4 + 8 * 3)])
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
def test_wide_beam_equals_brute_force(content, limit, count, early_stopping, length_penalty, tolerance):
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
    results = generate_ids(model, mx.array([source]), search)[0]
    assert {with_end(h) for h in results} == {ids for _, ids in expected}
    np.testing.assert_allclose([h.score for h in results], [score for score, _ in expected], atol=tolerance(CLOSE))


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_beam_search_equals_the_reference_search(
    teacher, sources, beam_size, length_penalty, early_stopping, tolerance
):
    search = SearchConfig(beam_size, beam_size, 8, 0, length_penalty, early_stopping)
    check_equals_reference(teacher, sources, search, tolerance)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{"min_tokens": 4}, {"suppress_ids": (0, 4, 7)}, {"max_tokens": 1}, {"min_tokens": 8}, {"suppress_ids": (1,)}],
    ids=str,
)
def test_constrained_search_equals_the_reference_search(teacher, sources, beam_size, changes, tolerance):
    search = dataclasses.replace(SearchConfig(beam_size, beam_size, 8), **changes)
    check_equals_reference(teacher, sources, search, tolerance)


@pytest.fixture(scope="module")
def ending():
    """A model with three end tokens."""
    return random_model(dataclasses.replace(SMALL, extra_eos_ids=(5, 8)), gain=2, eos_bias=1, seed=1)


class TestSeveralEndTokens:
    @pytest.mark.parametrize("changes", [{}, {"min_tokens": 4}, {"suppress_ids": (1,)}, {"min_tokens": 8}], ids=str)
    @pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
    @pytest.mark.parametrize("beam_size", [1, 2, 4])
    def test_hypotheses_equal_the_reference_search(
        self, ending, sources, beam_size, early_stopping, changes, tolerance
    ):
        search = SearchConfig(beam_size, beam_size, 8, early_stopping=early_stopping, **changes)
        check_equals_reference(Teacher(ending), sources, search, tolerance)

    def test_each_of_them_ends_a_target_and_is_not_part_of_it(self, ending, sources):
        results = generate_ids(ending, padded(sources, SMALL), SearchConfig(4, 4, 8))
        hypotheses = list(itertools.chain(*results))
        assert {hypothesis.end_id for hypothesis in hypotheses} >= {1, 8}
        for hypothesis in hypotheses:
            assert not {1, 5, 8} & set(hypothesis.ids)
            assert (hypothesis.finish_reason == "stop") == (hypothesis.end_id is not None)

    @pytest.mark.parametrize("search", [SearchConfig(max_tokens=9), SearchConfig(max_tokens=9, temperature=1.5)])
    def test_a_stream_and_samples_stop_at_any_of_them(self, ending, sources, search):
        ends = set()
        for line, source in enumerate(sources * 4):
            rows = {"source": padded([source], SMALL), "lines": [line]}
            ((hypothesis,),) = generate_ids(ending, search=search, **rows)
            assert list(stream_ids(ending, search=search, **rows)) == hypothesis.ids
            ends.add(hypothesis.end_id)
        assert 8 in ends


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
def test_search_with_two_vocabularies_equals_the_reference_search(other_model, early_stopping, tolerance):
    sources = random_sources(other_model.config, LENGTHS, seed=5)
    search = SearchConfig(4, 3, 8, early_stopping=early_stopping)
    check_equals_reference(Teacher(other_model), sources, search, tolerance)


@pytest.mark.parametrize("length_penalty", [-0.3, -0.6, -1])
def test_negative_length_penalty_prefers_shorter_hypotheses(sources, length_penalty, tolerance):
    teacher = Teacher(random_model(SMALL, gain=2, eos_bias=4, seed=5))
    search = SearchConfig(3, 3, 12, 0, length_penalty, early_stopping="never")
    check_equals_reference(teacher, sources, search, tolerance)


@pytest.mark.parametrize("max_tokens", [32, 33, 70])
@pytest.mark.parametrize("beam_size", [1, 2])
def test_cache_grows_with_long_targets(sources, beam_size, max_tokens, tolerance):
    long = dataclasses.replace(SMALL, decoder=stack(max_length=70))
    teacher = Teacher(random_model(long, gain=2, seed=2))
    search = SearchConfig(beam_size, beam_size, max_tokens, suppress_ids=(1,))
    assert check_equals_reference(teacher, sources[:2], search, tolerance) == [max_tokens] * 2


def assert_same(actual, expected, tolerance):
    for hypotheses, others in zip(actual, expected, strict=True):
        assert [(h.ids, h.finish_reason) for h in hypotheses] == [(h.ids, h.finish_reason) for h in others]
        scores = [[h.score for h in group] for group in (hypotheses, others)]
        np.testing.assert_allclose(*scores, atol=tolerance(CLOSE))


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("beam_size", [1, 3, 4])
def test_search_in_any_batch_equals_the_sentence_alone(model, sources, beam_size, early_stopping, tolerance):
    search = SearchConfig(beam_size, beam_size, 20, early_stopping=early_stopping)
    alone = [generate_ids(model, mx.array([source]), search)[0] for source in sources]
    lengths = {len(hypothesis.ids) for hypotheses in alone for hypothesis in hypotheses}
    assert len(lengths) >= 3, "the sentences must end at different steps"
    assert_same(generate_ids(model, padded(sources, model.config), search), alone, tolerance)
    assert_same(generate_ids(model, padded(sources[::-1], model.config, 16), search), alone[::-1], tolerance)
    assert_same(generate_ids(model, padded(sources[1:3], model.config), search), alone[1:3], tolerance)


@pytest.mark.parametrize("num_hypotheses", [1, 3, 4])
def test_hypotheses_are_distinct_and_sorted_by_score(model, sources, num_hypotheses):
    search = SearchConfig(4, num_hypotheses, max_tokens=8)
    best = generate_ids(model, padded(sources, model.config), dataclasses.replace(search, num_hypotheses=4))
    for hypotheses, all_four in zip(generate_ids(model, padded(sources, model.config), search), best, strict=True):
        assert hypotheses == all_four[:num_hypotheses]
        assert len(hypotheses) == num_hypotheses
        assert len({with_end(h) for h in hypotheses}) == num_hypotheses
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_fewer_hypotheses_when_no_more_exist(model, sources):
    search = SearchConfig(4, 4, max_tokens=1, suppress_ids=tuple(range(2, 8)))
    for hypotheses in generate_ids(model, padded(sources, model.config), search):
        assert {with_end(h) for h in hypotheses} == {(1,), (8,)}


def test_max_tokens_per_source(teacher, sources, tolerance):
    limits = [1, 9, 2, 5, 3]
    for beam_size in (1, 3):
        for early_stopping in EARLY_STOPPING:
            search = SearchConfig(beam_size, beam_size, early_stopping=early_stopping)
            check_equals_reference(teacher, sources, search, tolerance, limits)


def test_finish_reason(model, sources):
    source = padded(sources, model.config)
    for (hypothesis,) in generate_ids(model, source, SearchConfig(max_tokens=5, suppress_ids=(1,))):
        assert (hypothesis.finish_reason, len(hypothesis.ids)) == ("length", 5)
    for (hypothesis,) in generate_ids(model, source, SearchConfig(max_tokens=5, suppress_ids=(0, *range(2, 9)))):
        assert (hypothesis.finish_reason, hypothesis.ids) == ("stop", [])


def test_max_tokens_never_exceeds_the_position_table(model, sources):
    source = padded(sources, model.config)
    endless = SearchConfig(suppress_ids=(model.config.eos_id,))
    for limits in (None, [500] * len(sources)):
        results = generate_ids(model, source, endless, limits)
        assert [len(hypothesis.ids) for (hypothesis,) in results] == [40] * len(sources)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beam_size": 3, "num_hypotheses": 2},
        {"beam_size": 3, "num_hypotheses": 3, "temperature": 1.5, "seed": 4},
        {"beam_size": 3, "num_hypotheses": 3, "alternatives": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_ids": (4,)},
        {"forced_bos_id": 5, "forced_eos_id": 1, "min_tokens": 3, "renormalize": True},
    ],
)
def test_without_scores_the_hypotheses_are_the_same(model, sources, changes):
    search, sources = SearchConfig(max_tokens=8, **changes), padded(sources, model.config)
    rows = generate_ids(model, sources, search, scores=False)
    assert all(math.isnan(hypothesis.score) for row in rows for hypothesis in row)
    expected = generate_ids(model, sources, search)
    assert [[h.ids for h in row] for row in rows] == [[h.ids for h in row] for row in expected]
    assert all(math.isfinite(hypothesis.score) for row in expected for hypothesis in row)


def test_one_beam_without_scores_reads_the_vocabulary_once(model, sources, monkeypatch):
    normalized, sources = [], padded(sources, model.config)
    monkeypatch.setattr(
        logits_processors, "logsumexp", lambda x: normalized.append(x) or mx.logsumexp(x, axis=-1, keepdims=True)
    )
    generate_ids(model, sources, SearchConfig(max_tokens=4), scores=False)
    list(stream_ids(model, sources[:1], SearchConfig(max_tokens=4)))
    assert not normalized
    generate_ids(model, sources, SearchConfig(max_tokens=4))
    assert len(normalized) == 4


def test_logits_that_are_not_finite_are_errors_without_scores(sources):
    broken = random_model(SMALL, gain=2, seed=1)
    broken.output_bias = mx.full(broken.output_bias.shape, math.nan)
    with pytest.raises(NoHypothesisError):
        generate_ids(broken, padded(sources, broken.config), SearchConfig(max_tokens=4), scores=False)


def test_search_defaults_are_used(model, sources):
    source = padded(sources, model.config)
    ours = Transformer(SMALL, search_defaults=SearchConfig(3, 2, max_tokens=4))
    ours.eval()
    ours.update(model.parameters())
    assert generate_ids(ours, source) == generate_ids(model, source, ours.search_defaults)


def test_empty_batch_gives_no_hypotheses(model, sources):
    assert generate_ids(model, padded(sources, model.config)[:0], SearchConfig()) == []


def test_sources_longer_than_the_position_table_are_rejected(model):
    with pytest.raises(ValueError, match="A source must be at most 40 tokens long, not 41: shorten or split it."):
        generate_ids(model, mx.full((1, 41), 3))


def test_compiled_search_equals_uncompiled_and_sees_new_weights(sources, tolerance):
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
    """A tiny random Marian model of transformers, whose start token is the pad token, and its conversion."""
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
    ours.load_weights(list(fuse_projections(arrays).items()))
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
    results = ours(mx.array(sources.astype(np.int32)), mx.array(target.astype(np.int32)))
    np.testing.assert_allclose(np.array(results), logits.numpy(), atol=tolerance(CLOSE))


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
    results = generate_ids(ours, mx.array(sources.astype(np.int32)), search)
    results = [hypothesis for hypotheses in results for hypothesis in hypotheses]
    assert [with_end(hypothesis) for hypothesis in results] == expected
    if search.beam_size > 1:  # greedy search of transformers gives no scores
        scores = [hypothesis.score for hypothesis in results]
        np.testing.assert_allclose(scores, output.sequences_scores.numpy(), atol=tolerance(CLOSE))
    return {hypothesis.finish_reason for hypothesis in results}


@pytest.mark.torch
@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.slow
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


def test_padding_is_never_generated(model, sources):
    eager = random_model(SMALL, gain=2, eos_bias=0, seed=1)
    eager.output_bias = mx.where(mx.arange(9) == 0, 50.0, eager.output_bias)
    for beam_size in (1, 3):
        for hypotheses in generate_ids(eager, padded(sources, SMALL), SearchConfig(beam_size, beam_size, 6)):
            assert all(0 not in hypothesis.ids for hypothesis in hypotheses)


@pytest.mark.parametrize("beam_size, repetition_penalty", [(1, 1.0), (3, 1.0), (3, 1.5)])
def test_start_and_forced_bos_ids_per_source(model, sources, beam_size, repetition_penalty, tolerance):
    search = SearchConfig(beam_size=beam_size, max_tokens=9, repetition_penalty=repetition_penalty)
    starts, firsts = [2, 5, 3, 7, 2], [4, 4, 6, 3, 8]
    batch = padded(sources, model.config)
    results = generate_ids(model, batch, search, start_ids=starts, forced_bos_ids=firsts)
    free = generate_ids(model, batch, search, start_ids=starts)
    for row, (source, start, first) in enumerate(zip(sources, starts, firsts, strict=True)):
        alone = Transformer(dataclasses.replace(model.config, start_id=start), search)
        alone.update(model.parameters())
        alone.eval()
        for result, rules in ((results[row], {"forced_bos_id": first}), (free[row], {})):
            (expected,) = generate_ids(alone, mx.array([source]), dataclasses.replace(search, **rules))
            assert [h.ids for h in result] == [h.ids for h in expected]
            np.testing.assert_allclose([h.score for h in result], [h.score for h in expected], atol=tolerance(CLOSE))
        assert results[row][0].ids[0] == first
    assert [h.ids for (h,) in free] != [h.ids for (h,) in generate_ids(model, batch, search)]


@pytest.mark.parametrize(
    "changes", [{"start_ids": [2]}, {"start_ids": [2, 2, 2, 2, 9]}, {"forced_bos_ids": [0, 1, 2, 3, -1]}]
)
def test_start_ids_are_validated(model, sources, changes):
    with pytest.raises(ValueError, match="_ids must be 5 numbers from 0 to 8, one for each source"):
        generate_ids(model, padded(sources, model.config), SearchConfig(max_tokens=3), **changes)


PREFIXES = [[], [5], [4, 8, 3], [7, 1, 7], [3, 4, 5, 6, 7]]  # one with an end token in it, which ends nothing


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("beam_size", [1, 3, 4])
def test_search_with_prefixes_equals_the_reference_search(teacher, sources, beam_size, early_stopping, tolerance):
    """Prefixes count in no score, length or limit, whether they are prefilled or decoded step by step."""
    search = SearchConfig(beam_size, beam_size, 8, 3, 0.6, early_stopping)
    for prefixes in (PREFIXES, [[*prefix, 6] for prefix in PREFIXES[::-1]], [[4, 8]] * 5):
        check_equals_reference(teacher, sources, search, tolerance, prefixes=prefixes)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_forced_bos_precedes_a_prefix_once(model, teacher, sources, beam_size, tolerance):
    free = SearchConfig(beam_size, beam_size, 6)
    search = dataclasses.replace(free, forced_bos_id=6)
    full = [[], [6, 5], [6, 8, 3], [6, 7, 7], [6]]
    check_equals_reference(teacher, sources, search, tolerance, prefixes=full)
    batch = padded(sources, model.config)
    expected = generate_ids(model, batch, search, prefix_ids=full)
    assert expected == generate_ids(model, batch, search, prefix_ids=[[], [5], [8, 3], [7, 7], [6]])

    firsts = [4, 4, 6, 3, 8]
    full = [[first, *prefix] for first, prefix in zip(firsts, [[7], *PREFIXES[1:]], strict=True)]
    results = generate_ids(model, batch, search, forced_bos_ids=firsts, prefix_ids=[[7], *PREFIXES[1:]])
    assert_same(results, generate_ids(model, batch, free, prefix_ids=full), tolerance)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["free", "prefixes"])
def test_length_ratios_equal_the_reference_search(teacher, sources, beam_size, prefixes, tolerance):
    for ratios in ((1.5, 0.0), (1.5, 0.8), (2.0, 2.0), (0.9, 0.9)):
        search = SearchConfig(beam_size, beam_size, max_length_ratio=ratios[0], min_length_ratio=ratios[1])
        check_equals_reference(teacher, sources, search, tolerance, prefixes=prefixes)


@pytest.mark.parametrize("beam_size", [1, 2])
@pytest.mark.parametrize("lengths", [(0, 20, 33, 64, 72), (31, 32, 33, 40, 40), (63, 64, 65, 79, 70)])
def test_prefixes_of_any_length(sources, beam_size, lengths, tolerance):
    long = dataclasses.replace(SMALL, decoder=stack(max_length=80))
    prefixes = [np.random.default_rng(n).integers(3, 9, n).tolist() for n in lengths]
    search = SearchConfig(beam_size, beam_size, 10)
    check_equals_reference(Teacher(random_model(long, gain=2, seed=2)), sources, search, tolerance, prefixes=prefixes)


def test_prefix_must_be_shorter_than_the_position_table(model, sources):
    source = padded(sources[:1], model.config)
    (results,) = generate_ids(model, source, SearchConfig(suppress_ids=(1,)), prefix_ids=[[3] * 39])
    assert (len(results[0].ids), results[0].finish_reason) == (40, "length")
    for search, prefix in ((SearchConfig(), [3] * 40), (SearchConfig(forced_bos_id=4), [3] * 39)):
        with pytest.raises(ValueError, match="shorter than the decoder's 40 positions, not 40 tokens: shorten it"):
            generate_ids(model, source, search, prefix_ids=[prefix])


@pytest.mark.parametrize("begin", [generate_ids, lambda *arguments, **more: next(stream_ids(*arguments, **more))])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"forced_bos_ids": [1, 2]}, r"forced_bos_ids must be 1 numbers from 0 to 8, .* not \[1, 2\]"),
        ({"prefix_ids": [[3], [4]]}, "prefix_ids must be 1 lists of token ids, one for each source, not 2"),
        ({"prefix_ids": [[3], [4]], "forced_bos_ids": [5]}, "prefix_ids must be 1 lists"),
        ({"prefix_ids": [[9]]}, r"prefix_ids must be token ids from 0 to 8, not \[9\]"),
        ({"start_ids": [9]}, r"start_ids must be 1 numbers from 0 to 8, .* not \[9\]"),
        ({"lines": [-1]}, r"lines must be 1 numbers from 0 to 4294967295, .* not \[-1\]"),
    ],
)
def test_arguments_are_validated_by_generate_and_stream(model, sources, begin, changes, message):
    with pytest.raises(ValueError, match=message):
        begin(model, padded(sources[:1], model.config), SearchConfig(max_tokens=3), **changes)


def search_alone(model, sources, search, limits=None, prefixes=None, columns=0):
    """Search each source as a batch of one."""
    return [
        generate_ids(
            model,
            padded([source], model.config, columns),
            search,
            limits and limits[row : row + 1],
            prefix_ids=prefixes and prefixes[row : row + 1],
            lines=[row],
        )[0]
        for row, source in enumerate(sources)
    ]


def leaving_model(eos_bias):
    return random_model(dataclasses.replace(SMALL, decoder=stack(max_length=100)), gain=2, eos_bias=eos_bias, seed=1)


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.slow
def test_finished_sentences_leave_the_batch_without_changing_results(kind, monkeypatch, tolerance):
    """Includes the steps at which the cache grows, 32 and 64."""
    model = leaving_model(eos_bias=3 if "rules" in kind else -2)
    lengths = [3, 12, 5, 9, 10, 5, 7, 4, 6]
    sources = random_sources(model.config, lengths, seed=5)
    last = [32, 90, 31, 9, 70, 30, 64, 32, 29]
    prefixes = [[], [4, 8, 3], [], [7], [5] * 40, [], [], [3, 6], []]
    limits = [n - len(prefix) for n, prefix in zip(last, prefixes, strict=True)]
    search = dataclasses.replace(SEARCHES[kind], suppress_ids=(1,) if "rules" not in kind else ())
    sizes, step = [], beam_search.decode_step

    def counting(model, search, scores, state, *inputs):
        sizes.append(len(state.tokens))
        return step(model, search, scores, state, *inputs)

    monkeypatch.setattr(beam_search, "decode_step", counting)
    results = generate_ids(model, padded(sources, model.config), search, limits, prefix_ids=prefixes)
    monkeypatch.undo()
    assert_same(results, search_alone(model, sources, search, limits, prefixes), tolerance)
    if "rules" not in kind:  # where some end before their limits
        assert [len(hypotheses[0].ids) for hypotheses in results] == last
        assert sizes == [9] * 33 + [4] * 32 + [2] * 8 + [1] * 17
    assert sizes[0] == 9 and sizes[-1] == 1 and set(sizes) <= {9, 4, 2, 1}


@pytest.mark.parametrize("beam_size", [1, 3])
def test_batches_shrink_to_the_rows_of_vector_kernels_without_changing_results(beam_size, monkeypatch, tolerance):
    model = leaving_model(eos_bias=-2)
    sources, limits = random_sources(model.config, [3, 12, 5, 9, 4, 6], seed=5), [3, 22, 9, 9, 13, 13]
    search = SearchConfig(beam_size=beam_size, suppress_ids=(1,))
    alone = search_alone(model, sources, search, limits)
    sizes, select = [], running_search.select_sentences

    def counting(batches, sentences):
        sizes.append(len(sentences))
        return select(batches, sentences)

    monkeypatch.setattr(running_search, "select_sentences", counting)
    monkeypatch.setattr(running_search, "vector_batch_size", lambda model, beams: 5)
    results = generate_ids(model, padded(sources, model.config), search, limits)
    assert_same(results, alone, tolerance)
    assert sizes == [5, 1]  # without vector kernels [3, 1]


@pytest.mark.parametrize(
    "unfinished, rows, vector_size, expected",
    [
        (9, 9, 0, 9),
        (5, 9, 0, 9),
        (4, 9, 0, 4),
        (1, 9, 0, 1),
        (5, 9, 5, 5),
        (6, 9, 5, 9),
        (2, 9, 5, 2),
        (5, 5, 5, 5),
        (15, 16, 15, 15),
        (16, 64, 15, 16),
        (15, 64, 15, 15),
    ],
)
def test_surviving_rows(unfinished, rows, vector_size, expected):
    finished = np.arange(rows) % rows >= unfinished
    sizes = running_search.halves(rows, vector_size)
    surviving = running_search.surviving_rows(np.random.default_rng(0).permutation(finished), sizes)
    assert len(surviving) == len(set(surviving.tolist())) == expected


@pytest.mark.parametrize("rule", RULES)
def test_every_search_option_has_an_effect(rule):
    """Makes sure that the test above is not vacuous."""
    model = leaving_model(eos_bias=3)
    source = padded(random_sources(model.config, [5, 9, 7]), model.config)
    search = dataclasses.replace(SEARCHES["beam with rules"], max_tokens=25)
    free = dataclasses.replace(search, **{rule: vars(SearchConfig())[rule]})
    assert generate_ids(model, source, free) != generate_ids(model, source, search)


SETTINGS_PREFIXES = [[], [5, 6], [7], [8, 8, 8], [3]]
BY_KIND = {
    "greedy": (SEARCHES["greedy"], None),
    "beam": (SEARCHES["beam"], None),
    "sampling": (SEARCHES["sampling"], None),
    "alternatives": (SEARCHES["alternatives"], SETTINGS_PREFIXES),
    "prefix": (SEARCHES["beam"], SETTINGS_PREFIXES),
}


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.slow
def test_results_do_not_depend_on_batch_or_padding(setting, kind, tolerance):
    model = random_model(SETTINGS[setting], gain=2, seed=1)
    sources = random_sources(model.config, LENGTHS, seed=5)
    search, prefixes = BY_KIND[kind]
    search = dataclasses.replace(search, max_tokens=7)
    alone = search_alone(model, sources, search, prefixes=prefixes)
    for columns in (0, 13, 24):
        results = generate_ids(model, padded(sources, model.config, columns), search, prefix_ids=prefixes)
        assert_same(results, alone, tolerance)
    order = [3, 0, 4, 2]
    results = generate_ids(
        model,
        padded([sources[row] for row in order], model.config),
        search,
        prefix_ids=prefixes and [prefixes[row] for row in order],
        lines=order,
    )
    assert_same(results, [alone[row] for row in order], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("setting, kind", [("relative_positions", "sampling"), ("learned_positions", "prefix")])
def test_every_kind_of_compiled_search_equals_uncompiled(setting, kind, tolerance):
    model = random_model(SETTINGS[setting], gain=2, seed=1)
    source = padded(random_sources(model.config, (3, 7, 5, 4, 6, 2, 8, 4), seed=5), model.config)
    search, prefixes = BY_KIND[kind]
    prefixes = prefixes and [*prefixes, [4], [4, 4], [9]]
    limits = [1, 2, 20, 3, 1, 2, 3, 1]  # so that some leave the batch
    compiled = generate_ids(model, source, search, limits, prefix_ids=prefixes)
    mx.disable_compile()
    assert_same(compiled, generate_ids(model, source, search, limits, prefix_ids=prefixes), tolerance)
    mx.enable_compile()


def check_sound(model, kind):
    """Hypotheses in any data type: the right number, ids in the vocabulary, finite scores."""
    sources = random_sources(model.config, LENGTHS, seed=5)
    search, prefixes = BY_KIND[kind]
    search = dataclasses.replace(search, max_tokens=7)
    results = generate_ids(model, padded(sources, model.config), search, prefix_ids=prefixes)
    for hypotheses, prefix in zip(results, prefixes or [[]] * len(sources), strict=True):
        assert len(hypotheses) == search.num_hypotheses
        for hypothesis in hypotheses:
            assert np.isfinite(hypothesis.score) and hypothesis.score <= 0
            assert hypothesis.ids[: len(prefix)] == prefix
            assert all(0 < i < model.config.target_vocab_size for i in hypothesis.ids)


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("setting", SETTINGS)
def test_half_precision_gives_valid_hypotheses(setting, kind):
    for dtype in (mx.float16, mx.bfloat16):
        model = random_model(SETTINGS[setting], gain=2, seed=1)
        model.set_dtype(dtype)
        assert model.dtype == dtype
        check_sound(model, kind)


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_models_give_valid_hypotheses(bits, kind):
    wide = stack(mlp_dims=64)
    model = random_model(config(dims=32, encoder=wide, decoder=wide), gain=2, seed=1)
    quantize_weights(model, QuantizationConfig(bits, 32))
    check_sound(model, kind)


@pytest.mark.parametrize("kind", ["greedy", "beam", "sampling"])
@pytest.mark.slow
def test_hundreds_of_sentences_in_random_batches_equal_single_sentences(kind, tolerance):
    model = random_model(config(output_bias=True), gain=2, eos_bias=2, seed=3)
    search = dataclasses.replace(SEARCHES[kind], max_length_ratio=1.0, min_length_ratio=0.3, no_repeat_ngram_size=3)
    count, rng = 120, np.random.default_rng(0)
    sources = random_sources(model.config, 1 + rng.geometric(0.12, count).clip(0, 39), seed=1)
    prefixes = [rng.integers(3, 19, rng.integers(1, 8)).tolist() if rng.random() < 0.3 else [] for _ in sources]
    order, by_row = rng.permutation(count).tolist(), {}
    while order:
        rows, order = order[: (size := rng.integers(1, 33))], order[size:]
        arguments = {"prefix_ids": [prefixes[row] for row in rows], "lines": rows}
        results = generate_ids(model, padded([sources[row] for row in rows], model.config), search, **arguments)
        by_row |= dict(zip(rows, results, strict=True))
    assert_same([by_row[row] for row in range(count)], search_alone(model, sources, search, None, prefixes), tolerance)


def test_samples_depend_only_on_seed_and_line(model, sources, tolerance):
    """Independence of the batch is tested above."""
    search = SearchConfig(3, 3, max_tokens=8, temperature=1.5)
    same = padded([sources[1]] * 4, model.config)

    def ids(search, lines):
        return [[h.ids for h in hypotheses] for hypotheses in generate_ids(model, same, search, lines=lines)]

    first = ids(search, [0, 1, 2, 1])
    assert first[1] == first[3] == ids(search, [1, 5, 6, 7])[0]
    drawn = [tuple(each) for line in first[:3] for each in line]
    assert len(set(drawn)) >= 8, "of nine drawn at random hardly two are alike"
    assert ids(dataclasses.replace(search, seed=1), [0, 1, 2, 1]) != first
    assert ids(search, None) == ids(search, [0, 1, 2, 3])


def test_hypotheses_are_sampled_with_their_probability():
    vocab, limit, rows, temperature = 6, 3, 600, 1.4
    model = random_model(config(source_vocab_size=vocab, target_vocab_size=vocab, output_bias=True), eos_bias=0.5)
    teacher, (source,) = Teacher(model), random_sources(model.config, [5])
    expected, unfinished = {}, {(): 1.0}
    for length in range(1, limit + 1):
        for ids, probability in list(unfinished.items()):
            weights = np.exp(teacher(source, [ids])[0] / temperature)
            weights[[model.config.pad_id]] = 0
            del unfinished[ids]
            for token, weight in enumerate(weights / weights.sum()):
                ended = token == model.config.eos_id or length == limit
                (expected if ended else unfinished)[(*ids, token)] = probability * weight
    assert sum(expected.values()) == pytest.approx(1)

    search = SearchConfig(4, 4, limit, temperature=temperature)
    results = generate_ids(model, mx.array([source] * rows), search)
    drawn = [with_end(h) for hypotheses in results for h in hypotheses]
    likely = [ids for ids, probability in expected.items() if probability * len(drawn) >= 5]
    counts = np.array([drawn.count(ids) for ids in likely])
    means = np.array([expected[ids] for ids in likely]) * len(drawn)
    assert len(likely) > 30 and counts.sum() > 0.95 * len(drawn) == 0.95 * 4 * rows
    assert ((counts - means) ** 2 / means).sum() <= len(likely) + 4 * np.sqrt(2 * len(likely))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_sampled_hypotheses_are_sorted_and_have_teacher_forced_scores(any_model, length_penalty, tolerance):
    """Temperature, filters and prefixes do not affect scores."""
    model = any_model
    sources = random_sources(model.config, LENGTHS, seed=5)
    search = SearchConfig(4, 4, max_tokens=8, length_penalty=length_penalty, temperature=1.7, top_k=7, top_p=0.97)
    source = padded(sources, model.config)
    results = generate_ids(model, source, search, prefix_ids=PREFIXES)
    for row, hypotheses in enumerate(results):
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True) and len(scores) == 4
        prefix_length = len(PREFIXES[row])
        expected = [teacher_forced(model, sources[row], h, length_penalty, prefix_length) for h in hypotheses]
        np.testing.assert_allclose(scores, expected, atol=tolerance(CLOSE))
    fewer = generate_ids(model, source, dataclasses.replace(search, num_hypotheses=2), prefix_ids=PREFIXES)
    assert fewer == [hypotheses[:2] for hypotheses in results]


@pytest.mark.parametrize("changes", [{"temperature": 1e-4}, {"temperature": 1.0, "top_k": 1}], ids=str)
def test_deterministic_sampling_equals_greedy_search(any_model, changes, tolerance):
    source = padded(random_sources(any_model.config, LENGTHS, seed=5), any_model.config)
    drawn = generate_ids(any_model, source, SearchConfig(3, 3, max_tokens=8, **changes))
    greedy = generate_ids(any_model, source, SearchConfig(max_tokens=8))
    assert_same(drawn, [hypotheses * 3 for hypotheses in greedy], tolerance)


@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["free", "prefixes"])
@pytest.mark.parametrize("forced", [None, 6])
def test_alternatives_continue_the_most_probable_first_tokens_greedily(
    model, teacher, sources, forced, prefixes, tolerance
):
    """The alternatives follow the prefix or the forced token, in order of their probabilities."""
    beams, limit = 4, 7
    search = SearchConfig(beams, beams, limit, length_penalty=0, alternatives=True, forced_bos_id=forced)
    results = generate_ids(model, padded(sources, model.config), search, prefix_ids=prefixes)
    for source, prefix, hypotheses in zip(sources, prefixes or [[]] * 5, results, strict=True):
        left = limit - 1 - (forced is not None and not prefix)  # a forced token counts where no prefix is
        begun = prefix if forced is None else [forced, *prefix]
        logprobs = teacher(source, [tuple(begun)])[0]
        logprobs[model.config.pad_id] = -np.inf
        firsts = np.argsort(-logprobs)[:beams].tolist()
        assert [with_end(h)[len(begun)] for h in hypotheses] == firsts
        for first, hypothesis in zip(firsts, hypotheses, strict=True):
            rest = [(0, (*begun, first))]
            if first != model.config.eos_id:
                rest, _ = reference_search(teacher, source, SearchConfig(length_penalty=0), left, (*begun, first))
            ((score, ids),) = rest
            assert with_end(hypothesis) == ids
            assert hypothesis.score == pytest.approx(logprobs[first] + score, abs=tolerance(CLOSE))
    fewer = dataclasses.replace(search, num_hypotheses=2)
    first_two = generate_ids(model, padded(sources, model.config), fewer, prefix_ids=prefixes)
    assert first_two == [hypotheses[:2] for hypotheses in results]


# What is asked for besides a source -> the search and what differs from source to source.
STREAMED = {
    "greedy": ({}, {}),
    "one token": ({}, {"max_tokens": [1]}),
    "a limit": ({"suppress_ids": (1,)}, {"max_tokens": [4]}),
    "all positions": ({"suppress_ids": (1,), "max_tokens": None}, {}),
    "the end first": ({"suppress_ids": (0, *range(2, 19))}, {}),
    "start": ({}, {"start_ids": [5]}),
    "forced": ({"forced_bos_id": 4, "forced_eos_id": 1}, {"forced_bos_ids": [7]}),
    "prefix": ({"min_tokens": 3}, {"prefix_ids": [[5, 3, 4]]}),
    "prefix after a forced token": ({}, {"prefix_ids": [[5, 3]], "forced_bos_ids": [4]}),
    "a long prefix": ({"max_tokens": 6}, {"prefix_ids": [[6] * 31]}),
    "drawn": ({"temperature": 1.2, "seed": 4}, {"lines": [8], "prefix_ids": [[5]]}),
    "rules": ({"no_repeat_ngram_size": 2, "repetition_penalty": 1.4, "min_length_ratio": 1.0}, {}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.slow
def test_streamed_tokens_equal_the_hypothesis(setting):
    model = random_model(SETTINGS[setting], gain=2, seed=1)
    lengths = set()
    for changes, arguments in STREAMED.values():
        search = SearchConfig(**{"max_tokens": 9, **changes})
        for source in random_sources(model.config, LENGTHS[:2], seed=5):
            ((hypothesis,),) = generate_ids(model, mx.array([source]), search, **arguments)
            assert list(stream_ids(model, mx.array([source]), search, **arguments)) == hypothesis.ids
            lengths.add(len(hypothesis.ids))
    assert {0, 1, 4, 40} <= lengths


def test_tokens_are_streamed_before_the_search_ends(model, sources, monkeypatch):
    steps, step = [], beam_search.decode_step
    monkeypatch.setattr(beam_search, "decode_step", lambda *state: (steps.append(1), step(*state))[1])
    search = SearchConfig(max_tokens=20, suppress_ids=(1,))
    for prefix_length, _ in enumerate(stream_ids(model, padded(sources[:1], model.config), search), start=1):
        assert len(steps) == min(prefix_length + 1, 20), "the next step is under way"


@pytest.mark.parametrize("beam_size, rows", [(2, 1), (1, 2)])
def test_streaming_needs_one_source_and_one_beam(model, sources, beam_size, rows):
    source = padded(sources[:rows], model.config)
    with pytest.raises(ValueError, match=f"one source and beam_size 1, not {rows} and {beam_size}"):
        next(stream_ids(model, source, SearchConfig(beam_size)))


@pytest.mark.parametrize("search", [SearchConfig(), SearchConfig(3, 3), SEARCHES["sampling"]], ids=["1", "3", "drawn"])
@pytest.mark.parametrize("broken", ["not a number", "not a number later"])
def test_search_without_hypotheses_is_an_error(sources, search, broken):
    model = random_model(SMALL, gain=2, eos_bias=3, seed=1)
    forced = 4 if broken == "not a number later" else None
    search = dataclasses.replace(search, max_tokens=5, forced_bos_id=forced)
    model.output_bias[3] = np.nan
    source = padded(sources[:2], model.config)
    with pytest.raises(ValueError, match="the model's logits are not finite, or all tokens are suppressed: compute in"):
        generate_ids(model, source, search)
    if search.beam_size == 1:
        with pytest.raises(ValueError, match="the model's logits are not finite, or all tokens are suppressed"):
            list(stream_ids(model, source[:1], search))


@pytest.mark.cpu
def test_a_step_has_ended_before_the_next_one_begins_on_a_cpu(model, sources, monkeypatch):
    """A step that is still running would hold its cache, and the next one would copy it."""
    ended, evaluate = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: ended.append(arrays) or evaluate(*arrays))
    running_search.start_step((x := mx.ones(3) + 1,))
    assert len(ended) == 1 and ended[0][0][0] is x
