"""The peak of a program's memory, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import mlx.core as mx
import mlx_transformer as mt
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
    """Bytes that a program adds to the peak of this process's resident memory, pages of mapped files among them."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells the peak of one process, and takes pages of a file out of it at once")
    command = [sys.executable, "-c", PROGRAM.format(program), str(source), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])
