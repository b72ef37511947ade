"""Lines of input: decoded, and parsed as text or JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx_transformer as mt
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.messages import short_names
from mlx_transformer.storage.text_files import read_lines
from mlx_transformer.tokenization.normalization import is_blank

LINE_OPTIONS = ("source_language", "target_language", "target_prefix")  # options that a JSON line may set


def escape_control_characters(text: str) -> str:
    """Return a text that is safe to print: control characters and line ends are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class InputLine(NamedTuple):
    """One line of input.

    Attributes:
        name: Its name in error messages.
        source: Its text, with languages and target prefix.
        fields: JSON fields that are returned with the result.
        error: Why the line cannot be read; its text is empty then.
        pivot: Its translation to a third language, which is now its text.
    """

    name: str
    source: SourceLine
    fields: dict[str, Any]
    error: str | None = None
    pivot: mt.Hypothesis | None = None


def parse_lines(
    windows: Iterable[list[bytes]], as_json: bool, noun: str, defaults: dict[str, Any] | None = None
) -> Iterator[list[InputLine]]:
    """Decode and parse each line, counted from 1; `defaults` are the options of lines that do not set their own."""
    parse: Callable[..., InputLine] = parse_json if as_json else parse_text
    numbers = itertools.count(1)
    for window in windows:
        names = [f"{noun} {next(numbers)}" for _ in window]
        yield [parse_line(parse, name, line, defaults or {}) for name, line in zip(names, window, strict=True)]


def parse_line(parse: Callable[..., InputLine], name: str, line: bytes, defaults: dict[str, Any]) -> InputLine:
    """Decode and parse a line; one that cannot be read gets its error."""
    try:
        return parse(name, decode(name, line), defaults)
    except ValueError as error:
        return InputLine(name, SourceLine(""), {}, str(error))


def parse_file(path: str) -> Iterator[InputLine]:
    """Decode each line of a file of plain text."""
    for number, line in enumerate(read_lines(path), start=1):
        yield parse_line(parse_text, f"{path}, line {number}", line, {})


def parse_text(name: str, line: str, defaults: dict[str, Any]) -> InputLine:
    """Parse a line of plain text."""
    return InputLine(name, SourceLine(line, **defaults), {})


def decode_lines(path: str) -> Iterator[str]:
    """Yield the lines of a file as texts; raise ValueError for one that is not UTF-8."""
    return (decode(f"{path}, line {number},", line) for number, line in enumerate(read_lines(path), start=1))


def decode(name: str, line: bytes) -> str:
    """Decode UTF-8, without a carriage return at the end (Windows)."""
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be valid UTF-8: byte {error.start + 1} is {line[error.start]:#04x}. Convert it with "
            "iconv, for example iconv -f WINDOWS-1252 -t UTF-8."
        ) from error


def parse_json(name: str, line: str, defaults: dict[str, Any]) -> InputLine:
    """Parse a JSON string, or an object with "text" and optionally "id" and options; a blank line is a blank text."""
    value = "" if is_blank(line) else load_json(name, line)
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise ValueError(f'{name} must be a JSON string or an object with a string "text", not {line:.60}.')
    kept = {"id": fields["id"]} if "id" in fields else {}
    try:
        return InputLine(name, make_source_line(name, fields, defaults), kept)
    except ValueError as error:
        return InputLine(name, SourceLine(""), kept, str(error))


def make_source_line(name: str, fields: dict[str, Any], defaults: dict[str, Any]) -> SourceLine:
    """Return the text and the options of a JSON object."""
    if not isinstance(fields.get("text"), str):
        raise ValueError(f'{name} must be a JSON string or an object with a string "text", not {fields!r:.60}.')
    if unknown := sorted(fields.keys() - {"text", "id", *LINE_OPTIONS}):
        known = ", ".join(f'"{field}"' for field in ("text", "id", *LINE_OPTIONS))
        raise ValueError(f"{name} may have the names {known}, not {short_names(unknown)}.")
    text, options = fields["text"], {option: fields[option] for option in LINE_OPTIONS if option in fields}
    for option, value in options.items():
        if not isinstance(value, str | None):
            raise ValueError(f'{name} must have a string as "{option}", not {value!r:.60}.')
    options = defaults | {option: value for option, value in options.items() if value is not None}
    for field, value in {"text": text, **options}.items():
        if any("\ud800" <= character <= "\udfff" for character in value or ""):
            raise ValueError(f'{name} must be Unicode text, but its "{field}" has half of a surrogate pair.')
    return SourceLine(text, **options)


def load_json(name: str, line: str) -> Any:
    """Parse a JSON value; unlike Python's default, NaN and Infinity are errors."""
    try:
        return json.loads(line, parse_float=parse_finite, parse_constant=parse_finite)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} must be JSON, one value per line: {error.msg} at column {error.colno}. For text, "
            "give --input-format text."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{name} must be JSON, but its brackets are nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{name} must be JSON with finite numbers of at most 4300 digits, not {line:.60}.") from error


def parse_finite(text: str) -> float:
    """Parse a number; ValueError for NaN, Infinity and numbers too large for a float."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
