"""The command line: the group of commands, and the conversion of errors to one line and an exit status.

Option definitions import nothing heavy, so that `--help` is quick; each command imports the library when it runs.
"""

import copy
import errno
import os
import signal
import sys
from typing import Any

import click

from mlx_transformer import __version__
from mlx_transformer.cli import input_lines, streams
from mlx_transformer.cli.commands import (
    attention,
    cache,
    convert,
    embed,
    evaluate,
    fuse,
    generate,
    info,
    models,
    plot,
    score,
    serve,
    train,
    translate_file,
)
from mlx_transformer.cli.help import COMMAND_KEY, help_all_option, name_options, one_line_usage_errors
from mlx_transformer.cli.progress import activity
from mlx_transformer.storage.redaction import hide_passwords

INTERRUPTED = 130  # 128 + SIGINT, and below 128 + SIGPIPE, as shells expect
PIPE_CLOSED = 141
MAX_ERROR = 1000  # characters of an error


class MisuseError(click.ClickException):
    """An error about the value of an option."""

    exit_code = 2


class CommandLine(click.Group):
    """A click group that prints user errors as one line with an exit status; bugs keep their traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, also with closed standard streams."""
        streams.open_closed_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # from writing --help or --version
            flush_or_discard()
            click.echo(f"Error: {describe_os_error(error)}", err=True)
            sys.exit(1)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options of the group; usage errors have one line."""
        with one_line_usage_errors():
            return super().make_context(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, the most common first."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; exit status 1 for errors of the library, 2 for bad options, 130 for Ctrl-C, 141 for a pipe."""
        try:
            raise_deferred_interrupt()
            streams.prepare_temporary_folder()
            with activity.running(), one_line_usage_errors():
                result = super().invoke(ctx)
            sys.stdout.flush()  # so that a full disk or closed pipe is reported like other errors
            return result
        except KeyboardInterrupt:
            flush_or_discard()
            click.echo("Interrupted." + partial_results_note(ctx), err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            flush_or_discard()
            ctx.exit(PIPE_CLOSED)
        except (click.Abort, click.exceptions.Exit):
            raise  # these are RuntimeErrors, too
        except click.ClickException as error:
            vars(error)["message"] = hide_passwords(error.message)
            raise
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_user_error(error):
                raise
            flush_or_discard()
            message = hide_passwords(describe_error(error, ctx))
            is_misuse = isinstance(error, ValueError) and message.startswith("--")  # it is about an option
            kind = MisuseError if is_misuse else click.ClickException
            raise kind(message + partial_results_note(ctx)) from error


def raise_deferred_interrupt() -> None:
    """Raise KeyboardInterrupt for a Ctrl-C during the imports, which the entry point sends again by a timer."""
    if signal.setitimer(signal.ITIMER_REAL, 0)[0]:
        signal.raise_signal(signal.SIGINT)


def is_user_error(error: RuntimeError) -> bool:
    """Whether the user can do something about an error: too little memory, or a full disk for MLX's compilation."""
    from mlx_transformer.inference.line_errors import is_out_of_memory
    from mlx_transformer.model.compilation import describe_compilation_error

    return is_out_of_memory(error) or describe_compilation_error(error) is not None


def describe_error(error: Exception, ctx: click.Context) -> str:
    """Format an error as one printable line."""
    if isinstance(error, RuntimeError):
        from mlx_transformer.model.compilation import describe_compilation_error

        if message := describe_compilation_error(error):
            return message
    command = ctx.meta.get(COMMAND_KEY)
    if isinstance(error, (MemoryError, RuntimeError)):
        if command and any(option.name == "batch_tokens" for option in command.params):
            return "The model and one batch do not fit in memory: lower --batch-tokens."
        return "The model does not fit in memory: use a smaller model, or a machine with more memory."
    if isinstance(error, OSError) and error.strerror:
        return describe_os_error(error)
    text = name_options(" ".join(str(error).split()), command)
    line = input_lines.escape_control_characters(text) or type(error).__name__
    # Values of files are short in messages; this is the last resort.
    return line if len(line) <= MAX_ERROR else f"{line[: MAX_ERROR - 200]} ... {line[-195:]}"


def describe_os_error(error: OSError) -> str:
    """Format an error of the operating system as one printable line."""
    if error.errno == errno.EBADF:
        return "Standard output is closed: redirect it to a file, or to /dev/null."
    where = f"{error.filename}: " if error.filename is not None else ""
    return input_lines.escape_control_characters(f"{where}{error.strerror}.")


def partial_results_note(ctx: click.Context) -> str:
    """Return a note about the partial output file of a failed run, if there is one."""
    partial = ctx.meta.get(streams.PARTIAL_PATH_KEY)
    return f" The results so far are in {partial}." if partial and os.path.exists(partial) else ""


def flush_or_discard() -> None:
    """Flush standard output; if that fails, discard the rest, because Python would report it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mlx-transformer")
@help_all_option
def main() -> None:
    """Encoder-decoder Transformers on Apple's MLX: translate, train, evaluate.

    \b
    mlx-transformer translate "Where is the station?"
    mlx-transformer generate < english.txt > french.txt
    mlx-transformer generate --model Helsinki-NLP/opus-mt-en-de "Good morning!"
    mlx-transformer train --train dates --valid dates --output runs/dates
    """  # noqa: D301 (click needs the backspace)


translate = copy.copy(generate.command)
translate.short_help = "Another name of generate."
main.add_command(generate.command)
main.add_command(translate, "translate")
for module in (
    translate_file,
    train,
    fuse,
    evaluate,
    info,
    convert,
    score,
    embed,
    serve,
    attention,
    plot,
    models,
    cache,
):
    main.add_command(module.command)
