"""Values in error messages: short and printable, whatever a file says."""

import difflib
import reprlib
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

MAX_VALUE = 60  # characters
MAX_NAMES = 4
MAX_KNOWN = 10
MAX_LISTED = 110  # characters of several names


def short_repr(value: Any) -> str:
    """Return the beginning of a value's representation."""
    return shorten(repr(value[:MAX_VALUE]) if isinstance(value, str) else reprlib.repr(value))


def short_names(names: Iterable[str], limit: int = MAX_NAMES, length: int = MAX_LISTED) -> str:
    """Return the first of some names, at most `limit`, and the number of the others, in at most `length` characters."""
    names = list(names)
    for count in range(min(limit, len(names)), -1, -1):
        listed = ", ".join(names[:count])
        rest = f" and {len(names) - count} more" if len(names) > count else ""
        if count <= 1 or len(listed) + len(rest) <= length:
            break
    return shorten(listed, length - len(rest)) + rest


def shorten(text: str, limit: int = MAX_VALUE) -> str:
    """Return a text on one printable line, cut to `limit` characters."""
    line = " ".join(text[: 2 * limit].split())
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; the name of a file need not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def similar_names(name: str, known: Collection[str]) -> str:
    """Return a sentence with the known names that are most similar to an unknown one."""
    similar = difflib.get_close_matches(name[:MAX_VALUE], known, n=3)
    return f"Similar ones are {', '.join(similar)}." if similar else f"Known ones are {short_names(known, MAX_KNOWN)}."


def install_command(extra: str) -> str:
    """Return the command that installs an extra of the package, from where the package itself came."""
    import importlib.metadata
    import json
    import shlex
    from urllib.parse import unquote, urlsplit

    origin: dict[str, Any] = {}
    with suppress(importlib.metadata.PackageNotFoundError, ValueError):
        origin = json.loads(importlib.metadata.distribution("mlx_transformer").read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    if url.startswith("file://"):
        path = unquote(urlsplit(url).path)
        return f"pip install {shlex.quote(f'{path}[{extra}]')}"
    if url:
        scheme = f"{origin['vcs_info'].get('vcs', 'git')}+" if isinstance(origin.get("vcs_info"), dict) else ""
        return f"pip install 'mlx_transformer[{extra}] @ {scheme}{url}'"
    return f"pip install 'mlx_transformer[{extra}]'"
