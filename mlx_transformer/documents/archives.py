"""ZIP archives, such as .docx and .epub: read within budgets, and written with some entries replaced."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable

MAX_ENTRIES = 10_000
MAX_UNPACKED = 2**28  # bytes of all entries
MAX_RATIO = 200  # of these to the bytes of the archive


def rewrite_archive(data: bytes, name: str, rewrite: Callable[[str, bytes], bytes]) -> bytes:
    """Return an archive whose entries are rewritten, in their order; what `rewrite` returns as it is stays.

    Raises:
        ValueError: If the data is no archive, is damaged or encrypted, or does not keep the budgets.
    """
    entries = _read_entries(data, name)
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, rewrite(entry.filename, content))
    return output.getvalue()


def _read_entries(data: bytes, name: str) -> list[tuple[zipfile.ZipInfo, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ENTRIES or size > MAX_UNPACKED or size > MAX_RATIO * len(data):
                raise ValueError(
                    f"{name} must unpack to {MAX_ENTRIES:,} files, {MAX_UNPACKED >> 20} MiB and {MAX_RATIO} times its "
                    f"size at most, but it has {len(entries):,} files of {size / 2**20:.1f} MiB: it may be a ZIP bomb."
                )
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError(f"{name} must not hold two files of one name: save it again.")
            return [(entry, archive.read(entry)) for entry in entries]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(f"{name} must be a whole ZIP archive without a password: {error}; save it again.") from None
