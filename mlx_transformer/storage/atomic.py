"""Atomic replacement of files and folders: readers see the old version or the new one, never a mixture."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def atomic_write(path: Path, keep_partial: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when the block ends without an error.

    The new file lies beside the old one; a symbolic link to it stays a link. It has the permissions of the old file, or
    those that the umask leaves. No other file is overwritten; of several processes with one path, the last one wins.

    Args:
        path: The file to replace; created if it does not exist.
        keep_partial: Whether what was written is kept after an error, in the new file.

    Raises:
        ValueError: If the path is a folder, a device or a pipe.
        OSError: If the file cannot be written.
    """
    path = path.resolve()
    mode = path.stat().st_mode if path.exists() else 0o666
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a file, not a folder, device or pipe: choose another name.")
    new = _temporary_path(path)
    file = open(new, "xb", opener=lambda name, flags: os.open(name, flags, mode & 0o777))
    try:
        with file:
            yield file
            file.flush()
            _sync(file.fileno())
        if path.exists():
            shutil.copymode(path, new)
        new.replace(path)
    finally:
        if new.exists() and not (keep_partial and new.stat().st_size):
            new.unlink()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that is replaced as a whole."""
    with atomic_write(path) as file:
        file.write(text.encode())


def atomic_symlink(path: Path, target: Path) -> None:
    """Create a symbolic link, or replace an existing one."""
    new = _temporary_path(path)
    new.symlink_to(target)
    new.replace(path)


def _temporary_path(path: Path) -> Path:
    """Return a new name beside a path; other processes choose other names."""
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.partial")  # a long name would get too long


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
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if F_FULLFSYNC is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, F_FULLFSYNC)
