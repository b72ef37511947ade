"""The pages of the documentation and their code blocks."""

import re
from pathlib import Path
from typing import NamedTuple

from support.paths import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)

WRONG = """\
import mlx_transformer as mt

model, tokenizer = mt.load()
mt.generate(model, tokenizer, "one", beam_sise=2)
mt.stream_generate(model, tokenizer, "one", max_tokens="2")
mt.generate(model, tokenizer, ["one"]).upper()
"""
WRONG_LINES = (4, 5, 6)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: What follows the fence.
        line: The number of that line.
        code: The lines of the block.
        title: The file that it is an excerpt of.
        output: What it is to print, if the page shows that.
    """

    language: str
    line: int
    code: str
    title: str | None = None
    output: str | None = None

    @property
    def runs(self) -> bool:
        return self.language != "text" and self.title is None


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of a page; a text block right after a code block becomes its output."""
    blocks: list[Block] = []
    end = -1
    for match in FENCED.finditer(text):
        language, title, code = match.groups()
        adjacent = end >= 0 and not text[end : match.start()].strip()
        if language == "text" and adjacent and blocks[-1].runs:
            blocks[-1] = blocks[-1]._replace(output=code)
        else:
            blocks.append(Block(language, text[: match.start()].count("\n") + 1, code, title))
        end = match.end()
    assert "```" not in FENCED.sub("", text)
    return blocks


def write_python(folder: Path) -> set[str]:
    """Write the Python of each page to a file, at the lines of its page, and a file with wrong calls.

    Returns:
        "FILE:LINE" of each wrong call, for a type checker to find.
    """
    for path in PAGES:
        text = path.read_text()
        lines = [""] * text.count("\n")
        for block in read_blocks(text):
            if block.language == "python" and block.runs:
                code = block.code.splitlines()
                lines[block.line : block.line + len(code)] = code
        (folder / f"{path.stem}.py").write_text("\n".join([*lines, ""]))
    (folder / "wrong.py").write_text(WRONG)
    return {f"wrong.py:{line}" for line in WRONG_LINES}
