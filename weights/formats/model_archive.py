"""Zip files of OPUS-MT and folders of .gz files, as Firefox has them: what a conversion needs is unpacked for it."""

import errno
import gzip
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
# Errors of damaged files, also of a name that appears twice.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    FileExistsError,
    gzip.BadGzipFile,
)
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
    """Unpack a model's files from a zip file, or a folder of .gz files, into a temporary folder; other paths stay.

    The folder has the name of the original, which may tell the languages.

    Raises:
        CheckpointError: If the file is damaged, has several models, or would unpack to too much.
    """
    compressed = sorted(path.glob("*.gz")) if path.is_dir() else []
    compressed = [file for file in compressed if file.stem.endswith((*SUFFIXES, ".bin"))]
    if not compressed and not is_model_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as root:
        name = path.name if compressed else path.stem
        folder = Path(root) / (name if name.strip(".") else "model")
        folder.mkdir()
        try:
            if compressed:
                _decompress(compressed, folder)
            else:
                _unpack_zip(path, folder)
        except DAMAGED as error:
            reason = quote(str(error))
            raise CheckpointError(f"packed files must be complete: {reason}", "download them again", path) from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a position before the file
                raise
            raise CheckpointError("a zip file must be complete", "download it again", path) from None
        except CheckpointError as error:
            raise CheckpointError(error.problem, error.remedy, path) from None
        yield folder


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in choose_members(archive.infolist()):
            with archive.open(member) as source, (folder / PurePosixPath(member.filename).name).open("xb") as file:
                shutil.copyfileobj(source, file)


def _decompress(files: list[Path], folder: Path) -> None:
    """Decompress files; others of the model may stand beside them."""
    for path in files[0].parent.iterdir():
        if path.suffix in (*SUFFIXES, ".bin") and path.is_file():
            shutil.copyfile(path, folder / path.name)
    for path in files:
        limit = max(FREE_BYTES, MAX_RATIO * path.stat().st_size)
        with gzip.open(path) as source, (folder / path.stem).open("xb") as file:
            while chunk := source.read(FREE_BYTES):
                file.write(chunk)
                if file.tell() > limit:
                    raise CheckpointError(f"{quote(path.name)} must not unpack to more than {limit} bytes: a bomb?")


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
