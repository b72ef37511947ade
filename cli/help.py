"""Help in groups, usage errors of one line, and error messages with the names of options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mlx_transformer.messages import similar_names

COMMAND_KEY = f"{__name__}.command"  # of what contexts share: the command that runs
MAX_NAME = 30  # characters of an option with its value, beside which the help stands
UNKNOWN_NAME = re.compile(r"No such (command|option):? '?([^' .?]+)")  # worded differently by versions of click
EXTRA_ARGUMENT = re.compile("Got unexpected extra argument")
TEXT_HINT = 'A TEXT that begins with a dash stands after --, as in -- "- Hello!".'


class GroupedCommand(click.Command):
    """A command whose help lists options in the groups of `option_group`."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and record for error messages that it was this one."""
        ctx.meta[COMMAND_KEY] = self
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group in the order of the command."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                name, text = record
                # click puts a default that is a description, and no value, in brackets of its own.
                record = name, re.sub(r"\[default: \((.*?)\)", r"[default: \1", text)
                groups.setdefault(vars(param).get("help_group", "Help"), []).append(record)
        width = max(len(name) for records in groups.values() for name, _ in records)
        for title, records in groups.items():
            # All groups have the same first column: its width is that of the widest name, up to MAX_NAME.
            (name, text), *others = records
            with formatter.section(title):
                formatter.write_dl([(name.ljust(min(width, MAX_NAME)), text), *others], col_max=MAX_NAME)


def option_group(title: str, *options: Any) -> Any:
    """Return a decorator that adds options to a command; its help lists them under a title, in their order."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
            function.__click_params__[-1].help_group = title  # the option that was added last
        return function

    return add


@contextmanager
def one_line_usage_errors() -> Iterator[None]:
    """Turn usage errors, which click prints on four lines, into errors of one line, with the same exit status."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise OneLineUsageError(error) from error


class OneLineUsageError(click.ClickException):
    """A usage error whose message names the command's help."""

    exit_code = 2

    def __init__(self, error: click.UsageError) -> None:
        message = " ".join(describe_usage_error(error).split())
        if error.ctx is not None:
            message = f"{message.rstrip('.')}. See {error.ctx.command_path} --help."
        super().__init__(message)


def describe_usage_error(error: click.UsageError) -> str:
    """Return the message of a usage error, with similar names as in the errors of the library, or a hint."""
    command = error.ctx.command if error.ctx is not None else None
    if unknown := UNKNOWN_NAME.match(error.message):
        kind, name = unknown.groups()
        known = command.commands if isinstance(command, click.Group) else ()
        known = vars(error).get("possibilities") or (known if kind == "command" else ())
        if known:
            hint = (
                " A text follows a command, such as generate."
                if kind == "command" and error.ctx and not error.ctx.parent
                else ""
            )
            return f"No such {kind} {name!r}. {similar_names(name, known)}{hint}"
    message = error.format_message()
    if command is not None:
        if isinstance(error, click.NoSuchOption) and takes_text(command):
            return f"{message.rstrip('.')}. {TEXT_HINT}"
        if EXTRA_ARGUMENT.match(message):
            return f"{message.rstrip('.')}. {extra_argument_hint(command)}"
    return message


def extra_argument_hint(command: click.Command) -> str:
    """Return what to do about more arguments than a command takes."""
    if not any(isinstance(param, click.Argument) for param in command.params):
        return "This command takes only options."
    targets = [f", and its target after {param.opts[0]}" for param in command.params if param.name == "target"]
    return f"Put {'a TEXT' if takes_text(command) else 'an argument'} with spaces in quotes{''.join(targets)}."


def takes_text(command: click.Command) -> bool:
    """Whether a command has texts as arguments."""
    return any(param.name in ("text", "texts") for param in command.params if isinstance(param, click.Argument))


REMEDY = re.compile(r"\b((?:set|use|with|without|leave out) )([a-z_]+)(?= as well| to |[,.])")


def name_options(message: str, command: click.Command | None) -> str:
    """Write options in the message of the library as they are spelled on the command line: --beam-size, not beam_size.

    A message that begins with the name of an option is about the command line. In others the same name may stand for a
    field of a file, except in a remedy such as "set init as well".
    """
    flags = {str(param.name): max(param.opts, key=len) for param in command.params} if command else {}
    flags = {name: flag for name, flag in flags.items() if flag.startswith("--")}
    message = REMEDY.sub(lambda match: match[1] + flags.get(match[2], match[2]), message)
    if message.partition(" ")[0] not in flags:
        return message
    # A name of one word may also be a word of English: it is an option at the beginning, or before a value.
    for name, flag in flags.items():
        end = r"(?![\w/\"'=])" if "_" in name else r"(?= ['\d(-])"
        message = re.sub(rf"^{name}\b|(?<![\w./\"'-]){name}{end}", flag, message)
    return message


def print_all_help(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the help of the group and of every command, and exit."""
    if not value or context.resilient_parsing:
        return
    click.echo("\n\n".join(help_texts(context)))
    context.exit()


def help_texts(context: click.Context) -> Iterator[str]:
    """Yield the help of a command, and if it is a group of every command in it."""
    yield context.get_help()
    commands = context.command.commands if isinstance(context.command, click.Group) else {}
    for name, command in commands.items():
        if command.name == name:  # an alias has another name
            with command.context_class(command, info_name=name, parent=context) as child:
                yield from help_texts(child)


help_all_option = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_all_help,
    help="Show the help of every command and exit.",
)
