"""Tests of what the commands for machines of others share."""

import platform
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import unattended


def test_output_of_pytest_is_parsed():
    text = (
        "F.\n= short test summary info =\nFAILED tests/test_a.py::test_b[c] - assert 1\n1 failed, 2 passed in 3.21s\n"
    )
    assert unattended.parse_test_output(text + "a warning of a library\n") == {
        "result": "1 failed, 2 passed in 3.21s",
        "counts": {"failed": 1, "passed": 2},
        "failed": ["tests/test_a.py::test_b[c]"],
    }


def test_paths_and_host_names_are_anonymised(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "annas-mac.local")
    text = unattended.anonymise(f"OSError: {Path('/', 'Users', 'anna', 'x y', 'model.bin')} on annas-mac.local")
    assert text == "OSError: <path> on <name>"
    assert unattended.anonymise("tests/test_a.py: 3 / 4") == "tests/test_a.py: 3 / 4"


def test_a_failed_measurement_does_not_stop_the_others():
    def fail():
        raise ValueError(f"no model at {Path('/', 'some', 'folder')}")

    assert unattended.try_measurement(fail) == {"error": "ValueError: no model at <path>"}


@pytest.mark.slow
def test_tests_that_ran_before_the_time_was_over_count(tmp_path):
    code = "import time\ndef test_fails(): assert 0\ndef test_passes(): pass\ndef test_waits(): time.sleep(60)\n"
    (tmp_path / "test_time.py").write_text(code)
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')\n")
    paths = [str(tmp_path / "test_time.py"), f"--rootdir={tmp_path}", "-c/dev/null"]
    results = unattended.run_tests("cpu", paths, seconds=5)
    assert results["stopped"] and "1 failed, 1 passed" in results["result"]
    assert [name.endswith("::test_fails") for name in results["failed"]] == [True]


def test_a_command_that_ignores_its_signal_is_killed(monkeypatch):
    monkeypatch.setattr(unattended, "STOP_SECONDS", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('a', flush=True); time.sleep(60)"
    assert unattended.run_for([sys.executable, "-c", code], 1, signal.SIGTERM) == ("a\n", True, -9)
