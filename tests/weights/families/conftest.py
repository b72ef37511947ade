"""Shared by the tests of families: deterministic torch, and nothing compiled."""

import mlx.core as mx
import pytest


@pytest.fixture(autouse=True)
def deterministic_and_uncompiled():
    """Run torch with one thread and a fixed seed, and MLX without compilation, which takes seconds for every trace."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mx.disable_compile()
    yield
    mx.enable_compile()
