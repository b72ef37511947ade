"""Sentences of requests that arrive together share batches, take turns, and have the results of single ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.http_server import hold_batches, serve

import mlx_transformer as mt
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.server.batching import BatchWorker, Work, WorkerClosedError
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.settings import RequestError

GREEDY = Work(SearchConfig())
BEAM = Work(SearchConfig(beam_size=2))
SUBJECTS = ["The cat", "A dog", "My sister", "The old man", "Our teacher", "The train", "This child", "Her friend"]
PREDICATES = ["is very tired.", "likes the garden.", "was late again.", "lives in Paris.", "has a red car."]


class Recorder:
    """Runs batches of a worker when `release` says so, and records them."""

    def __init__(self, max_queue=100, batch_positions=10):
        self.batches = []
        self.started, self.release = threading.Semaphore(0), threading.Semaphore(0)
        self.metrics = Metrics()
        self.worker = BatchWorker("test", self.run, batch_positions, max_queue, self.metrics, small_threads=0)

    def run(self, work, lines, first_line):
        self.started.release()
        self.release.acquire()
        texts = [line.text for line in lines]
        self.batches.append((texts, first_line))
        for text in texts:
            if text == "bad":
                raise RuntimeError("a bug")
            yield text.upper()

    def submit(self, texts, work=GREEDY, positions=1):
        return self.worker.submit([(SourceLine(text), positions) for text in texts], work)

    def finish(self):
        """Run everything; return the texts of the batches."""
        self.release.release(1000)
        self.worker.close()
        return [texts for texts, _ in self.batches]


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.finish()


def hold(recorder):
    """Let the worker begin a batch, so that what is submitted now waits."""
    recorder.submit(["first"])
    assert recorder.started.acquire(timeout=10)


def test_what_waits_shares_a_batch_in_its_order(recorder):
    hold(recorder)
    futures = [recorder.submit([text])[0] for text in "abc"]
    assert recorder.finish() == [["first"], ["a", "b", "c"]]
    assert [future.result() for future in futures] == ["A", "B", "C"]


def test_a_batch_has_a_limit_of_positions(recorder):
    hold(recorder)
    recorder.submit("abc", positions=4)
    recorder.submit(["long"], positions=50)
    assert recorder.finish() == [["first"], ["a"], ["long"], ["b", "c"]]


def test_a_new_request_goes_before_the_rest_of_a_long_one(recorder):
    recorder.submit([f"long {i}" for i in range(40)])
    assert recorder.started.acquire(timeout=10)
    recorder.submit(["short"])
    batches = recorder.finish()
    assert "short" in batches[1]
    assert sorted(text for texts in batches for text in texts) == sorted([f"long {i}" for i in range(40)] + ["short"])


def test_a_long_request_is_not_starved(recorder):
    recorder.submit([f"long {i}" for i in range(30)])
    assert recorder.started.acquire(timeout=10)
    for _ in range(8):
        recorder.submit([f"short {i}" for i in range(10)])
        recorder.release.release()
        assert recorder.started.acquire(timeout=10)
    assert sum(text.startswith("long") for texts, _ in recorder.batches[1:] for text in texts) >= 5


def test_other_work_has_another_batch(recorder):
    hold(recorder)
    recorder.submit("a")
    recorder.submit("bc", BEAM)
    recorder.submit("d")
    recorder.submit("e", Work(SearchConfig(), object()))
    recorder.submit("fg", Work(SearchConfig(), object()))
    assert recorder.finish() == [["first"], ["a", "d"], ["b", "c"], ["e"], ["f", "g"]]


def test_the_index_of_the_first_line_counts_in_its_request(recorder):
    hold(recorder)
    recorder.submit([str(i) for i in range(14)])
    recorder.finish()
    assert [first for _, first in recorder.batches] == [0, 0, 10]


def test_a_short_sentence_does_not_wait_for_the_end_of_a_large_batch():
    started, released, ran = threading.Event(), threading.Event(), []

    def run(work, lines, first_line):
        ran.append([line.text for line in lines])
        if lines[0].text == "large":
            started.set()
            assert released.wait(30)
        return [line.text.upper() for line in lines]

    worker = BatchWorker("test", run, 16 * 10, 100, Metrics())
    (large,) = worker.submit([(SourceLine("large"), 160)], GREEDY)
    assert started.wait(10)
    long, short, rest = (
        worker.submit([(SourceLine(text), 5) for text in texts], GREEDY)
        for texts in (("a", "long", "request"), ("short",), ("re", "st"))
    )
    assert [future.result(10) for future in (*short, *rest)] == ["SHORT", "RE", "ST"]
    assert not any(future.done() for future in (large, *long))
    released.set()
    worker.close()
    assert [future.result() for future in (large, *long)] == ["LARGE", "A", "LONG", "REQUEST"]
    assert ran[-1] == ["a", "long", "request"]


def test_a_full_queue_refuses_all_of_a_request():
    recorder = Recorder(max_queue=3)
    hold(recorder)
    recorder.submit("abcdef")  # an empty queue takes any request
    with pytest.raises(RequestError, match="6 sentences wait") as error:
        recorder.submit("g")
    assert error.value.status == 503 and error.value.headers["Retry-After"].isdigit()
    assert recorder.finish() == [["first"], list("abcdef")]


def test_cancelled_sentences_make_room_in_a_full_queue():
    recorder = Recorder(max_queue=3)
    hold(recorder)
    for future in recorder.submit("ab"):
        future.cancel()
    recorder.submit("c")
    recorder.submit("de")
    assert recorder.finish() == [["first"], ["c", "d", "e"]]


def test_an_error_reaches_those_that_have_no_result_and_the_worker_goes_on(recorder):
    hold(recorder)
    good, bad, rest = (recorder.submit([text])[0] for text in ("good", "bad", "rest"))
    recorder.release.release(2)
    assert good.result(10) == "GOOD"
    for future in (bad, rest):
        assert isinstance(future.exception(10), RuntimeError)
    (later,) = recorder.submit(["later"])
    recorder.release.release()
    assert later.result(10) == "LATER"


def test_cancelled_sentences_are_not_run(recorder):
    hold(recorder)
    first, _ = recorder.submit("ab")
    first.cancel()
    assert recorder.finish() == [["first"], ["b"]]


def test_a_closed_worker_finishes_and_takes_no_more(recorder):
    hold(recorder)
    (future,) = recorder.submit("a")
    recorder.finish()
    assert future.result() == "A"
    with pytest.raises(WorkerClosedError):
        recorder.submit("b")


def test_requests_of_many_clients_share_batches_and_have_the_results_of_single_ones(client, bundled):
    texts = [f"{subject} {predicate}" for subject in SUBJECTS for predicate in PREDICATES]
    expected = [mt.generate(*bundled, text) for text in texts]
    names = ("sentences_total", "batch_sentences_sum", "batch_sentences_count")
    before = [client.metric(name) for name in names]
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(client.translate, texts))
    assert [answer.json["translatedText"] for answer in answers] == expected
    sentences, in_batches, batches = (client.metric(name) - old for name, old in zip(names, before, strict=True))
    assert sentences == len(texts)
    assert in_batches / batches > 4


def test_a_full_queue_answers_503_and_the_server_goes_on(bundled):
    with serve(lambda name: bundled, small_batches=False, max_queue=2) as client, ThreadPoolExecutor(4) as pool:
        with hold_batches(client) as entered:
            first = pool.submit(client.translate, "Good morning!")
            assert entered.wait(10)
            waiting = pool.submit(client.translate, ["I love you.", "Hello."])
            client.wait_for("waiting_sentences", 2)
            refused = client.translate("Hello.")
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
            refused = client.post("/v1/completions", {"prompt": "Hello."})
            assert refused.status == 503 and refused.json["error"]["code"] == "queue_full"
        assert [future.result().status for future in (first, waiting)] == [200, 200]
        assert client.translate("Hello.").status == 200
