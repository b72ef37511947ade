"""Zip files of OPUS-MT and folders of .gz or .zst files, as Firefox has them: the model's files are unpacked."""

import errno
import gzip
import importlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mlx_transformer.weights.formats.tensors import CheckpointError, quote

WEIGHTS = ".npz"
SUFFIXES = (WEIGHTS, ".spm", ".yml", ".yaml")  # of files that are unpacked; scripts, texts and others are not
FOLDER_SUFFIXES = (*SUFFIXES, ".bin")  # of files that are decompressed in a folder
COMPRESSED = (".gz", ".zst")
ZSTD_MODULES = ("compression.zstd", "backports.zstd")  # the standard library from Python 3.14 on; the same for others
# Errors of damaged files, also of a name that appears twice.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    FileExistsError,
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
    """Unpack a model's files from a zip file, or a folder of compressed files, into a temporary folder; others stay.

    The folder has the name of the original, which may tell the languages. Errors while it is used name the original.

    Raises:
        CheckpointError: If the file is damaged, has several models, or would unpack to too much.
    """
    compressed = find_compressed(path)
    if not compressed and not is_model_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as root:
        name = path.name if compressed else path.stem
        folder = Path(root) / (name if name.strip(".") else "model")
        folder.mkdir()
        try:
            _unpack(path, compressed, folder)
            yield folder
        except ValueError as error:
            error.args = (str(error).replace(str(folder), str(path)),)
            raise


def find_compressed(folder: Path) -> list[Path]:
    """Return the compressed files of a model in a folder, without those that were decompressed beside them."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    packed = (file for file in files if file.suffix in COMPRESSED and file.stem.endswith(FOLDER_SUFFIXES))
    return [file for file in packed if not file.with_suffix("").exists()]


def _unpack(path: Path, compressed: list[Path], folder: Path) -> None:
    """Unpack a zip file, or compressed files of a folder, into another folder."""
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


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in choose_members(archive.infolist()):
            with archive.open(member) as source, (folder / PurePosixPath(member.filename).name).open("xb") as file:
                shutil.copyfileobj(source, file)


def _decompress(files: list[Path], folder: Path) -> None:
    """Decompress files; others of the model may stand beside them."""
    for path in files[0].parent.iterdir():
        if path.suffix in FOLDER_SUFFIXES and path.is_file():
            shutil.copyfile(path, folder / path.name)
    remaining = MAX_BYTES
    for path in files:
        limit = min(remaining, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))
        with open_compressed(path) as source, (folder / path.stem).open("xb") as file:
            while chunk := source.read(FREE_BYTES):
                file.write(chunk)
                if file.tell() > limit:
                    raise CheckpointError(f"{quote(path.name)} must not unpack to more than {limit} bytes: a bomb?")
            remaining -= file.tell()


@contextmanager
def open_compressed(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a .gz or .zst file to read what it unpacks to.

    Raises:
        CheckpointError: If nothing reads .zst files, or the file is damaged.
    """
    zstd = None if path.suffix == ".gz" else _import_zstd()
    open_file, damage = (gzip.open, gzip.BadGzipFile) if zstd is None else (zstd.open, zstd.ZstdError)
    try:
        with open_file(path) as file:
            yield file
    except (damage, zlib.error, EOFError) as error:
        raise CheckpointError(f"packed files must be complete: {quote(str(error))}", "download them again") from None


def _import_zstd() -> Any:
    for name in ZSTD_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    raise CheckpointError(
        ".zst files need Python 3.14 or the package backports.zstd",
        "install that (pip install backports.zstd), or decompress them (zstd -d)",
    )


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
