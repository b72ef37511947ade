"""Tests of the command that measures conversion and loading."""

import subprocess
import sys

from support.paths import ROOT


def test_every_task_is_measured():
    command = [sys.executable, "-m", "benchmarks.convert", "--size", "tiny", "--rounds", "1", "--no-peer"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    measured = [line.split(" | ") for line in output.splitlines() if "| mlx_transformer |" in line]
    assert [cells[0] for cells in measured] == ["| convert", "| load", "| load and read all"]
    assert all(float(cells[3]) > 0 and float(cells[7]) > 0 for cells in measured)
    assert "files=warm" in output.splitlines()[0]
