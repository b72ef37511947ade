"""Measures the peak memory of a program in a separate process."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import mlx_transformer as mt
import mlx.core as mx
from mlx_transformer.weights.formats.checkpoint import read_checkpoint
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
mx.set_default_device(mx.cpu)
mx.eval(mx.zeros(9) + 1)
source, destination = sys.argv[1:]
before = peak()
{}
print(peak() - before)
"""


def growth(program, source, destination=""):
    """Return the bytes by which a program raises its peak resident memory, which includes mapped files."""
    if sys.platform != "linux":
        pytest.skip("only Linux reports the peak of one process and releases pages of a file at once")
    command = [sys.executable, "-c", PROGRAM.format(program), str(source), str(destination)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])
