"""Tables and sizes: fitted to the terminal, or plain lines in files and pipes."""

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import click

from mlx_transformer.cli.input_lines import escape_control_characters
from mlx_transformer.cli.progress import activity, terminal


def print_fields(fields: Iterable[tuple[str, str]], width: int, wrap: int | None = None) -> None:
    """Print names with values; plain lines have `width` characters before the value, and at most `wrap` altogether."""
    rows = [(name, escape_control_characters(value)) for name, value in fields]
    if not sys.stdout.isatty():
        for name, value in rows:
            lines = textwrap.wrap(value, wrap - width, break_long_words=False, break_on_hyphens=False) if wrap else []
            click.echo(f"{name:<{width}}" + f"\n{'':{width}}".join(lines or [value]))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    with activity.above():
        terminal(sys.stdout).print(table)


def print_table(rows: Iterable[Sequence[object]], indent: str = "  ") -> None:
    """Print rows of cells, of which the first holds the names of the columns."""
    texts = [[escape_control_characters(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in format_table(texts, indent):
            click.echo(line)
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    names, *others = texts
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(Text(name), header_style="bold", overflow="fold")
    for row in others:
        table.add_row(*map(Text, row))
    with activity.above():
        terminal(sys.stdout).print(Padding(table, (0, 0, 0, len(indent))))


def format_table(rows: Iterable[Sequence[object]], indent: str = "  ") -> Iterator[str]:
    """Format rows of cells as lines with aligned columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def fit_to_terminal(line: str) -> str:
    """Cut a line to the width of the terminal, wide characters counted; elsewhere return it as it is."""
    if not sys.stdout.isatty():
        return line
    from rich.text import Text

    text = Text(escape_control_characters(line))
    text.truncate(terminal(sys.stdout).width, overflow="ellipsis")
    return text.plain


def format_size(size: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{size / 1e6:,.1f} MB"
