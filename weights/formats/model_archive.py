"""Zip files of whole folders, as OPUS-MT publishes Marian's models: what a conversion needs is unpacked for it."""

import errno
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mlx_transformer.weights.formats.tensors import CheckpointError, quote

WEIGHTS = ".npz"
SUFFIXES = (WEIGHTS, ".spm", ".yml", ".yaml")  # of files that are unpacked; scripts, texts and others are not
DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, FileExistsError)
MAX_MEMBERS = 10_000
MAX_BYTES = 2**34
MAX_RATIO, FREE_BYTES = 100, 2**20  # a member may unpack to 100 times its size, or to 1 MiB


def is_model_archive(path: Path) -> bool:
    """Whether a file is a zip file with a model's .npz among its members."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(WEIGHTS) for name in archive.namelist())
    except (*DAMAGED, OSError, ValueError):
        return False


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack a model's files from a zip file into a temporary folder; any other path is returned as it is.

    The folder has the name of the zip file, which may tell the languages.

    Raises:
        CheckpointError: If the file is damaged, has several models, or would unpack to too much.
    """
    if not is_model_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / (path.stem if path.stem.strip(".") else "model")
        folder.mkdir()
        try:
            with zipfile.ZipFile(path) as archive:
                for member in choose_members(archive.infolist()):
                    name = PurePosixPath(member.filename).name
                    with archive.open(member) as source, (folder / name).open("xb") as file:
                        shutil.copyfileobj(source, file)
        except DAMAGED as error:
            reason = quote(str(error))
            raise CheckpointError(f"a zip file must be complete: {reason}", "download it again", path) from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a position before the file
                raise
            raise CheckpointError("a zip file must be complete", "download it again", path) from None
        except CheckpointError as error:
            raise CheckpointError(error.problem, error.remedy, path) from None
        yield folder


def choose_members(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the members that belong to the model: those beside its weights.

    Raises:
        CheckpointError: If there are several models, or the members are too many or too large.
    """
    if len(members) > MAX_MEMBERS:
        raise CheckpointError(f"a zip file must have at most {MAX_MEMBERS} members, not {len(members)}")
    weights = [member for member in members if member.filename.endswith(WEIGHTS)]
    if len(weights) != 1:
        names = ", ".join(quote(member.filename) for member in weights[:3])
        raise CheckpointError(f"a zip file must have one .npz file, not {names}", "unpack it, and convert one of them")
    folder = PurePosixPath(weights[0].filename).parent
    chosen = [
        member
        for member in members
        if member.filename.endswith(SUFFIXES) and PurePosixPath(member.filename).parent == folder
    ]
    if sum(member.file_size for member in chosen) > MAX_BYTES:
        raise CheckpointError(f"a model in a zip file must have at most {MAX_BYTES >> 30} GiB")
    for member in chosen:
        if member.file_size > max(FREE_BYTES, MAX_RATIO * member.compress_size):
            raise CheckpointError(f"{quote(member.filename)} must not unpack to {member.file_size} bytes: a zip bomb?")
    return chosen
