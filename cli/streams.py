"""Input and output streams: results are written as they arrive, and output files are replaced as a whole."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from mlx_transformer.storage.text_files import iterate_lines, open_text

PARTIAL_PATH_KEY = "mlx_transformer.partial"  # key of the partial output file in the click context
DEVICES = {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}


def none_if_dash(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Treat - like a missing path: standard input or output."""
    return None if path == "-" else path


def input_option(name: str, help: str) -> Any:
    """Create the option --input."""
    return click.option("--input", "-i", name, type=click.Path(dir_okay=False), callback=none_if_dash, help=help)


output_option = click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True),
    callback=none_if_dash,
    help="File to write; results are collected in OUTPUT.partial, which replaces it at the end.",
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
    for read in found:
        for path in (Path(output), partial_path(output)):
            if path.is_file() and os.path.samestat(path.stat(), read):
                raise ValueError(f"--output and the input must be different files, but both are {path}.")


def read_input(source: str | None, context: click.Context) -> Iterator[list[bytes]]:
    """Open a file, or standard input, for the duration of the command; return the lines as they arrive."""
    if source is not None:
        return iterate_lines(context.with_resource(open_text(source)), source)
    if sys.stdin.isatty():
        click.echo("Reading lines from the terminal; Ctrl-D ends.", err=True)
    return iterate_lines(sys.stdin.buffer, "Standard input")


def with_progress(results: Iterable[bytes], source: str | None, output: str | None) -> Iterable[bytes]:
    """Show a progress bar if standard error is a terminal without results and the number of lines is known."""
    shared = output is None and sys.stdout.isatty()
    if source is None or not Path(source).is_file() or shared or not sys.stderr.isatty():
        return results
    from tqdm import tqdm

    with open_text(source) as file:
        total = sum(map(len, iterate_lines(file, source)))
    bar: Iterable[bytes] = tqdm(results, total=total, unit=" lines", file=sys.stderr)
    return bar


def write_results(output: str | None, results: Iterable[bytes], context: click.Context) -> None:
    """Write results as they arrive; an existing file is replaced at the end, a device is written to directly."""
    if output is None:
        copy_results(results, sys.stdout.buffer)
    elif is_device(Path(output)):
        with Path(output).open("ab") as file:  # appending does not truncate a file behind /dev/stdout
            copy_results(results, file)
    else:
        path, partial = Path(output).resolve(), partial_path(output)
        with partial.open("wb") as file:
            context.meta[PARTIAL_PATH_KEY] = partial
            copy_results(results, file)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
        del context.meta[PARTIAL_PATH_KEY]


def partial_path(output: str) -> Path:
    """Return the path of the partial output, next to the output file (links are resolved)."""
    path = Path(output).resolve()
    return path.with_name(f"{path.name}.partial")


def is_device(path: Path) -> bool:
    """Whether a path is a device, or a name of an open file such as /dev/stdout."""
    return path.exists() and (not path.is_file() or path.absolute().parent in DEVICES)


def copy_results(results: Iterable[bytes], stream: BinaryIO) -> None:
    """Write and flush each result as it arrives."""
    for result in results:
        stream.write(result)
        stream.flush()
