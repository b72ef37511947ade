"""Measurement in limited time by a child process: what is measured is on disk, whatever ends the process.

A setting that fails, crashes or hangs gets an error, and the next ones are measured, by another process if need be.
"""

import faulthandler
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.measure import markdown_table, table_row
from benchmarks.unattended import STOP_SECONDS, print_now, try_measurement
from mlx_transformer.storage.atomic import atomic_write_text

HANG_SECONDS = 120  # that a setting may take beyond the time of its part; compiling kernels may take that long
RESTART = 75  # exit status after an error of CUDA, which may last as long as the process
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: Its name.
        share: Its share of the time; what it leaves goes to the next part.
        columns: The figures of the table on standard output; the file has all.
        settings: Setting -> a function that gets the seconds left for it and returns rows of figures.
        note: What to know about the figures, or why there are none.
    """

    name: str
    share: float
    columns: tuple[str, ...]
    settings: dict[str, Callable[[float], list[Row]]]
    note: str = ""


class Interruption(BaseException):
    """The time is over, or the process was told to end; the argument is the signal."""


class Restart(BaseException):
    """The rest must be measured by a new process."""


class Report:
    """The results so far, in a file that is complete at any time; a new report needs facts, others are read.

    Attributes:
        file: The file.
        results: Its content. "running" is the part and the setting that are being measured.
    """

    def __init__(self, file: Path, facts: dict[str, Any] | None = None) -> None:
        self.file, self.results = file, (facts or {}) | {"state": "running", "parts": {}}
        if facts is None:
            self.read()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    def read(self) -> None:
        """Read the file."""
        self.results = json.loads(self.file.read_text(encoding="utf-8"))

    def write(self) -> None:
        """Replace the file."""
        atomic_write_text(self.file, json.dumps(self.results, indent=1) + "\n")

    def finish(self, state: str) -> None:
        """Say in the file and on standard output how the benchmark ended."""
        self.results["state"] = state
        self.results.pop("running", None)
        self.write()
        print_now(f"\nEnd: {state}.")

    def record_crash(self, reason: str) -> bool:
        """Make the crash of the measuring process the error of its setting; return False if there was none."""
        if "running" not in self.results:
            return False
        part, setting = self.results.pop("running")
        self.results["parts"][part]["measured"].append({"setting": setting, "error": reason})
        self.write()
        print_now(table_row([setting, reason]))
        return True

    def run(self, part: Part, ends: float) -> None:
        """Measure the settings of a part that have no results until a time of `time.time`; skip the others."""
        entry = self.results["parts"].setdefault(part.name, {"measured": []})
        entry |= {"note": part.note, "skipped": []}
        print_now(f"\n## {part.name}\n" + (f"\n{part.note}\n" if part.note else ""))
        if part.settings:
            print_now(markdown_table(["setting", *part.columns], []).rstrip())
        measured = {row["setting"] for row in entry["measured"]}
        settings = [setting for setting in part.settings if setting not in measured]
        for number, setting in enumerate(settings):
            left = ends - time.time()
            if left <= 0:
                entry["skipped"] = settings[number:]
                print_now(f"\nSkipped, as no time was left: {'; '.join(entry['skipped'])}.")
                break
            self.results["running"] = [part.name, setting]
            self.write()
            with watchdog(left + HANG_SECONDS):
                result = try_measurement(part.settings[setting], left / (len(settings) - number))
            row = {"setting": setting, "seconds": round(left - (ends - time.time()), 1)}
            entry["measured"].append(row | ({"rows": result} if isinstance(result, list) else result))
            del self.results["running"]
            self.write()
            for line in result_lines(part, setting, result):
                print_now(line)
            if "error" in result and "cuda" in result["error"].lower():
                raise Restart
            try_measurement(mx.clear_cache)
        self.write()


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End this process, even if it hangs in a library, if the block takes longer."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def result_lines(part: Part, setting: str, result: Any) -> list[str]:
    """Return the lines of the table for the rows of a setting or its error."""
    if "error" in result:
        return [table_row([setting, result["error"].replace("\n", " ")])]
    return [table_row([setting, *(format_figure(row.get(name)) for name in part.columns)]) for row in result]


def format_figure(value: object) -> str:
    """Format a figure of a table."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "-" if value in (None, "") else str(value)


@contextmanager
def signal_handlers(handlers: dict[signal.Signals, Callable[[int, Any], None]]) -> Iterator[None]:
    """Handle signals with other functions in the block."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(seconds: float) -> Iterator[None]:
    """Raise `Interruption` at SIGINT and SIGTERM, and when the time is over."""

    def interrupt(number: int, frame: object) -> None:
        raise Interruption(number)

    with signal_handlers(dict.fromkeys((signal.SIGALRM, signal.SIGINT, signal.SIGTERM), interrupt)):
        # Once a second from then on, because Python drops an exception that is raised in a destructor.
        signal.setitimer(signal.ITIMER_REAL, max(0, seconds), 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def run_parts(report: Report, parts: list[Part], seconds: float, until: float) -> int:
    """Run parts one after the other, each until its share of the time is over; return the exit status.

    Args:
        report: The report.
        parts: All parts, also those with results.
        seconds: The time for all parts.
        until: When it is over, as a time of `time.time`.
    """
    ends, total = until - seconds, sum(part.share for part in parts if part.settings)
    try:
        with interruptible(until - time.time()):
            for part in parts:
                ends += seconds * part.share / total if part.settings else 0
                report.run(part, ends)
    except Restart:
        return RESTART
    except Interruption as interruption:
        number = interruption.args[0]
        report.finish("the time was over" if number == signal.SIGALRM else "interrupted")
        return 0 if number == signal.SIGALRM else 128 + number
    report.finish("finished")
    return 0


def supervise(command: list[str], report: Report, until: float) -> int:
    """Run the process that measures, again after a crash or an error of CUDA; return its last exit status.

    Args:
        command: The command; it goes on after the settings of the report.
        report: The report.
        until: When the time is over; a process that does not end soon after it is killed.
    """
    while True:
        status = wait_for(subprocess.Popen(command), until)
        report.read()
        reason = f"signal {-status}" if status < 0 else f"exit status {status}"
        crashed = report.record_crash(f"The process crashed or hung, and ended with {reason}.")
        if not crashed and status != RESTART:
            return status


def wait_for(process: subprocess.Popen[bytes], until: float) -> int:
    """Pass SIGTERM on to a process, kill it if it does not end soon after a time, and return its exit status."""
    # A terminal sends SIGINT to both processes.
    handlers = {signal.SIGTERM: lambda *_: process.terminate(), signal.SIGINT: lambda *_: None}
    with signal_handlers(handlers):
        try:
            return process.wait(max(0, until - time.time()) + STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
