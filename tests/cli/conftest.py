"""Fixtures for tests of the command line."""

import contextlib
import os
import subprocess
import threading

import pytest
from click.testing import CliRunner
from support import echo_model
from support.command_line import ECHO
from support.paths import ROOT

from mlx_transformer.cli import main


@pytest.fixture
def echo(monkeypatch):
    """Runs the command line in this process with the stand-in for a model."""
    echo_model.install(monkeypatch.setitem)

    def invoke(*arguments, stdin=b"", status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.fixture
def start():
    """Starts the command line in a process of its own; one that hangs is killed, so that its test fails."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments, **options):
            pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
            # With PYTHONUNBUFFERED a forgotten flush would go unseen.
            environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | options.pop("env", {})
            process = stack.enter_context(subprocess.Popen([*ECHO, *arguments], env=environment, **pipes | options))
            timer = threading.Timer(30, process.kill)
            timer.start()
            stack.callback(process.kill)
            stack.callback(timer.cancel)
            return process

        yield begin
