"""Saving of figures as PNG, SVG or PDF."""

from pathlib import Path

from matplotlib.figure import Figure

from mlx_transformer.storage.atomic import atomic_write

FORMATS = (".png", ".svg", ".pdf")
DPI = 200


def check_format(path: str | Path) -> None:
    """Raise ValueError unless a file name ends in one of FORMATS."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"A picture's file name must end in one of {', '.join(FORMATS)}, not {path}.")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, which is replaced as a whole; the suffix selects the format.

    Raises:
        ValueError: If the file name does not end in one of FORMATS, or the path is a folder, a device or a pipe.
        OSError: If the file cannot be written.
    """
    check_format(path)
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format=Path(path).suffix.lower()[1:], dpi=DPI, bbox_inches="tight")
