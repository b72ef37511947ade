"""Draw the pictures of the documentation from a real run: terminal.svg, curves.svg and attention.svg in this folder.

dates.jsonl is the log of that run, from which tests draw the curves again.

    pip install '.[train]' && python docs/images/draw.py

The training takes about two minutes on two CPU cores.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich import _export_format
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent
WIDTH = 114
PROMPT = Text("$ ", style="bold green")
ENGLISH = "Good morning!\nHow was your day?\n"
TRAIN = """\
mlx-transformer train --train dates --valid dates --output runs/dates --preset tiny --vocab-size 1000 \\
    --batch-tokens 1024 --steps 1000 --learning-rate 2e-3 --warmup-steps 200 --ema-decay 0.98 \\
    --valid-every 250 --samples 1"""
# A command of the terminal -> how many lines of its output are shown from the beginning and from the end; None for all.
COMMANDS = {
    'mlx-transformer generate "Where is the station?"': None,
    'mlx-transformer generate --num-hypotheses 3 --scores "I am very tired today."': None,
    "mlx-transformer generate --alignments < english.txt": None,
    TRAIN: (3, 6),
    'mlx-transformer generate --model runs/dates/best "the third of March, 1987"': None,
}
PICTURES = {
    "curves.svg": "mlx-transformer plot runs/dates --output curves.svg",
    "attention.svg": 'mlx-transformer attention "I am very tired today." --output attention.svg',
}
# Fonts of the reader's own machine instead of downloaded ones.
SVG = re.sub(r"@font-face \{\{.*?\}\}", "", _export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)


def run(command: str, folder: Path) -> list[str]:
    """Run a command in a folder and return the lines that it prints."""
    result = subprocess.run(command, shell=True, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.splitlines()


def shorten(lines: list[str], ends: tuple[int, int] | None) -> list[str]:
    """Return the first and the last lines with a line of dots between them, or all lines."""
    return lines if ends is None else [*lines[: ends[0]], "...", *lines[-ends[1] :]]


def strip_line_ends(svg: str) -> str:
    """Remove white space at the ends of lines."""
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def main() -> None:
    """Run the commands in an empty folder and write the pictures."""
    with tempfile.TemporaryDirectory() as name, Path("/dev/null").open("w") as nowhere:
        folder = Path(name)
        (folder / "english.txt").write_text(ENGLISH)
        console = Console(record=True, width=WIDTH, file=nowhere)
        for command, ends in COMMANDS.items():
            console.print(PROMPT + Text(command, style="bold"))
            for line in shorten(run(command, folder), ends):
                console.print(Text(line), no_wrap=True, overflow="ellipsis")
        svg = console.export_svg(title="mlx-transformer", code_format=SVG, unique_id="terminal")
        (IMAGES / "terminal.svg").write_text(strip_line_ends(svg))
        shutil.copy(folder / "runs" / "dates" / "log.jsonl", IMAGES / "dates.jsonl")
        for picture, command in PICTURES.items():
            run(command, folder)
            (IMAGES / picture).write_text(strip_line_ends((folder / picture).read_text()))


if __name__ == "__main__":
    main()
