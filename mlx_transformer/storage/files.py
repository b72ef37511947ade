"""Small files with a size limit, and checksums."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

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
