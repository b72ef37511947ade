"""Reading of small files with a size limit, and checksums of large ones."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

CHUNK_SIZE = 2**20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


MAX_BYTES = 2**27  # of a file of settings or of a tokenizer, several times the largest known


def read_bytes(path: Path) -> bytes:
    """A file of settings or of a tokenizer; FileNotFoundError if there is none, ValueError if it is far too large."""
    if not path.exists():
        raise FileNotFoundError(f"A file is missing: there is no {path}; copy the folder again.")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"Such a file has at most {MAX_BYTES} bytes: {path} has {size}; is it another file?")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The contents of a JSON file; errors are those of `read_bytes`, and ValueError if it is damaged."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}; copy the folder again.") from None


def sha256(path: Path, stop: threading.Event) -> str:
    """The hash of a file; if told to stop, of what was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while not stop.is_set() and (part := file.read(1 << 20)):
            digest.update(part)
    return digest.hexdigest()
