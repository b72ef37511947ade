"""Texts of several threads share a running search, and have the results that they have alone."""

import copy
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from support.texts import CORPUS
from support.tiny_models import config, padded, random_model, random_sources, stack

import mlx_transformer as mt
from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.decoding import running_search
from mlx_transformer.decoding.hypothesis import NoHypothesisError
from mlx_transformer.inference import engine as engine_module
from mlx_transformer.inference.engine import Engine, EngineClosedError
from mlx_transformer.model import shortlist as model_shortlist

SEARCHES = [mt.SearchConfig(), mt.SearchConfig(3, 2, length_penalty=0.6), mt.SearchConfig(temperature=0.9, seed=4)]


@pytest.fixture(scope="module")
def tokenizer():
    return mt.Tokenizer.train(CORPUS, CORPUS, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    size = tokenizer.source_vocab_size
    model = random_model(
        config(source_vocab_size=size, target_vocab_size=size, output_bias=True, decoder=stack(max_length=64)),
        gain=2,
        eos_bias=3,
        seed=1,
    )
    model.search_defaults = mt.SearchConfig(max_tokens=20)
    return model


@pytest.fixture
def engine(model):
    with Engine(model) as engine:
        yield engine


def record_batches(monkeypatch):
    """Return a list that gets the number of sentences of each step of a running search."""
    sizes, start = [], running_search.start_step
    monkeypatch.setattr(running_search, "start_step", lambda state: (sizes.append(len(state.tokens)), start(state))[1])
    return sizes


class Gate:
    """Holds an engine's thread until it is opened."""

    def __init__(self, engine):
        self._opened, entered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=engine.run, args=(lambda: (entered.set(), self._opened.wait(30)),))
        self._thread.start()
        assert entered.wait(10)

    def open(self):
        self._opened.set()
        self._thread.join()


def waiting(engine):
    return sum(len(search.waiting) for search in engine._searches.values())


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beam", "sampling"])
def test_texts_of_many_threads_give_what_they_give_alone(model, tokenizer, search, monkeypatch):
    search = replace(search, max_tokens=20)
    texts = [CORPUS[n % len(CORPUS)] for n in range(40)]
    expected = [mt.generate(model, tokenizer, text, search) for text in texts]
    sizes = record_batches(monkeypatch)
    with Engine(model), ThreadPoolExecutor(40) as executor:
        results = list(executor.map(lambda text: mt.generate(model, tokenizer, text, search), texts))
    assert results == expected and len(set(results)) > 5
    assert max(sizes) > 4


def test_buffers_are_freed_while_the_engine_is_busy(model, tokenizer, monkeypatch):
    monkeypatch.setattr(engine_module, "ROUNDS_PER_CLEARING", 3)
    clearings, clear_cache = [], mx.clear_cache
    monkeypatch.setattr(mx, "clear_cache", lambda: (clearings.append(engine._searches), clear_cache()))
    search = mt.SearchConfig(max_tokens=60, suppress_ids=(model.config.eos_id,))
    with Engine(model) as engine:
        mt.generate(model, tokenizer, CORPUS[0], search)
    assert sum(map(bool, clearings)) >= 3


def test_a_sentence_joins_a_search_that_runs(model, engine, monkeypatch):
    """It has its result before the end of the search that it joined."""
    sources = random_sources(model.config, [5, 9, 4], seed=2)
    never = mt.SearchConfig(suppress_ids=(model.config.eos_id,))
    alone = mt.generate_ids(model, padded(sources[2:], model.config), never, [4])
    steps, start, running = [], running_search.start_step, threading.Event()

    def slow(state):
        steps.append(len(state.tokens))
        running.set()
        time.sleep(0.02)
        start(state)

    monkeypatch.setattr(running_search, "start_step", slow)
    with ThreadPoolExecutor(1) as executor:
        long = executor.submit(engine.generate_ids, padded(sources[:2], model.config), never, max_tokens=[60, 60])
        assert running.wait(10)
        assert (
            engine.generate_ids(padded(sources[2:], model.config), never, max_tokens=[4])[0][0].ids == alone[0][0].ids
        )
        assert not long.done()
        assert [len(hypotheses[0].ids) for hypotheses in long.result()] == [60, 60]
    assert 2 < max(steps) <= 4 and len(steps) <= 61, "one search, not one after the other"


