"""Saving of figures as PNG, SVG or PDF."""

from pathlib import Path

from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
DPI = 200


def check_format(path: str | Path) -> None:
    """Raise ValueError unless a file name ends in one of FORMATS."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"A picture's file name must end in one of {', '.join(FORMATS)}, not {path}.")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, which is replaced as a whole; the suffix selects the format.

    Raises:
        ValueError: If the file name does not end in one of FORMATS.
        OSError: If the file cannot be written.
    """
    check_format(path)
    path = Path(path).resolve()
    new = path.with_name(f".{path.name}.new")
    try:
        figure.savefig(new, format=path.suffix.lower()[1:], dpi=DPI, bbox_inches="tight")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
