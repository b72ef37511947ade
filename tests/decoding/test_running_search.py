"""Sentences that join a running search and leave it give what they give alone."""

import mlx.core as mx
import numpy as np
import pytest
from support.searches import SEARCHES
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding import running_search
from mlx_transformer.decoding.beam_search import compile_step, generate_ids
from mlx_transformer.decoding.running_search import STEPS_PER_STOP_TEST, RunningSearch

LENGTHS = [3, 12, 5, 9, 10, 5, 7, 4, 6, 20, 3, 8]
LIMITS = [12, 40, 31, 9, 45, 30, 24, 1, 29, 11, 44, 17]
PREFIXES = [[], [4, 8, 3], [], [7], [5] * 17, [], [], [3, 6], [], [], [4], []]
SMALL = config(source_vocab_size=9, target_vocab_size=9, output_bias=True, decoder=stack(max_length=64))


@pytest.fixture(autouse=True)
def uncompiled():
    mx.disable_compile()
    yield
    mx.enable_compile()


def run_all(model, search, sources, limits, prefixes, joins, sizes=(), forced=None):
    """Let sources join at the given stop tests; return the hypotheses of each, and the batch size at each test."""
    running = RunningSearch(model, search, compile_step(model, search, True, forced is not None), sizes)
    results, keys, batch_sizes, added, test = {}, [], [], 0, 0
    while added < len(sources) or running.num_unfinished:
        count = sum(at <= test for at in joins) - added
        if count:
            rows = slice(added, added + count)
            keys += running.add(
                padded(sources[rows], model.config, 16 if added % 2 else 0),
                limits[rows],
                forced_bos_ids=forced and forced[rows],
                prefix_ids=prefixes[rows],
                lines=list(range(added, added + count)),
            )
            added += count
        results |= running.run()
        batch_sizes.append(len(running._slots.keys))
        test += 1
    assert len(set(keys)) == len(sources)
    return [results[key] for key in keys], batch_sizes


def search_alone(model, search, sources, limits, prefixes, forced=None):
    return [
        generate_ids(
            model,
            padded([source], model.config),
            search,
            [limit],
            forced_bos_ids=forced and [forced[row]],
            prefix_ids=[prefix],
            lines=[row],
        )[0]
        for row, (source, limit, prefix) in enumerate(zip(sources, limits, prefixes, strict=True))
    ]


def check_same(results, expected, tolerance):
    assert len(results) == len(expected)
    for hypotheses, others in zip(results, expected, strict=True):
        assert [(h.ids, h.finish_reason, h.end_id) for h in hypotheses] == [
            (h.ids, h.finish_reason, h.end_id) for h in others
        ]
        np.testing.assert_allclose([h.score for h in hypotheses], [h.score for h in others], atol=tolerance(2e-5))


