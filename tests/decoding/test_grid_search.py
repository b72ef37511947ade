"""Searches with required phrases: what brute force finds, in any batch, and the phrases in every hypothesis."""

import itertools
import random
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from support.reference_search import CLOSE, Teacher, with_end
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids

SMALL = config(source_vocab_size=7, target_vocab_size=7, output_bias=True)
EOS, TOKENS = SMALL.eos_id, [3, 4, 5, 6]


@pytest.fixture(autouse=True)
def uncompiled(request):
    """Most tests disable compilation, because every trace takes seconds on a CPU."""
    if "compiled" not in request.node.name:
        mx.disable_compile()
    yield
    mx.enable_compile()


def contains(ids, phrases):
    """Whether ids contain the phrases in this order, without overlap."""
    if not phrases:
        return True
    first, *rest = phrases
    ends = [i + len(first) for i in range(len(ids) - len(first) + 1) if tuple(ids[i : i + len(first)]) == tuple(first)]
    return any(contains(ids[end:], rest) for end in ends)


PHRASES = ([[3]], [[4, 5]], [[5, 4], [6]], [[6, 6]], [], [[3, 4, 5]])


@pytest.mark.parametrize(
    ("decoder", "length_penalty", "early_stopping"),
    [("attention", penalty, stop) for penalty in (0, 1, -1) for stop in (False, "never")] + [("ssru", 1, False)],
)
def test_a_wide_grid_equals_brute_force(decoder, length_penalty, early_stopping, tolerance):
    model = random_model(replace(SMALL, decoder_self_attention=decoder), eos_bias=0.5, seed=3)
    teacher, limit = Teacher(model), 4
    sources = random_sources(model.config, [5] * len(PHRASES))
    search = SearchConfig(140, 140, limit, 0, length_penalty, early_stopping, suppress_ids=(0, 2))
    results = generate_ids(model, padded(sources, model.config), search, required_phrases=PHRASES)
    for source, phrases, hypotheses in zip(sources, PHRASES, results, strict=True):
        expected = {}
        for length in range(1, limit + 1):
            for ids in itertools.product([EOS, *TOKENS], repeat=length):
                is_whole = EOS not in ids[:-1] and (ids[-1] == EOS or length == limit)
                if is_whole and contains(ids, phrases):
                    logprob = sum(teacher(source, [ids[:i]])[0, token] for i, token in enumerate(ids))
                    expected[ids] = pytest.approx(logprob / length**length_penalty, abs=tolerance(CLOSE))
        found = {with_end(hypothesis): hypothesis.score for hypothesis in hypotheses}
        best = sorted(expected, key=lambda ids: -expected[ids].expected)[: len(found)]
        assert len(found) > 1
        assert {ids: found.get(ids) for ids in best} == {ids: expected[ids] for ids in best}


def random_phrases(seed, count):
    generator = random.Random(seed)
    return [
        [generator.choices(TOKENS, k=generator.randint(1, 3)) for _ in range(generator.randint(0, 2))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beam_size", [2, 4])
def test_every_hypothesis_contains_its_phrases(seed, beam_size):
    model = random_model(SMALL, gain=3, eos_bias=2, seed=seed)
    sources, phrases = random_sources(model.config, [3, 6, 4, 5, 7] * 3, seed), random_phrases(seed, 15)
    search = SearchConfig(beam_size, beam_size, 24)
    plain = generate_ids(model, padded(sources, model.config), search)
    assert not all(contains(h.ids, row) for h, row in zip([row[0] for row in plain], phrases, strict=True))
    for row, hypotheses in zip(
        phrases, generate_ids(model, padded(sources, model.config), search, required_phrases=phrases), strict=True
    ):
        assert all(contains(hypothesis.ids, row) for hypothesis in hypotheses), row


@pytest.mark.parametrize("setting", ["post_norm", "learned_positions", "relative_positions"])
def test_a_sentence_gives_the_same_in_any_batch(setting, tolerance):
    model = random_model(SETTINGS[setting], gain=2, eos_bias=2, seed=4)
    sources, phrases = (
        random_sources(model.config, [3, 7, 5, 4, 6]),
        [[[5, 6], [7]], [], [[8]], [[9, 9, 3]], [[3], [4]]],
    )
    search = SearchConfig(3, 2, 20)
    together = generate_ids(model, padded(sources, model.config), search, required_phrases=phrases)
    for source, row, hypotheses in zip(sources, phrases, together, strict=True):
        required = {"required_phrases": [row]} if row else {}
        alone = generate_ids(model, mx.array([source]), search, **required)[0]
        assert [h.ids for h in hypotheses] == [h.ids for h in alone]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone], abs=tolerance(CLOSE))


def test_compiled_grid_equals_uncompiled(tolerance):
    model, phrases = random_model(SMALL, gain=2, eos_bias=2), [[[3, 4]], [[5], [6]]]
    source, search = padded(random_sources(model.config, [4, 6]), model.config), SearchConfig(2, 2, 12)
    compiled = generate_ids(model, source, search, required_phrases=phrases)
    mx.disable_compile()
    for row, other in zip(compiled, generate_ids(model, source, search, required_phrases=phrases), strict=True):
        assert [h.ids for h in row] == [h.ids for h in other]
        assert [h.score for h in row] == pytest.approx([h.score for h in other], abs=tolerance(CLOSE))


def test_phrases_follow_a_prefix_whose_tokens_may_begin_them():
    model = random_model(SMALL, gain=2, eos_bias=2, seed=5)
    source, search = padded(random_sources(model.config, [4, 6]), model.config), SearchConfig(4, 4, 20)
    prefixes, phrases = [[3, 4], [6, 5, 3, 3]], [[[4, 5]], [[6], [4, 4]]]
    for prefix, row, hypotheses in zip(
        prefixes,
        phrases,
        generate_ids(model, source, search, prefix_ids=prefixes, required_phrases=phrases),
        strict=True,
    ):
        assert all(h.ids[: len(prefix)] == prefix and contains(h.ids, row) for h in hypotheses)


@pytest.mark.parametrize(
    "search, phrases, message",
    [
        (SearchConfig(1), [[[3]]], "required_phrases need beam search"),
        (SearchConfig(2, temperature=1.0), [[[3]]], "required_phrases need beam search"),
        (SearchConfig(2, 2, alternatives=True), [[[3]]], "neither temperature nor alternatives"),
        (SearchConfig(2), [[[3]], [[4]]], "must be 1 lists of phrases"),
        (SearchConfig(2), [[3, 4]], "each phrase a list of token ids, not"),
        (
            SearchConfig(2, max_tokens=3),
            [[[3, 4], [5, 6]]],
            "must fit a target of 3 tokens, not have 4: raise max_tokens",
        ),
        (SearchConfig(2), [[[3, 7]]], "token ids from 0 to 6"),
        (SearchConfig(2), [[[3], [EOS]]], "without end tokens"),
        (SearchConfig(2), [[[3], [-1]]], "token ids from 0 to 6"),
    ],
)
def test_phrases_are_validated(search, phrases, message):
    model = random_model(SMALL)
    with pytest.raises(ValueError, match=message):
        generate_ids(model, padded(random_sources(model.config, [4]), model.config), search, required_phrases=phrases)


def test_the_mask_of_word_parts_has_the_size_of_the_vocabulary():
    model = random_model(SMALL)
    source = padded(random_sources(model.config, [4]), model.config)
    with pytest.raises(ValueError, match="continues_word must have one value for each of 7 tokens, not 3"):
        generate_ids(model, source, SearchConfig(2), required_phrases=[[[3]]], continues_word=np.zeros(3, bool))
