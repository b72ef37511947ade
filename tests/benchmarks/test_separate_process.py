"""Systems in processes of their own answer as they do in this one, without its BLAS."""

import os
import time

import numpy as np
import pytest

from benchmarks import measure
from benchmarks.separate_process import SeparateSystem

SOURCE = np.array([[3, 4], [5, 6]])


class Peer:
    """A system that reports its process."""

    exact = True

    def __init__(self, name):
        if not name:
            raise ImportError("no such system")
        self.name = name

    def supports(self, beams, batch):
        return beams == batch

    def generate(self, source, beams, tokens):
        end = time.process_time() + tokens / 100
        while time.process_time() < end:
            pass
        return [[os.getpid(), "LD_PRELOAD" in os.environ, os.environ["MLX_TRANSFORMER_BLAS"]], *source.tolist()]

    def token_timestamps(self, source, tokens):
        return {tokens: time.perf_counter()}


def test_methods_run_in_another_process_without_a_blas(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "")
    system = SeparateSystem(Peer, "one")
    assert (system.name, system.exact, system.supports(2, 2), system.supports(1, 2)) == ("one", True, True, False)
    (pid, *environment), *rows = system.generate(SOURCE, 1, 1)
    assert pid not in (os.getpid(), SeparateSystem(Peer, "two").generate(SOURCE, 1, 1)[0][0])
    assert environment == [False, "none"] and rows == SOURCE.tolist()
    assert os.environ["LD_PRELOAD"] == "" and os.environ.get("MLX_TRANSFORMER_BLAS") != "none"
    before = time.perf_counter()
    assert before < system.token_timestamps(SOURCE, 7)[7] < time.perf_counter()


def test_an_error_while_it_starts_is_raised():
    with pytest.raises(ImportError, match="no such system"):
        SeparateSystem(Peer, "")


@pytest.mark.skipif(measure.system_cpu_seconds() is None, reason="needs /proc")
def test_cpu_time_of_the_process_counts_as_our_own():
    system = SeparateSystem(Peer, "one")
    before = measure.process_cpu_seconds()
    system.generate(SOURCE, 1, 50)  # half a second
    assert measure.process_cpu_seconds() - before > 0.4
