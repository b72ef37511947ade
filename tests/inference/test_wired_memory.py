"""Wired memory on Metal, with a stand-in for the GPU; nothing happens on other devices."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.inference import wired_memory as module
from mlx_transformer.inference.wired_memory import wired_memory

RECOMMENDED, FORMER = 1000, 7


class Metal:
    """Records the limits that are set; the limit must not change while work has been started and not awaited."""

    def __init__(self):
        self.limit, self.calls, self.busy = FORMER, [], set()

    def set_wired_limit(self, limit):
        assert not self.busy
        self.calls.append(limit)
        self.limit, former = limit, self.limit
        return former

    def start(self):
        self.busy.add(threading.get_ident())

    def synchronize(self):
        self.busy.discard(threading.get_ident())


@pytest.fixture
def metal(monkeypatch):
    metal = Metal()
    monkeypatch.setattr(module, "is_on_metal", lambda: True)
    monkeypatch.setattr(mx, "set_wired_limit", metal.set_wired_limit)
    monkeypatch.setattr(mx, "synchronize", metal.synchronize)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": RECOMMENDED})
    return metal


def test_the_limit_is_set_during_nested_blocks_and_restored(metal):
    for _ in range(2):
        with wired_memory(), wired_memory():
            assert metal.limit == RECOMMENDED
            metal.start()
        assert metal.limit == FORMER
    assert metal.calls == [RECOMMENDED, FORMER] * 2


def test_errors_restore_the_limit(metal, monkeypatch):
    with pytest.raises(KeyError), wired_memory():
        raise KeyError
    assert metal.limit == FORMER

    def fail():
        raise RuntimeError("the GPU failed")

    monkeypatch.setattr(mx, "synchronize", fail)
    with pytest.raises(RuntimeError, match="the GPU failed"), wired_memory():
        pass
    assert metal.limit == FORMER


def test_blocks_of_threads_overlap(metal):
    """The block that began first ends first; the limit stays until the other one ends."""
    both, first_ended = threading.Barrier(2, timeout=10), threading.Event()

    def first():
        with wired_memory():
            both.wait()
        first_ended.set()

    def second():
        with wired_memory():
            both.wait()
            metal.start()
            assert first_ended.wait(10)
            return metal.limit

    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(first), executor.submit(second)]
        assert [future.result() for future in futures] == [None, RECOMMENDED]
    assert metal.calls == [RECOMMENDED, FORMER]


def test_many_blocks_in_threads_leave_the_former_limit(metal):
    def use(_):
        for _ in range(200):
            with wired_memory():
                assert metal.limit == RECOMMENDED

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(use, range(4)))
    assert metal.limit == FORMER and metal.calls == [RECOMMENDED, FORMER] * (len(metal.calls) // 2)


def test_generation_wires_memory_until_it_ends_or_is_abandoned(metal):
    texts = ["ab cde"] * 3
    tokenizer = mt.Tokenizer.train(texts, texts, 300)
    size = tokenizer.source_vocab_size
    model = random_model(config(source_vocab_size=size, target_vocab_size=size))
    mt.generate(model, tokenizer, texts, max_tokens=2)
    assert metal.calls == [RECOMMENDED, FORMER]
    for results in (
        mt.generate_hypotheses(model, tokenizer, texts, max_tokens=2),
        mt.stream_generate(model, tokenizer, texts[0], max_tokens=6, min_tokens=6),
    ):
        next(results)
        assert metal.limit == RECOMMENDED
        results.close()
        assert metal.limit == FORMER


@pytest.mark.cpu
def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(mx, "set_wired_limit", None)
    with wired_memory():
        pass