def test_other_searches_run_at_the_same_time(model, engine, monkeypatch):
    source = padded(random_sources(model.config, [5], seed=2), model.config)
    steps, start = [], running_search.start_step
    monkeypatch.setattr(running_search, "start_step", lambda state: (steps.append(state.tokens.shape[1]), start(state)))
    gate = Gate(engine)
    with ThreadPoolExecutor(2) as executor:
        never = (model.config.eos_id,)
        futures = [
            executor.submit(engine.generate_ids, source, mt.SearchConfig(beams, suppress_ids=never), max_tokens=[20])
            for beams in (1, 3)
        ]
        wait_until(lambda: waiting(engine) == 2)
        gate.open()
        results = [future.result() for future in futures]
    assert [len(result[0]) for result in results] == [1, 1]
    first, last = ([index for index, beams in enumerate(steps) if beams == each] for each in (1, 3))
    assert min(last) < max(first) and min(first) < max(last), "their steps alternate"


def test_a_batch_has_a_limit_of_positions(model, monkeypatch):
    sizes = record_batches(monkeypatch)
    sources = random_sources(model.config, [9] * 12, seed=2)
    expected = mt.generate_ids(model, padded(sources, model.config), mt.SearchConfig(2), [12] * 12)
    sizes.clear()
    with Engine(model, batch_tokens=9 * 2 * 4) as engine:
        results = engine.generate_ids(padded(sources, model.config), mt.SearchConfig(2), max_tokens=[12] * 12)
    assert [[h.ids for h in row] for row in results] == [[h.ids for h in row] for row in expected]
    assert max(sizes) == 4


def test_sources_that_run_count_in_the_limit_of_positions(model, monkeypatch):
    """All sources are padded to the longest one."""
    shapes, start = [], running_search.start_step
    sources = random_sources(model.config, [36, *[4] * 8], seed=2)
    monkeypatch.setattr(running_search, "start_step", lambda state: (shapes.append(len(state.tokens)), start(state)))
    never = mt.SearchConfig(suppress_ids=(model.config.eos_id,))
    with Engine(model, batch_tokens=36 * 4) as engine, ThreadPoolExecutor(2) as executor:
        gate = Gate(engine)
        long = executor.submit(engine.generate_ids, padded(sources[:1], model.config), never, max_tokens=[40])
        wait_until(lambda: waiting(engine) == 1)
        short = executor.submit(engine.generate_ids, padded(sources[1:], model.config), never, max_tokens=[5] * 8)
        wait_until(lambda: waiting(engine) == 9)
        gate.open()
        assert len(long.result(30)) == 1 and len(short.result(30)) == 8
    assert max(shapes) == 4


def test_sources_of_a_request_that_has_failed_do_not_join(model, monkeypatch):
    joined, prefill = [], running_search.prefill
    monkeypatch.setattr(
        running_search, "prefill", lambda *arguments: (joined.append(arguments[2].shape[0]), prefill(*arguments))[1]
    )
    source = padded(random_sources(model.config, [5] * 6, seed=2), model.config)
    with Engine(model, batch_tokens=5 * 2) as engine, ThreadPoolExecutor(2) as executor:
        gate = Gate(engine)
        bad = executor.submit(engine.generate_ids, source, max_tokens=[0, 9, 9, 9, 9, 9])
        wait_until(lambda: waiting(engine) == 6)
        one = padded(random_sources(model.config, [5], seed=2), model.config)
        good = executor.submit(engine.generate_ids, one, max_tokens=[9])
        wait_until(lambda: waiting(engine) == 7)
        gate.open()
        with pytest.raises(ValueError, match="max_tokens must be"):
            bad.result(30)
        assert len(good.result(30)) == 1
    assert joined == [1]


