"""Atomic replacement of files and folders: readers see the old version or the new one, never a mixture."""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

F_FULLFSYNC = vars(fcntl).get("F_FULLFSYNC")  # on macOS, fsync does not flush the disk's own cache
RESTORE_ATTEMPTS = 100


@contextmanager
def atomic_replace(folder: Path, delete: Callable[[Path], None] = shutil.rmtree) -> Iterator[Path]:
    """Yield a new, empty folder that replaces `folder` when the block ends without an error.

    Both are kept in a hidden folder beside it, which one process or thread at a time can hold. If a process is killed
    between the two renames, `restore_interrupted_replacement` puts the old folder back.

    Args:
        folder: The folder to replace; created if it does not exist.
        delete: Deletes the old folder, or moves it; it may leave files that must be kept.

    Raises:
        BlockingIOError: If another process or thread is replacing the folder.
        FileExistsError: If the hidden folder is a link.
    """
    folder = Path(os.path.realpath(folder))  # Path.resolve may raise RuntimeError
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _claim(folder) as claim:
        new, old = claim / "new", claim / "old"
        _clean_up(folder, claim, delete)
        new.mkdir(mode=folder.stat().st_mode & 0o777 | 0o700 if folder.exists() else 0o777)
        try:
            yield new
            for path in (new, *new.rglob("*")):
                fsync(path)
            if folder.exists():
                shutil.copymode(folder, new)
                folder.rename(old)
            new.rename(folder)
            for path in (folder.parent, claim):
                fsync(path)
        finally:
            _restore(folder, old)
            shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            delete(old)


def is_being_replaced(folder: Path) -> bool:
    """Whether a process is inside `atomic_replace` for a folder, or was killed inside it."""
    return _claim_path(Path(os.path.realpath(folder))).exists()


def restore_interrupted_replacement(folder: Path) -> None:
    """Put the old folder back, with a warning, if a process was killed between the two renames of `atomic_replace`."""
    folder = Path(os.path.realpath(folder))
    old = _claim_path(folder) / "old"
    for _ in range(RESTORE_ATTEMPTS):
        if folder.exists() or not os.path.exists(old):  # false if the name is too long
            return
        with suppress(BlockingIOError), _claim(folder):
            if _restore(folder, old):
                logger.warning("%s was restored, because its replacement was interrupted.", folder)
        time.sleep(0.01)  # another process is between its renames, or restores the folder


def finish_interrupted_replacement(folder: Path, delete: Callable[[Path], None]) -> None:
    """Restore the old folder if nothing has replaced it, and delete what else a killed process left.

    Args:
        folder: The folder of `atomic_replace`.
        delete: See `atomic_replace`.
    """
    restore_interrupted_replacement(folder)
    folder = Path(os.path.realpath(folder))
    if _claim_path(folder).exists():
        with _claim(folder) as claim:
            _clean_up(folder, claim, delete)


def _restore(folder: Path, old: Path) -> bool:
    """Move the old folder back if nothing has replaced it; return whether this was necessary."""
    if folder.exists() or not old.exists():
        return False
    old.rename(folder)
    return True


def _clean_up(folder: Path, claim: Path, delete: Callable[[Path], None]) -> None:
    """Restore or delete what a killed process left; what `delete` keeps is moved beside the folder, with a warning."""
    new, old = claim / "new", claim / "old"
    _restore(folder, old)
    if new.exists():
        shutil.rmtree(new)
    if old.exists():
        delete(old)
    if old.exists():
        kept = folder.with_name(f"{folder.name[:50]}.{os.urandom(4).hex()}.kept")
        old.rename(kept)
        logger.warning("%s has files that an earlier replacement kept.", kept)


def _claim_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.replacement"


@contextmanager
def _claim(folder: Path) -> Iterator[Path]:
    """Create and lock the hidden folder for the replacement of a folder; remove it afterwards if it is empty."""
    claim = _claim_path(folder)
    if claim.is_symlink():
        raise FileExistsError(f"{claim} must not be a link, because files in it are deleted: remove it.")
    try:
        claim.mkdir()
    except FileExistsError:
        if claim.is_file():  # not where another process has removed it meanwhile, which the lock notices
            raise
    with try_lock(claim) as locked:
        if not locked:
            raise BlockingIOError(
                f"{folder} is being written by another process: wait until it has finished, or choose another name."
            )
        try:
            yield claim
        finally:
            with suppress(OSError):
                claim.rmdir()


@contextmanager
def atomic_write(path: Path, keep_partial: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when the block ends without an error.

    The new file lies beside the old one; a symbolic link to it stays a link. It has the permissions of the old file, or
    those that the umask leaves. No other file is overwritten; of several processes with one path, the last one wins.

    Args:
        path: The file to replace; created if it does not exist.
        keep_partial: Whether what was written is kept after an error, in the new file.

    Raises:
        ValueError: If the path is a folder, a device, a pipe or a link to itself.
        OSError: If the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else 0o666
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path} must be a file, not a folder, device, pipe or link to itself: choose another name.")
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
    return path.with_name(f"{path.name[:50]}.{os.urandom(4).hex()}.partial")  # a long name would get too long


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Lock a folder for the duration of the block; yield False if another process or thread holds or has removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock_descriptor(descriptor) and _is_open_as(descriptor, folder)
    finally:
        os.close(descriptor)


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock_descriptor(descriptor: int) -> bool:
    """Lock an open file without waiting; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
