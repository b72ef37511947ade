"""Input and output streams: results are written as they arrive, and output files are replaced as a whole."""

from __future__ import annotations

import gzip
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from mlx_transformer.cli.input_lines import escape_control_characters
from mlx_transformer.cli.progress import activity, can_draw
from mlx_transformer.pretrained.cache import cache_folder
from mlx_transformer.storage import kernel_cache
from mlx_transformer.storage.atomic import atomic_write
from mlx_transformer.storage.text_files import iterate_lines, open_text

PARTIAL_PATH_KEY = "mlx_transformer.partial"  # key of the partial output file in the click context
DEVICES = {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}
Item = TypeVar("Item")


def open_closed_streams() -> None:
    """Open closed standard streams, so that no file gets their descriptors.

    Standard input stays None, writing to standard output raises OSError, and standard error is discarded.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # not writable
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")


def prepare_temporary_folder() -> None:
    """Set TMPDIR, where MLX compiles functions, to a folder that can be written and is safe from other users.

    A folder that cannot be written is replaced with a warning. If other users could put kernels into it, MLX gets a
    folder in the cache; other temporary files stay.
    """
    wanted, usable = os.environ.get("TMPDIR"), tempfile.gettempdir()
    if wanted and os.path.abspath(wanted) != usable:
        click.echo(f"Warning: TMPDIR is {wanted}, which cannot be written; {usable} is used instead.", err=True)
    os.environ["TMPDIR"] = usable
    if sys.platform == "linux" and kernel_cache.find_risk(Path(usable)):
        with suppress(OSError):
            private = cache_folder() / "tmp"
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not kernel_cache.find_risk(private):
                os.environ["TMPDIR"] = str(private)


def none_if_dash(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Treat - and the names of standard input and output like a missing path."""
    return None if path in ("-", "/dev/stdin", "/dev/stdout") else path


def input_option(name: str, help: str) -> Any:
    """Create the option --input."""
    return click.option("--input", "-i", name, type=click.Path(dir_okay=False), callback=none_if_dash, help=help)


output_option = click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True),
    callback=none_if_dash,
    help="File to write; results are collected in a new file beside it, which replaces it at the end. "
    "A name that ends in .gz is compressed.",
)


def check_paths(output: str | None, *inputs: str | None) -> None:
    """Check that the output can be written and overwrites no input (None: standard input)."""
    found = [os.fstat(0) if path is None else os.stat(path) for path in inputs]
    if output is None:
        return
    if not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"--output must be in an existing folder, but there is no {Path(output).parent}: create it."
        )
    if os.path.isfile(output) and any(os.path.samestat(os.stat(output), read) for read in found):
        raise ValueError(f"--output and the input must be different files, but both are {output}.")


def read_input(source: str | None, context: click.Context) -> Iterator[list[bytes]]:
    """Open a file, or standard input, for the duration of the command; return the lines as they arrive."""
    if source is not None:
        return iterate_lines(context.with_resource(open_text(source)), source)
    if sys.stdin is None:
        raise ValueError("Standard input is closed: give --input FILE, or redirect standard input.")
    if sys.stdin.isatty():
        click.echo("Reading lines from the terminal; Ctrl-D ends.", err=True)
    return iterate_lines(sys.stdin.buffer, "Standard input")


def warn_file_names(texts: Iterable[str], remedy: str) -> None:
    """Warn on standard error of texts that are the names of files; `remedy` may have a {file}."""
    for text in filter(os.path.isfile, texts):
        advice = remedy.format(file=shlex.quote(text))
        click.echo(
            f"Warning: {escape_control_characters(text)} is a file, but only its name is read: {advice}.", err=True
        )


def with_progress(results: Iterable[Item], source: str | None, output: str | None) -> Iterable[Item]:
    """Show a progress bar if standard error is a terminal without results and the number of lines is known."""
    shared = output is None and sys.stdout.isatty()
    if source is None or not Path(source).is_file() or shared or not can_draw():
        return results
    with open_text(source) as file:
        total = sum(map(len, iterate_lines(file, source)))
    return activity.track(results, total, "lines")


def write_results(output: str | None, results: Iterable[bytes], context: click.Context) -> None:
    """Write results as they arrive, compressed if the name ends in .gz.

    An existing file is replaced at the end, a device is written to directly.
    """
    if output is None:
        copy_results(results, sys.stdout.buffer)
    elif is_device(Path(output)):
        with Path(output).open("ab") as file:  # appending does not truncate a file behind /dev/stdout
            copy_results(results, file)
    else:
        with atomic_write(Path(output), keep_partial=True) as file:
            context.meta[PARTIAL_PATH_KEY] = file.name
            if output.lower().endswith(".gz"):
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
                    copy_results(results, compressed)
            else:
                copy_results(results, file)


def is_device(path: Path) -> bool:
    """Whether a path is a device, or a name of an open file such as /dev/stdout."""
    return path.exists() and (not path.is_file() or path.absolute().parent in DEVICES)


def copy_results(results: Iterable[bytes], stream: BinaryIO | gzip.GzipFile) -> None:
    """Write and flush each result as it arrives."""
    for result in results:
        activity.clear()
        stream.write(result)
        stream.flush()
