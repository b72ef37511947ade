"""Shared by all tests: device, tolerances, a fast BLAS on Linux, and optional corpora."""

import os
import signal

import pytest
from support.paths import ROOT

import mlx_transformer  # noqa: F401 (before MLX, so that MLX uses OpenBLAS)

# Otherwise float32 matmuls have a 10-bit mantissa on NVIDIA GPUs and on newer Apple GPUs.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# float32 tolerance of the CPU -> looser tolerance of a GPU, which sums in another order.
GPU_TOLERANCES = {1e-6: 1e-4, 1e-5: 1e-3, 1e-4: 2e-3, 1e-3: 1e-2}


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "gpu"), default="cpu", help="MLX device to test on")


def pytest_configure(config):
    # Shells ignore SIGINT in background jobs and their children, but tests of Ctrl-C need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import mlx.core as mx

    from mlx_transformer.model import precision

    mx.set_default_device(mx.cpu if config.getoption("--device") == "cpu" else mx.gpu)
    if config.getoption("--device") == "gpu":
        precision.gpu_architecture = lambda: None  # compute in float32 by default, as the references of the tests do


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") != "cpu":
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="asserts what only the CPU promises"))


@pytest.fixture(scope="session")
def tolerance(pytestconfig):
    """Map a float32 tolerance of the CPU to the tolerance of the device under test."""
    if pytestconfig.getoption("--device") == "cpu":
        return lambda value: value
    return GPU_TOLERANCES.__getitem__


@pytest.fixture(scope="session")
def shared_data():
    """The folder of corpora beside the checkout; tests that need it are skipped if it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the corpora of ../shared/data are not here")
    return folder
