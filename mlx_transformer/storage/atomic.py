"""Atomic replacement of files and folders, and locks between processes."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_transformer.storage import atomic
from mlx_transformer.storage.files import read_json

F_FULLFSYNC = vars(fcntl).get("F_FULLFSYNC")  # on macOS fsync leaves data in the disk's own memory


@contextmanager
def atomic_replace(folder: Path, retired: Path | None = None) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once the block is done without an error.

    Args:
        folder: The folder to replace.
        retired: Where the former folder goes; None to delete it.

    Raises:
        FileExistsError: If `folder` holds something, but no model.
    """
    folder = folder.resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_model_folder(folder)):
        raise FileExistsError(f"{folder} is there already and is no model folder: choose another name.")
    old = retired or _backup_path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.new-*"):
        with try_lock(left) as mine:
            if mine:
                shutil.rmtree(left, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    new.mkdir()
    try:
        with try_lock(new):
            yield new
        for path in (new, *new.rglob("*")):
            fsync(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        for path in {folder.parent, old.parent}:
            fsync(path)
    finally:
        restore_interrupted_replacement(folder, old)
        shutil.rmtree(new, ignore_errors=True)
    if retired is None:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Whether a folder is no other process's, nor another thread's, for as long as the block runs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder's config.json is that of a model folder, of whatever version."""
    path = folder / "config.json"
    try:
        data = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(data, dict) and "format_version" in data


def restore_interrupted_replacement(folder: Path, old: Path | None = None) -> None:
    """Put back a folder whose replacement was cut off between two renames."""
    old = old or _backup_path(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _backup_path(folder: Path) -> Path:
    """Where a folder is while the new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def fsync(path: Path) -> None:
    """Ask the system to have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if F_FULLFSYNC is None:
            os.fsync(descriptor)
        else:
            fcntl.fcntl(descriptor, F_FULLFSYNC)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    atomic.fsync(new)
    new.replace(path)