def test_an_error_of_one_request_is_not_one_of_others(model, engine):
    source = padded(random_sources(model.config, [5, 4], seed=2), model.config)
    gate = Gate(engine)
    with ThreadPoolExecutor(2) as executor:
        good = executor.submit(engine.generate_ids, source, max_tokens=[9, 9])
        wait_until(lambda: waiting(engine) == 2)
        bad = executor.submit(engine.generate_ids, source, max_tokens=[9, 0])
        wait_until(lambda: waiting(engine) == 4)
        gate.open()
        with pytest.raises(ValueError, match="max_tokens must be"):
            bad.result()
        assert good.result() == mt.generate_ids(model, source, max_tokens=[9, 9])
    with pytest.raises(ValueError, match="max_tokens must have 2 values, one for each source, not 1"):
        engine.generate_ids(source, max_tokens=[9])
    with pytest.raises(ValueError, match="source must be"):
        engine.generate_ids(mx.array([[10**6]]))
    assert engine.generate_ids(source[:0]) == []


@pytest.mark.parametrize("function", ["start_step", "prefill"])
def test_a_failure_of_the_device_ends_its_requests_only(model, engine, function, monkeypatch):
    source = padded(random_sources(model.config, [5, 4], seed=2), model.config)
    original = vars(running_search)[function]

    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(running_search, function, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate_ids(source)
    monkeypatch.setattr(running_search, function, original)
    assert engine.generate_ids(source, max_tokens=[9, 9]) == mt.generate_ids(model, source, max_tokens=[9, 9])


def test_a_source_without_a_hypothesis(tokenizer):
    size = tokenizer.source_vocab_size
    model = random_model(config(source_vocab_size=size, target_vocab_size=size, output_bias=True))
    model.output_bias[3] = np.nan
    with Engine(model) as engine:
        with pytest.raises(NoHypothesisError):
            engine.generate_ids(mx.array([[4, 5, 1]]))
        with pytest.raises(ValueError, match="the model's logits are not finite"):
            mt.generate(model, tokenizer, CORPUS[0])


def test_alignments_scores_and_glossaries(model, tokenizer):
    texts = CORPUS[:4]
    for options in (
        {"alignment": AlignmentConfig(), "token_scores": True},
        {"glossary": {CORPUS[0].split()[0]: "zebra"}},
        {"target_prefix": "The"},
    ):
        search = mt.SearchConfig(2, max_tokens=20)
        expected = list(mt.generate_hypotheses(model, tokenizer, texts, search, **options))
        with Engine(model):
            results = list(mt.generate_hypotheses(model, tokenizer, texts, search, **options))
        assert [[h.text for h in row] for row in results] == [[h.text for h in row] for row in expected]
        assert [[h.alignment for h in row] for row in results] == [[h.alignment for h in row] for row in expected]


def test_shortlists_share_no_batch(model, engine):
    source = padded(random_sources(model.config, [5, 4], seed=2), model.config)
    shortlists = [list(range(4, 60)), list(range(60, 120)), None]
    gate = Gate(engine)
    with ThreadPoolExecutor(3) as executor:
        options = [{"max_tokens": [9, 9], "shortlist": shortlist} for shortlist in shortlists]
        futures = [executor.submit(engine.generate_ids, source, **each) for each in options]
        wait_until(lambda: waiting(engine) == 6)
        gate.open()
        for future, each in zip(futures, options, strict=True):
            assert future.result(30) == mt.generate_ids(model, source, **each)


def test_prefixes_need_not_be_on_a_shortlist(model, engine, monkeypatch):
    monkeypatch.setattr(model_shortlist, "ROW_MULTIPLE", 4)
    source = padded(random_sources(model.config, [5, 4], seed=2), model.config)
    prefixes = [[90, 91], [92]]
    arguments = {"prefix_ids": prefixes, "max_tokens": [5, 5], "shortlist": list(range(4, 60))}
    results = engine.generate_ids(source, **arguments)
    assert results == mt.generate_ids(model, source, **arguments)
    assert [row[0].ids[: len(prefix)] for row, prefix in zip(results, prefixes, strict=True)] == prefixes


def test_functions_run_in_the_thread_of_the_engine(engine):
    assert engine.run(lambda: threading.current_thread().name) == "engine"
    with pytest.raises(KeyError, match="a bug"):
        engine.run(lambda: {}["a bug"])


def test_a_function_in_the_engine_may_generate(model, tokenizer):
    expected = mt.generate(model, tokenizer, CORPUS[0])
    with Engine(model) as engine:
        assert engine.run(lambda: mt.generate(model, tokenizer, CORPUS[0])) == expected
        aligned = engine.run(
            lambda: [*mt.generate_hypotheses(model, tokenizer, CORPUS[0], alignment=AlignmentConfig())]
        )
    assert aligned[0][0].text == expected and aligned[0][0].alignment is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("broken", ["function", "observe"])
def test_nobody_waits_for_an_engine_whose_thread_has_ended(model, tokenizer, broken):
    expected = mt.generate(model, tokenizer, CORPUS[0])
    observe = (lambda size: 1 / 0) if broken == "observe" else None
    with Engine(model, observe=observe) as engine:
        if broken == "function":
            with pytest.raises(SystemExit):
                engine.run(lambda: sys.exit(1))
        assert mt.generate(model, tokenizer, CORPUS[0]) == expected
        assert mt.generate(model, tokenizer, CORPUS[0]) == expected


def test_calls_go_on_without_an_engine_that_is_closed(model, tokenizer):
    expected = mt.generate(model, tokenizer, CORPUS[0])
    end = time.monotonic() + 1.5

    def generate(_):
        texts = set()
        while time.monotonic() < end:
            texts.add(mt.generate(model, tokenizer, CORPUS[0]))
        return texts

    with ThreadPoolExecutor(3) as executor:
        results = [executor.submit(generate, number) for number in range(3)]
        while time.monotonic() < end:
            with Engine(model):
                time.sleep(0.01)
        assert [result.result(30) for result in results] == [{expected}] * 3


def test_closing_again_leaves_a_newer_engine_alone(model):
    old = Engine(model)
    old.close()
    with Engine(model) as engine:
        old.close()
        assert model.engine is engine
        with pytest.raises(RuntimeError, match="cannot be closed by a function that it runs"):
            engine.run(engine.close)
        assert model.engine is engine


def test_weights_that_change_while_an_engine_is_open(model, tokenizer):
    changed = copy.deepcopy(model)
    with Engine(changed):
        before = mt.generate(changed, tokenizer, CORPUS[0])
        changed.update(tree_map(lambda array: array * 0.5, changed.parameters()))  # lazily, in this thread
        after = mt.generate(changed, tokenizer, CORPUS[0])
    assert before == mt.generate(model, tokenizer, CORPUS[0]) and after == mt.generate(changed, tokenizer, CORPUS[0])


def test_an_idle_engine_holds_no_batch(model, engine):
    source = padded(random_sources(model.config, [5, 4], seed=2), model.config)
    engine.generate_ids(source, max_tokens=[9, 9])
    wait_until(lambda: not engine._searches)
    time.sleep(0.1)
    gc.collect()
    assert not any(type(each) is running_search.RunningSearch for each in gc.get_objects())


def test_closing_finishes_what_waits_and_refuses_more(model):
    engine = Engine(model)
    source = padded(random_sources(model.config, [5], seed=2), model.config)
    gate = Gate(engine)
    with ThreadPoolExecutor(2) as executor:
        future = executor.submit(engine.generate_ids, source, max_tokens=[9])
        wait_until(lambda: waiting(engine) == 1)
        closing = executor.submit(engine.close)
        wait_until(lambda: engine._closed)
        with pytest.raises(EngineClosedError, match="takes no calls after it is closed"):
            engine.generate_ids(source)
        gate.open()
        assert future.result() == mt.generate_ids(model, source, max_tokens=[9])
        closing.result()


def test_a_model_has_one_engine_and_its_copies_have_none(model, engine):
    with pytest.raises(ValueError, match="A model can have one engine: close the other one first"):
        Engine(model)
    assert model.engine is engine and copy.deepcopy(model).engine is None
    engine.close()
    assert model.engine is None
