"""Tests of measuring in limited time: nothing measured is lost, whatever ends the process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import supervision
from benchmarks.supervision import Part, Report


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / "results.json"


def run_settings(file, generation, training=None, seconds=60):
    """Run functions as settings of the parts "generation" and "training"; return the exit status and the results."""
    parts = [Part("generation", 0.3, ("figure",), generation), Part("training", 0.1, ("figure",), training or {})]
    status = supervision.run_parts(Report(file, {}), parts, seconds, time.time() + seconds)
    return status, json.loads(file.read_text())


def figure(value):
    """Return a setting that measures one figure."""
    return lambda seconds: [{"figure": value}]


def fail(seconds):
    raise TypeError(f"out of memory\nin {Path('/', 'some', 'folder')}")


@pytest.mark.parametrize(
    ("seconds", "sent", "status", "state"),
    [(60, signal.SIGTERM, 143, "interrupted"), (60, signal.SIGINT, 130, "interrupted"), (0.5, 0, 0, "time")],
)
def test_an_interruption_loses_nothing_measured(file, seconds, sent, status, state):
    def interrupted(seconds):
        saved.append(json.loads(file.read_text()))
        os.kill(os.getpid(), sent)
        time.sleep(50)

    saved, started = [], time.monotonic()
    settings = {"first": figure(1.5), "second": interrupted}
    ended, results = run_settings(file, settings, {"third": figure(2)}, seconds)
    assert time.monotonic() - started < 30
    assert ended == status and state in results["state"]
    for content in (saved[0], results):
        (entry,) = content["parts"]["generation"]["measured"]
        assert entry["setting"] == "first" and entry["rows"] == [{"figure": 1.5}]
    assert saved[0]["running"] == ["generation", "second"] and "running" not in results


def test_a_failed_setting_does_not_stop_the_others(file, capsys):
    status, results = run_settings(file, {"a": fail, "b": figure(1)}, {"c": fail})
    assert status == 0 and results["state"] == "finished"
    failed, measured = results["parts"]["generation"]["measured"]
    assert failed["error"] == "TypeError: out of memory\nin <path>" and measured["rows"] == [{"figure": 1}]
    assert "| a | TypeError: out of memory in <path> |" in capsys.readouterr().out
    assert "error" in results["parts"]["training"]["measured"][0]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("os.abort()", "The process crashed or hung, and ended with signal 6."),
        ("time.sleep(50)", "The process crashed or hung, and ended with exit status 1."),
        ("raise_error('CUDA out of memory')", "RuntimeError: CUDA out of memory"),
    ],
)
@pytest.mark.slow
def test_a_crash_or_a_hang_costs_one_setting(file, failure, error):
    program = f"""
import os, sys, time
from benchmarks import supervision
supervision.HANG_SECONDS = -49
def raise_error(text):
    raise RuntimeError(text)
settings = {{"a": lambda seconds: [{{"pid": os.getpid()}}], "b": lambda seconds: {failure}}}
parts = [supervision.Part("generation", 1, ("pid",), settings | {{"c": settings["a"]}})]
sys.exit(supervision.run_parts(supervision.Report(supervision.Path({str(file)!r})), parts, 50, time.time() + 50))
"""
    status = supervision.supervise([sys.executable, "-c", program], Report(file, {"fact": 1}), time.time() + 50)
    results = json.loads(file.read_text())
    first, failed, last = results["parts"]["generation"]["measured"]
    assert status == 0 and results["state"] == "finished" and results["fact"] == 1
    assert failed["setting"] == "b" and failed["error"] == error
    assert first["rows"][0]["pid"] != last["rows"][0]["pid"]


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(supervision, "STOP_SECONDS", 0.1)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)"])
    assert supervision.wait_for(process, time.time()) == -9
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_process_that_cannot_start_is_not_started_again(file):
    assert supervision.supervise([sys.executable, "-c", "raise SystemExit(3)"], Report(file, {}), time.time() + 50) == 3


def test_time_is_shared_among_parts_and_settings(file):
    shares = []
    settings = {name: lambda seconds: shares.append(seconds) or [] for name in "ab"}
    run_settings(file, settings, {"c": settings["a"]})
    assert shares == pytest.approx([45 / 2, 45, 60], abs=1)
