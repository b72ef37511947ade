"""Tables, sizes and precisions: fitted to the terminal, or plain lines in files and pipes."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from mlx_transformer.cli.input_lines import escape_control_characters
from mlx_transformer.cli.progress import activity, terminal


def print_fields(fields: Iterable[tuple[str, str | Path]], width: int, wrap: int | None = None) -> None:
    """Print names with values, which begin after `width` characters; plain lines have at most `wrap` altogether.

    Neither words nor paths are broken, so that they can be copied. On a terminal, a value of which one does not fit
    beside the names stands below its name.
    """
    rows = [(name, split_words(value)) for name, value in fields]
    if not sys.stdout.isatty():
        for name, words in rows:
            click.echo(f"{name + ' ':<{width}}" + f"\n{'':{width}}".join(wrap_words(words, wrap and wrap - width)))
        return
    from rich.cells import cell_len
    from rich.text import Text

    console = terminal(sys.stdout)
    column = max([width, *(cell_len(name) + 2 for name, _ in rows)])
    with activity.above():
        for name, words in rows:
            is_beside = column + max(map(cell_len, words)) <= console.width
            indent = column if is_beside else 2
            lines = wrap_words(words, console.width - indent)
            gap = " " * (column - cell_len(name)) if is_beside else "\n  "
            console.print(Text.assemble((name, "bold"), gap, f"\n{'':{indent}}".join(lines)), soft_wrap=True)


def split_words(value: str | Path) -> list[str]:
    """Return the words of a value, of which a path is one; control characters are escaped."""
    text = escape_control_characters(str(value))
    return [text] if isinstance(value, Path) else text.split(" ")


def wrap_words(words: Iterable[str], width: int | None) -> list[str]:
    """Join words to lines of at most `width` characters; a longer word has its own line. None: to one line."""
    lines: list[str] = []
    for word in words:
        if lines and (width is None or len(lines[-1]) + 1 + len(word) <= width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def print_table(rows: Iterable[Sequence[object]], indent: str = "  ") -> None:
    """Print rows of cells, of which the first holds the names of the columns.

    On a terminal where they do not fit, each row begins with its first cell on a line of its own; if others do
    not fit either, rows are printed as fields, with a blank line after each.
    """
    texts = [[escape_control_characters(str(cell)) for cell in row] for row in rows]
    lines = list(format_table(texts, indent))
    if not sys.stdout.isatty():
        click.echo("\n".join(lines))
        return
    from rich.cells import cell_len
    from rich.text import Text

    console = terminal(sys.stdout)
    if max(map(cell_len, lines)) > console.width:
        others = list(format_table([row[1:] for row in texts], indent + "    "))
        if max(map(cell_len, others)) > console.width:
            for row in texts[1:]:
                print_fields(zip(texts[0], row, strict=True), width=0)
                click.echo()
            return
        lines = [f"{indent}{row[0]}\n{other}" for row, other in zip(texts, others, strict=True)]
    with activity.above():
        console.print(Text(lines[0], style="bold"), *map(Text, lines[1:]), sep="\n", soft_wrap=True)


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


def dtype_names(arrays: Iterable[Any]) -> list[str]:
    """Return the names of the arrays' data types."""
    return sorted({str(array.dtype).removeprefix("mlx.core.") for array in arrays})


def format_storage(dtypes: list[str], quantization: dict[str, Any] | None) -> str:
    """Format the types of stored weights; quantised ones are packed in integers."""
    if quantization is None:
        return ", ".join(dtypes)
    others = ", ".join(name for name in dtypes if not name.startswith("uint"))
    return f"{others}, matrices quantised to {quantization['bits']} bits"


def print_written_model(folder: str | Path) -> None:
    """Print the path of a new model folder, its size and the precision of its weights on standard error."""
    from mlx_transformer.checkpoints.model_folder import read_config
    from mlx_transformer.config.serialization import to_dict
    from mlx_transformer.storage.safetensors import read_arrays

    weights = Path(folder) / "model.safetensors"
    quantization = to_dict(read_config(Path(folder)))["quantization"]
    storage = format_storage(dtype_names(read_arrays(weights).values()), quantization)
    click.echo(f"Model: {folder}, {format_size(weights.stat().st_size)} in {storage}", err=True)
