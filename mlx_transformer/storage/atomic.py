"""Atomic replacement of files and folders: readers see the old version or the new one, never a mixture."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

F_FULLFSYNC = vars(fcntl).get("F_FULLFSYNC")  # on macOS, fsync does not flush the disk's own cache


@contextmanager
def atomic_replace(folder: Path, retired: Path | None = None) -> Iterator[Path]:
    """Yield a new, empty folder that replaces `folder` when the block ends without an error.

    Args:
        folder: The folder to replace; created if it does not exist.
        retired: Where to move the old folder; None to delete it.
    """
    folder = folder.resolve()
    old = retired or _backup_path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.new-*"):
        with try_lock(leftover) as locked:
            if locked:
                shutil.rmtree(leftover, ignore_errors=True)
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


def restore_interrupted_replacement(folder: Path, old: Path | None = None) -> None:
    """Restore the old folder if `atomic_replace` was interrupted between its two renames."""
    old = old or _backup_path(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _backup_path(folder: Path) -> Path:
    """Return where `atomic_replace` keeps the old folder until the new one is in its place."""
    return folder.with_name(f".{folder.name}.old")


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file that is replaced as a whole."""
    new = _temporary_path(path)
    new.write_text(text, encoding="utf-8")
    fsync(new)
    new.replace(path)


def atomic_symlink(path: Path, target: Path) -> None:
    """Create a symbolic link, or replace an existing one."""
    new = _temporary_path(path)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Lock a folder for the duration of the block; yield False if another process or thread holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if F_FULLFSYNC is None:
            os.fsync(descriptor)
        else:
            fcntl.fcntl(descriptor, F_FULLFSYNC)
    finally:
        os.close(descriptor)
