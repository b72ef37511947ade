"""Small files with a size limit, lines of text files, and checksums."""

import codecs
import gzip
import hashlib
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

MAX_BYTES = 2**27  # several times the size of the largest known configuration or tokenizer file
CHUNK_SIZE = 2**20


def read_bytes(path: Path) -> bytes:
    """Read a configuration or tokenizer file; FileNotFoundError if it is missing, ValueError if it is too large."""
    if not path.exists():
        raise FileNotFoundError(f"A file is missing: there is no {path}; copy the folder again.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes, not {size}: is it another file?")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Read a text file in UTF-8; raises the errors of `read_bytes`, and ValueError if it is damaged."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}; copy it again.") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises the errors of `read_bytes`, and ValueError if it is damaged."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}; copy the folder again.") from None


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; setting `stop` ends reading early, with a wrong result."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while not (stop and stop.is_set()) and (chunk := file.read(CHUNK_SIZE)):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
    """Open a plain or gzipped (.gz) text file for reading bytes; ValueError if the gzip data is damaged."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a complete gzip file: {error}; copy it again.") from error


def read_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a plain or gzipped text file, without byte order mark, line feed and carriage return."""
    with open_text(path) as file:
        for number, line in enumerate(file):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            yield line.removesuffix(b"\n").removesuffix(b"\r")
