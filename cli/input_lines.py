"""Lines of input: read as they arrive, split at newlines only, decoded, and parsed as text or JSON."""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

READ_BYTES = 1 << 20
LINE_OPTIONS = ("source_language", "target_language", "target_prefix")  # that each line may have of its own


def escape_control_characters(text: str) -> str:
    """A text from a file as a terminal may show it: control characters and line ends are written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class InputLine(NamedTuple):
    """One line of input.

    Attributes:
        name: What error messages call it.
        text: Its text.
        fields: The JSON fields that go back with the result.
        source_language: The code of its language, if any is told.
        target_language: The code of the language to generate, likewise.
        target_prefix: What its target begins with, if anything.
    """

    name: str
    text: str
    fields: dict[str, Any]
    source_language: str | None = None
    target_language: str | None = None
    target_prefix: str | None = None


def iterate_lines(stream: Any) -> Iterator[list[bytes]]:
    """The complete lines that have arrived, at least one at a time; the last line may lack its newline."""
    mark = codecs.BOM_UTF8
    pieces: list[bytes] = []  # of the line that has not ended
    while chunk := stream.read1(READ_BYTES):
        end, *lines = chunk.split(b"\n")
        pieces.append(end)
        if lines:
            yield [b"".join(pieces).removeprefix(mark), *lines[:-1]]
            mark, pieces = b"", lines[-1:]
    if last := b"".join(pieces).removeprefix(mark):
        yield [last]


def parse_lines(
    windows: Iterable[list[bytes]], as_json: bool, noun: str, usual: dict[str, str | None] | None = None
) -> Iterator[list[InputLine]]:
    """Decode each line, counting from 1; `usual` are the options of lines that do not tell theirs."""
    parse: Callable[..., InputLine] = parse_json if as_json else parse_text
    numbers = itertools.count(1)
    for window in windows:
        names = [f"{noun} {next(numbers)}" for _ in window]
        yield [parse(name, decode(name, line), usual or {}) for name, line in zip(names, window, strict=True)]


def parse_text(name: str, line: str, usual: dict[str, str | None]) -> InputLine:
    """A line of plain text."""
    return InputLine(name, line, {}, **usual)


def read_lines(path: str) -> Iterator[str]:
    """The lines of a file, plain or .gz."""
    lines = itertools.chain.from_iterable(read_line_windows(path))
    return (decode(f"{path}, line {number},", line) for number, line in enumerate(lines, start=1))


def read_line_windows(path: str) -> Iterator[list[bytes]]:
    """The lines of a file, plain or .gz, as they are read."""
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
            yield from iterate_lines(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file: {error}; copy it again.") from error


def decode(name: str, line: bytes) -> str:
    """UTF-8 without the carriage return that files from Windows have."""
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be valid UTF-8: byte {error.start + 1} is {line[error.start]:#04x}. Convert it with iconv."
        ) from error


def parse_json(name: str, line: str, usual: dict[str, str | None]) -> InputLine:
    """A JSON string, or an object with "text" and perhaps "id" and options; a blank line is a blank text."""
    value = load_json(name, line) if line.strip() else ""
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise ValueError(f'{name} must be a JSON string or an object with a string "text": got {line:.60}.')
    if unknown := sorted(fields.keys() - {"text", "id", *LINE_OPTIONS}):
        known = ", ".join(f'"{field}"' for field in ("text", "id", *LINE_OPTIONS))
        raise ValueError(f"{name} may have {known}, no other names: got {', '.join(unknown)}.")
    text, options = fields.pop("text"), {option: fields.pop(option) for option in LINE_OPTIONS if option in fields}
    for option, value in options.items():
        if not isinstance(value, str | None):
            raise ValueError(f'{name} must have a string as "{option}": got {value!r:.60}.')
    options = usual | {option: value for option, value in options.items() if value is not None}
    for field, value in {"text": text, **options}.items():
        if any("\ud800" <= character <= "\udfff" for character in value or ""):
            raise ValueError(f'{name} must be Unicode text: its "{field}" holds half of a surrogate pair.')
    return InputLine(name, text, fields, **options)


def load_json(name: str, line: str) -> Any:
    """A JSON value that can be written as JSON again: Python would let NaN and Infinity pass."""
    try:
        return json.loads(line, parse_float=parse_finite, parse_constant=parse_finite)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} must be JSON: {error.msg} at column {error.colno}. Leave out --json for text."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{name} must be JSON of some depth only: its brackets are nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{name} must be JSON with finite numbers of at most 4300 digits: got {line:.60}.") from error


def parse_finite(text: str) -> float:
    """A number; ValueError for NaN, Infinity and what is too large for a float."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
