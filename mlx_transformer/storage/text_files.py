"""Text files in UTF-8: plain or gzipped, with any line ends; an error names the likely encoding of other files."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

READ_BYTES = 2**18
SAMPLE_SIZE = 2**16  # bytes at the beginning of a file that tell its encoding and its line ends
BYTE_ORDER_MARKS = {  # UTF-32 first, because its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
SIGNATURES = {
    b"\x1f\x8b": "gzip data: decompress it, or give a file whose name ends in .gz",
    b"BZh9": "compressed by bzip2: decompress it",
    b"\xfd7zXZ": "compressed by xz: decompress it",
    b"(\xb5/\xfd": "compressed by zstd: decompress it",
    b"PK\x03\x04": "a ZIP archive or an office document: save its content as plain text",
    b"%PDF-": "a PDF document: save its content as plain text",
    rb"{\rtf": "an RTF document: save its content as plain text",
}
BINARY, UNKNOWN = "binary", "ENCODING"  # results of `guess_encoding` beside the names of encodings
CONTROL_BYTES = bytes({*range(0x1C)} - {*b"\t\n\v\f\r"})  # hardly occur in text, but in UTF-16 and in binary files


def open_text(path: str) -> BinaryIO:
    """Open a plain or gzipped (.gz) text file for `iterate_lines`."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.lower().endswith(".gz") else Path(path).open("rb")


def read_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a text file, without their ends; see `iterate_lines`."""
    with open_text(path) as file:
        for lines in iterate_lines(file, path):
            yield from (line.removesuffix(b"\r") for line in lines)


def iterate_lines(stream: Any, name: str) -> Iterator[list[bytes]]:
    r"""Yield the complete lines that have arrived, at least one at a time; the last line may lack its line feed.

    Only line feeds separate lines; a text without any, as from old Macs, is split at carriage returns. Lines have no
    byte order mark and no line feed, but keep the `\r` of a Windows line end.

    Args:
        stream: A binary stream with `read1`.
        name: The name of the text in error messages.

    Raises:
        ValueError: If the text is not in UTF-8 or its gzip data is damaged; single bad bytes are not looked for.
    """
    pieces: list[bytes] = []  # of the incomplete line
    try:
        for chunk in _read_chunks(stream, name):
            end, *lines = chunk.split(b"\n")
            pieces.append(end)
            if lines:
                yield [b"".join(pieces), *lines[:-1]]
                pieces = lines[-1:]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name} must be a complete gzip file: {error}; copy it again.") from error
    if last := b"".join(pieces):
        yield [last]


def _read_chunks(stream: Any, name: str) -> Iterator[bytes]:
    """Yield the chunks of a text as they arrive; check the first one, and make line feeds of lone carriage returns."""
    start = bytearray()
    while b"\n" not in start and len(start) < SAMPLE_SIZE and (chunk := stream.read1(READ_BYTES)):
        start += chunk
    check_encoding(name, bytes(start[:SAMPLE_SIZE]))
    line_end = b"\r" if b"\r" in start[:-1] and b"\n" not in start else b"\n"
    yield bytes(start).removeprefix(codecs.BOM_UTF8).replace(line_end, b"\n")
    while chunk := stream.read1(READ_BYTES):
        yield chunk.replace(line_end, b"\n")


def check_encoding(name: str, sample: bytes) -> None:
    """Raise ValueError if a text that begins with `sample` is not in UTF-8; single bad lines are accepted.

    Args:
        name: The name of the text in the message.
        sample: The beginning of the text.
    """
    for signature, kind in SIGNATURES.items():
        if sample.startswith(signature):
            raise ValueError(f"{name} must be text, but is {kind}.")
    encoding = guess_encoding(sample)
    if encoding == BINARY:
        raise ValueError(f"{name} must be text in UTF-8, but is a binary file: give a text file.")
    if encoding:
        kind = "is in another encoding" if encoding == UNKNOWN else f"seems to be in {encoding}"
        raise ValueError(f"{name} must be text in UTF-8, but {kind}: convert it with iconv -f {encoding} -t UTF-8.")


def guess_encoding(sample: bytes) -> str | None:
    """Return the encoding of a text that begins with `sample`, by iconv's name; BINARY, UNKNOWN, or None for UTF-8."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    lines = sample.splitlines()
    if len(sample) == SAMPLE_SIZE and len(lines) > 1:
        lines.pop()  # may end within a character
    num_bad = sum(not _is_utf8(line) for line in lines)
    num_good = sum(not line.isascii() for line in lines) - num_bad
    mostly_bad = num_bad > max(num_good, len(lines) // 10)
    num_controls = len(sample) - len(sample.translate(None, CONTROL_BYTES))
    if sum((mostly_bad, num_controls > 2 + len(sample) / 16, b"\0" in sample)) > 1:
        return _guess_wide_encoding(sample)
    return _guess_byte_encoding(sample) if mostly_bad and num_bad > 2 else None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guess_wide_encoding(sample: bytes) -> str:
    """Return which encoding without a mark gives the most spaces and line ends, and no NUL characters."""
    counts = {BINARY: (0, 0)}
    for encoding in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            counts[encoding] = len(re.findall("[ \r\n]", text)), len(re.findall("[ -~]", text))
    return max(counts, key=lambda encoding: counts[encoding])


def _guess_byte_encoding(sample: bytes) -> str:
    """Return the usual encoding of Western languages, or UNKNOWN if more than accented letters are not ASCII."""
    if len(re.findall(rb"[\x80-\xff]", sample)) > len(sample) / 4:
        return UNKNOWN
    return "MACINTOSH" if b"\r" in sample and b"\n" not in sample else "WINDOWS-1252"
