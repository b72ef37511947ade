"""Accelerators of labels: the mark before the letter that a menu or a button is reached by, as in _Save or &Open."""

import re

# Before a word, or within one with a capital, as in E_xit: file_name, AT&T and R&D have none.
ACCELERATOR = re.compile(r"(?<![\w&])[_&](?!\w+;)(?=[^\W\d_])|(?<=\b[A-Z])[_&](?=[a-z])|(?<=\b[A-Z][a-z])[_&](?=[a-z])")
MAX_WORDS = 6  # of a label; & in a longer text is a word


def split_accelerator(text: str) -> tuple[str, str, str]:
    """Return a label without its accelerator, the mark, and the letter behind it; empty strings if it has none."""
    marks = list(ACCELERATOR.finditer(text))
    if len(marks) != 1 or text.count(marks[0][0]) != 1 or len(text.split()) > MAX_WORDS:
        return text, "", ""
    start, end = marks[0].span()
    return text[:start] + text[end:], marks[0][0], text[end]


def add_accelerator(text: str, mark: str, letter: str) -> str:
    """Return a label with an accelerator: before a word that begins with the same letter, else before the first letter.

    A label without Latin letters gets the letter of the source in brackets, as is usual in Chinese and Japanese.
    """
    if not mark:
        return text
    if not re.search("[A-Za-z\u00c0-\u024f]", text):
        label, end = re.fullmatch(r"(.*?)([.…:]*\s*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        return f"{label}({mark}{letter.upper()}){end}"
    for pattern in (rf"\b{re.escape(letter)}", r"[^\W\d_]"):
        if match := re.search(pattern, text, re.IGNORECASE):
            return text[: match.start()] + mark + text[match.start() :]
    return text
