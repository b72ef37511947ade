"""Any number of threads use the same models, with the same results as alone."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from support.tiny_models import config, random_model
from support.training_cases import bitwise_equal, run_options, write_corpora

import mlx_transformer as mt

WORDS = ["ab", "cde", "fg", "hijk", "l", "mno"]
LINES = ["ab cde", "fg hijk l mno", "l", "mno mno ab fg cde hijk l"]
GREEDY, BEAM = mt.SearchConfig(max_tokens=6), mt.SearchConfig(beam_size=3, max_tokens=6)
SAMPLING = mt.SearchConfig(temperature=1.0, max_tokens=6, seed=7)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS)] * 3
    return mt.Tokenizer.train(texts, texts, 300)


def make_models(tokenizer):
    size = tokenizer.source_vocab_size
    return [random_model(config(source_vocab_size=size, target_vocab_size=size), seed, gain=3) for seed in (1, 2)]


def abandoned_stream(model, tokenizer, line):
    stream = mt.stream_generate(model, tokenizer, line, GREEDY)
    return next(stream)


def attention(model, tokenizer, line):
    weights = mt.attention_ids(model, mx.array([tokenizer.encode(line)]), mx.array([[2, 5, 6]]))
    return weights.cross[0].tolist()


def loaded(model, tokenizer, line, folder):
    return mt.generate(*mt.load(folder), line, GREEDY)


CALLS = {
    "greedy": lambda model, tokenizer, line, _: mt.generate(model, tokenizer, line, GREEDY),
    "beam": lambda model, tokenizer, line, _: mt.generate(model, tokenizer, [line, *LINES], BEAM),
    "sampling": lambda model, tokenizer, line, _: mt.generate(model, tokenizer, line, SAMPLING),
    "prefix": lambda model, tokenizer, line, _: mt.generate(model, tokenizer, line, BEAM, target_prefix="ab"),
    "stream": lambda model, tokenizer, line, _: list(mt.stream_generate(model, tokenizer, line, GREEDY)),
    "abandoned stream": lambda model, tokenizer, line, _: abandoned_stream(model, tokenizer, line),
    "score": lambda model, tokenizer, line, _: list(mt.score(model, tokenizer, [line, "l"], ["fg ab", line])),
    "attention": lambda model, tokenizer, line, _: attention(model, tokenizer, line),
    "load": loaded,
}


def run_calls(models, tokenizer, folder, seed, count):
    """Make random calls; return their names and results."""
    rng = random.Random(seed)
    results = []
    for _ in range(count):
        key = (rng.choice(list(CALLS)), rng.randrange(2), rng.choice(LINES))
        name, model, line = key
        results.append((key, CALLS[name](models[model], tokenizer, line, folder)))
    return results


@pytest.mark.parametrize(("threads", "count"), [(8, 6), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_mixed_calls_give_the_results_of_single_ones_also_beside_training(tokenizer, tmp_path, threads, count):
    models = make_models(tokenizer)
    folder = tmp_path / "model"
    mt.save(folder, models[0], tokenizer)
    options = run_options(write_corpora(tmp_path), bleu_sentences=2)
    with ThreadPoolExecutor(threads + 1) as pool:
        training = pool.submit(mt.train, options)
        for _ in ("cold", "warm"):
            jobs = [pool.submit(run_calls, models, tokenizer, folder, seed, count) for seed in range(threads)]
            results = [row for job in jobs for row in job.result()]
        best = mt.load_model(training.result()).parameters()
    alone = make_models(tokenizer)
    expected = {
        (name, model, line): CALLS[name](alone[model], tokenizer, line, folder)
        for name, model, line in {key for key, _ in results}
    }
    assert {name for name, _, _ in expected} == set(CALLS)
    for key, result in results:
        assert result == expected[key], key
    again = mt.train(run_options(write_corpora(tmp_path), bleu_sentences=2, output=str(tmp_path / "again")))
    assert bitwise_equal(best, mt.load_model(again).parameters())


def test_threads_that_end_leave_models_usable(tokenizer):
    model, _ = make_models(tokenizer)
    expected = mt.generate(model, tokenizer, LINES, BEAM)
    results = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: results.append(mt.generate(model, tokenizer, LINES, BEAM)))
        thread.start()
        thread.join()
    assert results == [expected] * 20


def test_generators_may_be_advanced_by_a_different_thread_each_time(tokenizer):
    """Web frameworks run each step of a generator in some thread of a pool."""
    model, _ = make_models(tokenizer)
    expected = list(mt.stream_generate(model, tokenizer, LINES[1], GREEDY))
    hypotheses = list(mt.generate_hypotheses(model, tokenizer, LINES, BEAM, batch_tokens=30))
    for make, results in (
        (lambda: mt.stream_generate(model, tokenizer, LINES[1], GREEDY), expected),
        (lambda: mt.generate_hypotheses(model, tokenizer, LINES, BEAM, batch_tokens=30), hypotheses),
    ):
        with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
            generator = make()
            rows = [(first, second)[i % 2].submit(next, generator).result() for i in range(len(results))]
            assert rows == results


def test_calls_from_asyncio(tokenizer):
    models = make_models(tokenizer)

    async def gather():
        calls = [asyncio.to_thread(mt.generate, models[i % 2], tokenizer, line, BEAM) for i, line in enumerate(LINES)]
        return await asyncio.gather(*calls)

    assert asyncio.run(gather()) == [mt.generate(models[i % 2], tokenizer, line, BEAM) for i, line in enumerate(LINES)]
