"""What the commands for machines of others share: facts about the machine, tests, errors; no paths or host names."""

import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.conditions import environment

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 20  # that a child process has to finish after a signal


def print_now(text: str) -> None:
    """Print without buffering."""
    print(text, flush=True)


def machine_facts() -> dict[str, Any]:
    """Return facts about the machine and the software, without host names, user names or paths."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return environment() | {
        "memory_gb": round(pages / 2**30, 1),
        "macos": platform.mac_ver()[0] or None,
        "metal": mx.metal.is_available(),
        "device_info": {name: anonymise(value) for name, value in mx.device_info().items()},
    }


def anonymise(value: Any) -> Any:
    """Replace paths, the host name and the user name in a text."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"(?<!\w)(?:[A-Za-z]:)?[\\/](?:[\w.@ -]+[\\/])+[\w.@-]*", "<path>", value)
    for name in (platform.node(), Path.home().name):
        text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text) if name else text
    return text


def try_measurement(measurement: Callable[..., Any], *arguments: Any) -> Any:
    """Run a measurement; if it fails, return the error, so that the other measurements still run."""
    try:
        return measurement(*arguments)
    except Exception as error:  # whatever another system or the device raises
        return {"error": anonymise(f"{type(error).__name__}: {error}")}


def run_tests(device: str, paths: Sequence[str] = ("tests",), seconds: float | None = None) -> dict[str, Any]:
    """Run tests; return the last line of pytest, its counts and the names of failed tests.

    Args:
        device: "cpu" or "gpu".
        paths: Files or folders of tests, and other arguments of pytest.
        seconds: Time after which the tests are stopped; those that ran still count.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"result": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--device", device, *paths]
    started = time.perf_counter()
    output, stopped, _ = run_for(command, seconds, signal.SIGINT, ROOT)
    return {"seconds": round(time.perf_counter() - started), "stopped": stopped, **parse_test_output(output)}


def run_for(
    command: list[str], seconds: float | None, stop_signal: signal.Signals, folder: Path | None = None
) -> tuple[str, bool, int]:
    """Run a command for a limited time.

    Args:
        command: The command with its arguments.
        seconds: Time after which it gets the signal; None for no limit.
        stop_signal: A signal on which the command finishes what it has.
        folder: Its working directory; default: the current one.

    Returns:
        What it printed, whether the time was over, and its exit status.
    """
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            return process.communicate(timeout=seconds)[0], False, process.returncode
        except subprocess.TimeoutExpired:
            return stop(process, stop_signal), True, process.returncode
        except BaseException:
            stop(process, stop_signal)
            raise


def stop(process: subprocess.Popen[str], stop_signal: signal.Signals) -> str:
    """Stop a process with a signal, or kill it if it does not end then; return what it printed."""
    process.send_signal(stop_signal)
    try:
        return process.communicate(timeout=STOP_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def parse_test_output(text: str) -> dict[str, Any]:
    """Return the last line, its counts and the names of failed tests from the output of pytest."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip()]
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    summaries = [line for line in lines if re.search(r" in [\d.]+s\b", line)]  # warnings of libraries may follow
    result = [*lines, *summaries][-1] if lines else "nothing was printed"
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", result)}
    return {"result": anonymise(result), "counts": counts, "failed": [*map(anonymise, failed)]}
