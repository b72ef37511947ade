"""SHA256SUMS: the checksums of a folder's files, in the format of `sha256sum --check`."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from mlx_transformer.messages import shorten
from mlx_transformer.storage.files import read_text, sha256_of

CHECKSUM_FILE = "SHA256SUMS"
MAX_FILE_NAME = 255  # bytes


@dataclass(frozen=True)
class WeightsSource:
    """Where a model's weights were read from.

    Attributes:
        path: The model's path.
        files: The files with its weights.
        checksum: SHA-256 of the weights that these were converted from, if it was recorded: copies of a model in
            several precisions have it in common.
        sample: Elements of the weights as they were read, see `mlx_transformer.model.weights_source`.
    """

    path: Path
    files: tuple[Path, ...]
    checksum: str | None = None
    sample: bytes = field(default=b"", repr=False)

    def sha256(self) -> str:
        """Return what identifies the weights: the recorded checksum, or that of the files."""
        return self.checksum or combine_checksums([sha256_of(path) for path in self.files])


def combine_checksums(digests: Sequence[str]) -> str:
    """Return one checksum for the files of a model, whatever their order; of a single file its own."""
    return digests[0] if len(digests) == 1 else sha256("".join(sorted(digests)).encode()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 checksums of all files in a folder."""
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / CHECKSUM_FILE).write_text("".join(sums), encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file; FileNotFoundError without SHA256SUMS, ValueError if it is malformed."""
    lines = [line.split("  ", 1) for line in read_text(folder / CHECKSUM_FILE).splitlines()]
    # A name must be that of a file in the folder: `Path.is_file` raises for one that no file system has.
    if any(len(line) != 2 or set(line[1]) & set("/\0") or len(os.fsencode(line[1])) > MAX_FILE_NAME for line in lines):
        raise ValueError(f"{folder / CHECKSUM_FILE} must have a checksum and a name in each line: copy it again.")
    return {name: digest for digest, name in lines if name != CHECKSUM_FILE}


def find_damage(folder: Path, required: Iterable[str] = ()) -> str | None:
    """Return what is wrong with a folder's files, None if they match their checksums.

    Args:
        folder: The folder.
        required: The names of files that it must have.
    """
    try:
        checksums = read_checksums(folder)
    except FileNotFoundError:
        return f"{CHECKSUM_FILE} is missing"
    except ValueError:
        return f"{CHECKSUM_FILE} is malformed"
    for name in (*required, *checksums):
        if name not in checksums or not (folder / name).is_file():
            return f"{shorten(name)} is missing"
        if sha256_of(folder / name) != checksums[name]:
            return f"{name} does not match its checksum in {CHECKSUM_FILE}"
    return None


def changed_files(folder: Path) -> list[str]:
    """Return the names of the files that are missing or do not match their checksums.

    Raises:
        FileNotFoundError: If the folder has no SHA256SUMS.
        ValueError: If it is malformed.
    """
    return [
        name
        for name, digest in read_checksums(folder).items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]