@pytest.mark.parametrize("kind", [*SEARCHES, "forced"])
def test_sentences_that_join_give_what_they_give_alone(kind, tolerance):
    forced = SearchConfig(2, 2, forced_bos_id=4, forced_eos_id=1)
    search = SEARCHES.get(kind, forced)
    model = random_model(SMALL, gain=2, eos_bias=1, seed=1)
    sources = random_sources(model.config, LENGTHS, seed=5)
    prefixes = PREFIXES if kind != "forced" else [[]] * len(sources)
    joins = [0, 0, 0, 1, 2, 2, 2, 5, 6, 6, 7, 9]
    arguments = model, search, sources, LIMITS, prefixes
    results, sizes = run_all(*arguments, joins, sizes=(1, 2, 4, 8))
    check_same(results, search_alone(*arguments), tolerance)
    assert max(sizes) == 8 and set(sizes) <= {1, 2, 4, 8}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_every_architecture(settings, beam_size, tolerance):
    model = random_model(SETTINGS[settings], gain=2, eos_bias=1, seed=2)
    longest = model.config.decoder.max_length
    sources = random_sources(model.config, [3, 5, 4, 6, 3], seed=5)
    limits = [longest, 5, longest // 2, longest, 7]
    arguments = model, SearchConfig(beam_size, beam_size), sources, limits, [[], [], [], [4], []]
    results, _ = run_all(*arguments, joins=[0, 0, 1, 1, 2])
    check_same(results, search_alone(*arguments), tolerance)


def test_forced_first_tokens(tolerance):
    model = random_model(SMALL, gain=2, eos_bias=1, seed=1)
    sources = random_sources(model.config, LENGTHS[:6], seed=5)
    arguments = model, SearchConfig(2, 2), sources, LIMITS[:6], [[]] * 6
    results, _ = run_all(*arguments, joins=[0, 1, 2, 2, 3, 4], forced=[3, 4, 5, 6, 7, 8])
    check_same(results, search_alone(*arguments, forced=[3, 4, 5, 6, 7, 8]), tolerance)
    assert [hypotheses[0].ids[:1] for hypotheses in results] == [[n] for n in range(3, 9)]


def test_a_search_that_never_ends_needs_no_more_than_its_longest_target(tolerance):
    """The positions of targets that have left are dropped, so that the cache does not grow."""
    model = random_model(SMALL, gain=2, eos_bias=-9, seed=1)
    sources = random_sources(model.config, [3 + n % 7 for n in range(60)], seed=5)
    limits = [9 + n % 5 for n in range(60)]
    capacities = set()
    resize = running_search.resize_state

    def recorded(model, state, first, capacity):
        capacities.add(capacity)
        return resize(model, state, first, capacity)

    running_search.resize_state = recorded
    try:
        arguments = model, SearchConfig(), sources, limits, [[]] * 60
        results, sizes = run_all(*arguments, joins=[n // 2 for n in range(60)], sizes=(1, 2, 4, 8, 16))
    finally:
        running_search.resize_state = resize
    check_same(results, search_alone(*arguments), tolerance)
    assert capacities <= {16, 32} and max(sizes) == 8


def test_a_sentence_leaves_at_the_stop_test_after_its_end():
    model = random_model(SMALL, gain=2, eos_bias=-9, seed=1)
    search = SearchConfig()
    running = RunningSearch(model, search, compile_step(model, search, True, False))
    keys = running.add(padded(random_sources(model.config, [3, 5, 4]), model.config), [30, 2, 9])
    assert running.num_unfinished == 3
    left = [running.run() for _ in range(4)]
    assert [list(each) for each in left] == [keys[1:2], [], keys[2:], []]
    assert running.num_unfinished == 1 and STEPS_PER_STOP_TEST == 4


def test_a_source_without_a_hypothesis_leaves_the_others_alone(tolerance):
    model = random_model(SETTINGS["learned_positions"], gain=2, eos_bias=1, seed=1)
    sources = random_sources(model.config, [3, 5, 4], seed=5)
    model.source_embedding.weight[2] = np.nan
    sources[1][0] = 2
    arguments = model, SearchConfig(), sources, [9, 9, 9], [[]] * 3
    results, _ = run_all(*arguments, joins=[0, 1, 1])
    assert results[1] == []
    check_same(results[::2], search_alone(model, SearchConfig(), sources[::2], [9, 9], [[]] * 2), tolerance)


def test_arguments_are_checked_before_anything_joins():
    model = random_model(SMALL, gain=2, eos_bias=1, seed=1)
    search = SearchConfig()
    running = RunningSearch(model, search, compile_step(model, search, True, False))
    assert running.run() == {} and running.source_length == 0
    source = padded(random_sources(model.config, [3, 5]), model.config)
    keys = running.add(source, [9, 9])
    for wrong in ({"max_tokens": [0, 3]}, {"start_ids": [1]}, {"start_ids": [1, 99]}, {"prefix_ids": [[3]]}):
        with pytest.raises(ValueError, match="must be"):
            running.add(source, **wrong)
    results = {}
    while running.num_unfinished:
        results |= running.run()
    assert [results[key] for key in keys] == generate_ids(model, source, search, [9, 9])


def test_slots_that_are_free_stay_within_the_decoder_s_positions():
    """MLX does not check bounds."""
    model = random_model(config(output_bias=True, decoder=stack(max_length=40)), gain=2, eos_bias=-99, seed=1)
    search = SearchConfig()
    running = RunningSearch(model, search, compile_step(model, search, True, False), sizes=(1, 4))
    source = padded(random_sources(model.config, [3, 5, 4]), model.config)
    running.add(source[:1], [40])
    running.run()
    running.add(source, [38, 39, 40])
    lengths = []
    while running.num_unfinished:
        running.run()
        state = running._batch.state
        lengths.append((state.length - state.starts).max().item())
    assert 38 < max(lengths) <= 40
