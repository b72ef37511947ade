"""Text for the terminal: tables and sizes."""

from collections.abc import Iterable, Iterator, Sequence


def format_table(rows: Iterable[Sequence[object]], indent: str = "  ") -> Iterator[str]:
    """Format rows of cells as lines with aligned columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def format_size(size: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{size / 1e6:,.1f} MB"
