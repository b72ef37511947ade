"""Tests of the command that measures the memory of loading."""

import subprocess
import sys

from support.paths import ROOT

from benchmarks.load_memory import PRECISIONS


def test_every_source_and_precision_is_measured():
    command = [sys.executable, "-m", "benchmarks.load_memory", "--scale", "32", "--keep-quantized"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    header, _, _, *rows = output.splitlines()
    assert "mlx_transformer=" in header and "scale=32 | stored=float32 | keep_quantized=True" in header
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [cell[:2] for cell in cells] == [
        [source, precision] for source in ("checkpoint", "model folder") for precision in PRECISIONS
    ]
    sizes = [float(cell[2]) for cell in cells]
    assert sizes[:4] == sizes[4:] == sorted(sizes[:4], reverse=True)
    assert all(0.9 < float(cell[3]) < 2 and float(cell[4]) > 0.5 for cell in cells)
