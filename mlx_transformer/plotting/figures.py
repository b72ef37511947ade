"""Resolution, cropping and saving of figures as PNG, SVG or PDF; Python's `savefig` gives the same pictures."""

from pathlib import Path

from matplotlib.figure import Figure

from mlx_transformer.storage.atomic import atomic_write

FORMATS = (".png", ".svg", ".pdf")
DPI = 200
PADDING = 0.1  # inches around a cropped figure


def check_format(path: str | Path) -> None:
    """Raise ValueError unless a file name ends in one of FORMATS."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"A picture's file name must end in one of {', '.join(FORMATS)}, not {path}.")


def crop(figure: Figure) -> None:
    """Cut off what is empty around a figure whose axes have fixed positions."""
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox().padded(PADDING)
    for axes in figure.axes:
        left, bottom, across, down = axes.get_position().bounds
        axes.set_position(
            (
                (left * width - box.x0) / box.width,
                (bottom * height - box.y0) / box.height,
                across * width / box.width,
                down * height / box.height,
            )
        )
    figure.set_size_inches(box.width, box.height)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, which is replaced as a whole; the suffix selects the format.

    Raises:
        ValueError: If the file name does not end in one of FORMATS, or the path is a folder, a device or a pipe.
        OSError: If the file cannot be written.
    """
    check_format(path)
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format=Path(path).suffix.lower()[1:])
