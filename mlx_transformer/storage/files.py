"""Small files with a size limit, and checksums."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_transformer.messages import is_unicode

MAX_BYTES = 2**27  # several times the size of the largest known configuration or tokenizer file
MAX_CONTAINERS = 2**21  # of JSON: an empty list takes twenty times its size in memory
MAX_NESTING = 100  # of JSON, far below what recursive functions can follow
ESCAPED_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
CHUNK_SIZE = 2**20


def read_bytes(path: Path) -> bytes:
    """Read a configuration or tokenizer file; FileNotFoundError if missing, ValueError if too large or no file."""
    if not path.exists():
        raise FileNotFoundError(f"A file is missing: there is no {path}; copy the folder again.")
    check_is_file(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes, not {size}: is it another file?")
    return path.read_bytes()


def check_is_file(path: Path) -> None:
    """Raise ValueError if an existing path is no file; reading a pipe would wait forever."""
    if not path.is_file():
        raise ValueError(f"{path} must be a file, not a folder, device or pipe: copy the folder again.")


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
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}; copy the folder again.") from None


def parse_json(text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON; ValueError if it is damaged, nested more than MAX_NESTING deep, or has text that is not Unicode."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ValueError(f"it must have at most {MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    if ESCAPED_SURROGATE.search(text) and not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it has half of a surrogate pair, which is not Unicode")
    level = [value]
    for _ in range(MAX_NESTING):
        containers = (
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        )
        level = [part for container in containers for part in container if isinstance(part, dict | list)]
    if level:
        raise ValueError(f"its brackets are nested more than {MAX_NESTING} deep")
    return value


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; setting `stop` ends reading early, with a wrong result."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while not (stop and stop.is_set()) and (chunk := file.read(CHUNK_SIZE)):
            digest.update(chunk)
    return digest.hexdigest()
