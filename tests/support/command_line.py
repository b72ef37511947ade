"""Helpers for tests of the command line."""

import sys
from pathlib import Path

import click
from support import echo_model

from mlx_transformer.cli import main

ECHO = [sys.executable, str(Path(echo_model.__file__))]


def error_line(result):
    """The one line that a failure prints."""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def leaf_commands(group=main, name=""):
    """Map the names of the commands that run, such as "models list", to the commands."""
    commands = {}
    for part, command in group.commands.items():
        is_group = isinstance(command, click.Group)
        commands |= leaf_commands(command, f"{name}{part} ") if is_group else {f"{name}{part}": command}
    return commands
