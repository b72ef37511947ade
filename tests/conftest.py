"""What all tests share: the device, tolerances, the fast BLAS on Linux, and the data that may be absent."""

import ctypes
import ctypes.util
import os
import signal
import sys

import pytest
from support.paths import ROOT

# MLX's CPU back end on Linux calls whatever BLAS is loaded first; OpenBLAS is many times faster than the reference one.
if sys.platform == "linux" and (_openblas := ctypes.util.find_library("openblas")):
    ctypes.CDLL(_openblas, mode=ctypes.RTLD_GLOBAL)

# Or matrix products in float32 have the precision of 10 bits, on NVIDIA's GPUs and on Apple's newer ones.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# A tolerance of the CPU in float32 -> the looser one of a GPU, which adds up in another order.
GPU_TOLERANCES = {1e-6: 1e-4, 1e-5: 1e-3, 1e-4: 2e-3, 1e-3: 1e-2}


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "gpu"), default="cpu", help="MLX device to test on")


def pytest_configure(config):
    # In a shell's background job SIGINT is ignored, also in child processes: tests of Ctrl-C need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import mlx.core as mx

    mx.set_default_device(mx.cpu if config.getoption("--device") == "cpu" else mx.gpu)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") != "cpu":
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="asserts what only the CPU promises"))


@pytest.fixture(scope="session")
def tolerance(pytestconfig):
    """Maps the written float32 tolerance of the CPU to the one of the device under test."""
    if pytestconfig.getoption("--device") == "cpu":
        return lambda value: value
    return GPU_TOLERANCES.__getitem__


@pytest.fixture(scope="session")
def shared_data():
    """The folder of corpora beside the checkout; the tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the corpora of ../shared/data are not here")
    return folder
