"""Advice: a message names only options of the command that prints it, or the command that has them."""

import ast
import re
from pathlib import Path

import pytest
from support.command_line import error_line, leaf_commands
from support.paths import ROOT

from mlx_transformer.cli import main

OPTION = re.compile(r"(?:\b(\w+)[ :]+)?(?<![\w-])(--[a-z][a-z-]*[a-z])")
COMMANDS = leaf_commands()
# Module -> the commands that print its messages; a module that is not here names no options.
PRINTED_BY = {
    "cli/__init__.py": ("evaluate", "generate", "score"),  # the others have another message
    "cli/help.py": tuple(main.commands),
    "cli/input_lines.py": ("generate",),
    "cli/languages.py": ("attention", "evaluate", "generate", "score"),
    "cli/options.py": ("attention", "evaluate", "generate", "score"),
    "cli/pivot.py": ("generate",),
    "cli/results.py": ("generate",),
    "cli/run_stats.py": ("evaluate", "generate"),
    "cli/streams.py": ("generate", "score"),
    "cli/terms.py": ("generate",),
    "mlx_transformer/model/precision.py": ("attention", "convert", "evaluate", "generate", "score"),
    "mlx_transformer/plotting/learning_curves.py": ("plot",),
    "mlx_transformer/pretrained/loading.py": ("attention", "evaluate", "generate", "score", "train"),
    "mlx_transformer/tokenization/languages.py": ("models",),  # the message names the command of the options
    "mlx_transformer/training/trainer.py": ("train",),
    "weights/tokenizers/user_vocabularies.py": ("convert",),
    **{
        f"weights/{name}.py": tuple(main.commands)
        for name in (
            "assumptions",
            "conversion_plan",
            "convert",
            "adapters/peft_reader",
            "formats/other_formats",
            "mismatches",
            "recognition",
        )
    },
}


def options_of(command):
    """All options of a command, or of the commands in a group."""
    params = [param for name, leaf in COMMANDS.items() if f"{name} ".startswith(f"{command} ") for param in leaf.params]
    return {"--help", *(name for param in params for name in (*param.opts, *param.secondary_opts))}


def foreign_options(command, text):
    """The options that a text names and the command does not have, except after the name of a command that does."""
    for named, option in OPTION.findall(text):
        if option not in options_of(named if named in main.commands else command):
            yield option


def modules():
    """The path of each module that is not a command, and those of the commands."""
    for package in ("cli", "mlx_transformer", "weights"):
        for path in (ROOT / package).rglob("*.py"):
            yield path.relative_to(ROOT).as_posix()


def messages(path):
    """The strings of a module that name options, without docstrings, the help of options and plain names."""
    tree = ast.parse((ROOT / path).read_text())
    helps = {node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "help"}
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        # The parts of an f-string belong together, but no message names an option across two of them.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | helps:
            if OPTION.search(node.value) and not re.fullmatch(r"/?--[a-z-]+(/--[a-z-]+)?", node.value):
                yield node.value


@pytest.mark.parametrize("path", sorted(modules()))
def test_messages_name_options_of_the_commands_that_print_them(path):
    module = Path(path)
    commands = (module.stem,) if path.startswith("cli/commands/") else PRINTED_BY.get(path, ())
    for message in messages(path):
        assert commands, f"{path} names an option in {message!r}: which commands print it?"
        for command in commands:
            assert not list(foreign_options(command, message)), (command, message)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_names_options_of_its_command(command):
    texts = [COMMANDS[command].help, COMMANDS[command].epilog]
    texts += [getattr(param, "help", None) for param in COMMANDS[command].params]
    assert not list(foreign_options(command, " ".join(filter(None, texts))))


@pytest.mark.parametrize("spec", ["deck.tsv", "en:fr=deck.tsv"])
def test_a_test_set_with_three_columns_is_told_how_to_choose_two(echo, tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    Path("deck.tsv").write_text("Hi.\tSALUT.\tCC-BY 2.0\nRun!\tRUN!\tCC-BY 2.0\n")
    line = error_line(echo("evaluate", spec, status=1))
    assert f"{spec} has 3 columns: choose those of source and target, as in {spec}:1,2." in line
    assert "sentences       2 with 2 references" in echo("evaluate", f"{spec}:1,2").stdout


def test_a_bad_line_of_a_test_set_names_no_option_of_train(echo, tmp_path):
    (tmp_path / "test.tsv").write_text("no tab\n")
    line = error_line(echo("evaluate", tmp_path / "test.tsv", status=1))
    assert "line 1: a line must have one tab" in line and not list(foreign_options("evaluate", line))
