"""Ctrl-C at any moment: one line and status 130, never a traceback."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.paths import ROOT

# Sends SIGINT while a module is imported, which replaces KeyboardInterrupt by another error as C modules do.
SCRIPT = """
import runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {name!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ImportError("replaced") from error

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {arguments!r}
runpy.run_module("mlx_transformer", run_name="__main__")
"""
RUN = str(ROOT / "tests" / "support" / "runs" / "version_0.1.0")
COMMANDS = {
    "generate": ["generate", "--model", f"{RUN}/best", "Hello"],
    "score": ["score", "--model", f"{RUN}/best"],
    "info": ["info", f"{RUN}/best"],
    "plot": ["plot", RUN],
    "help": ["generate", "--help"],
}
ECHO = """
import runpy, sys
sys.path.insert(0, "tests")
from support import echo_model
echo_model.install()
runpy.run_module("mlx_transformer", run_name="__main__")
"""
COUNT = int(os.environ.get("SIGNALS", "10"))  # signals of the slow tests for each command


def run(arguments, folder, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def is_traceback_of_python(errors):
    """Whether Python was interrupted before it ran the entry point; it prints a traceback of its own then."""
    return "Traceback" in errors and not re.search(r"mlx_transformer/__main__.py., line \d+, in main", errors)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("generate", "click"),
        ("generate", "mlx_transformer.cli.streams"),
        ("generate", "mlx.core"),
        ("generate", "mlx_transformer.model.transformer"),
        ("plot", "matplotlib"),
        ("help", "mlx_transformer.cli"),
    ],
)
def test_ctrl_c_during_an_import(tmp_path, command, module):
    process = run(["-c", SCRIPT.format(name=module, arguments=COMMANDS[command])], tmp_path)
    assert process.communicate() == ("", "Interrupted.\n")
    assert process.returncode == 130 and os.listdir(tmp_path) == []


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As for commands that a shell script starts in the background."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = run(["-c", ignore + SCRIPT.format(name="mlx.core", arguments=COMMANDS["info"])], tmp_path)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "") and "parameters" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_at_any_time(tmp_path, command):
    random.seed(1)
    outcomes = set()
    for _ in range(COUNT):
        process = run(["-m", "mlx_transformer", *COMMANDS[command]], tmp_path)
        time.sleep(random.uniform(0, 0.8))
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        if not is_traceback_of_python(errors):
            outcomes.add((process.returncode, errors))
    # Complete; interrupted; or killed after everything was done.
    assert outcomes <= {(0, ""), (130, "Interrupted.\n"), (-signal.SIGINT, "")}


@pytest.mark.slow
def test_no_signal_loses_results(tmp_path):
    """The output is the old one or complete; what was generated before is in a file that Ctrl-C names."""
    random.seed(2)
    out, lines = tmp_path / "out", [f"line {number}\n" for number in range(300)]
    complete = "".join(lines).upper()
    for _ in range(COUNT):
        out.write_text("precious")
        number = random.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
        command = [sys.executable, "-c", ECHO, "generate", "--output", str(out)]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            feeder = threading.Thread(target=feed, args=(process.stdin, lines))
            feeder.start()
            time.sleep(random.uniform(0.05, 1.0))
            process.send_signal(number)
            errors = process.stderr.read()
            feeder.join()
        partials = [path for path in out.parent.glob("out.*.partial") if path.read_text()]
        assert out.read_text() in ("precious", complete) and len(partials) <= 1
        for partial in partials:
            assert out.read_text() == "precious"
            assert complete.startswith(partial.read_text()) and partial.read_text().endswith("\n")
            assert number != signal.SIGINT or errors == f"Interrupted. The results so far are in {partial}.\n"
        for path in out.parent.glob("out.*.partial"):
            path.unlink()
        assert "Traceback" not in errors or is_traceback_of_python(errors)


def feed(stream, lines):
    """Write lines slowly, until the reader is gone."""
    with contextlib.suppress(OSError), stream:
        for line in lines:
            stream.write(line)
            stream.flush()
            time.sleep(0.001)
