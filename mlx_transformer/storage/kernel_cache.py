"""The folder from which MLX loads compiled kernels: no other user may be able to put a file there.

MLX compiles kernels for the CPU and for CUDA to `mlx/<version>` in the temporary folder, and runs any kernel that it
finds there, whoever wrote it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path
WRITABLE_FOR_OTHERS = stat.S_IWGRP | stat.S_IWOTH
REACHABLE_FOR_OTHERS = stat.S_IXGRP | stat.S_IXOTH


def temporary_folder() -> Path:
    """Return the folder that MLX uses for temporary files."""
    return Path(next((os.environ[name] for name in VARIABLES if name in os.environ), "/tmp"))


def find_risk(temporary: Path) -> str | None:
    """Return why MLX cannot compile safely in a temporary folder; None if it can.

    Creates the folder of the kernels, for this user alone, if it does not exist. Nobody else can replace that folder
    later, because the temporary folder is this user's or root's, and sticky if others can write to it.
    """
    kernels, user = temporary / "mlx", os.geteuid()
    try:
        state = temporary.stat()
        is_shared = state.st_mode & WRITABLE_FOR_OTHERS and not state.st_mode & stat.S_ISVTX
        if state.st_uid not in (user, 0) or is_shared:
            return f"{temporary} belongs to another user, or other users can rename what is in it"
        if not os.path.lexists(kernels):
            kernels.mkdir(mode=0o700, exist_ok=True)
        state = kernels.lstat()  # after mkdir, and not following links: another user may have been faster
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != user or state.st_mode & WRITABLE_FOR_OTHERS:
            return f"{kernels} belongs to another user, or other users can write to it"
        forbidden = WRITABLE_FOR_OTHERS if state.st_mode & REACHABLE_FOR_OTHERS else 0
        for entry in _walk(kernels):
            with suppress(FileNotFoundError):  # another process may just have deleted it
                state = entry.stat(follow_symlinks=False)
                if state.st_uid != user or (state.st_mode & forbidden and not entry.is_symlink()):
                    return f"{entry.path} belongs to another user, or other users can write to it"
    except OSError as error:
        return f"{error.filename} cannot be used ({error.strerror})"
    return None


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield all entries below a folder; much faster than Path.rglob, because there may be thousands."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def has_kernels(temporary: Path) -> bool:
    """Whether MLX has compiled kernels for the CPU in a temporary folder before."""
    with suppress(OSError):
        return any(entry.name.endswith(".so") for entry in _walk(temporary / "mlx"))
    return False
