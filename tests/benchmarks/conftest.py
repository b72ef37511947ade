"""Fixtures of the tests of benchmarks: no pauses, no compilation, one torch thread."""

import mlx.core as mx
import pytest

from benchmarks import measure


@pytest.fixture(autouse=True)
def no_pauses_and_no_compilation(monkeypatch):
    """These tests check no times, and on a CPU every new trace costs seconds."""
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0)
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def one_torch_thread():
    """Idle threads of torch would spin."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
