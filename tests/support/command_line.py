"""Helpers for tests of the command line."""

import sys
from pathlib import Path

from support import echo_model

ECHO = [sys.executable, str(Path(echo_model.__file__))]


def error_line(result):
    """The one line that a failure prints."""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr
