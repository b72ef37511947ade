"""The cache of converted hub models: one folder for each repository, with a model folder for each commit in use.

A repository's folder has, for each revision that was loaded, a record with the name of the model folder that was used
last. Models that are stored in the type of a GPU have folders and records of their own. Model folders without a record
are superseded: by a newer commit, or by a newer version of the conversion.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from mlx_transformer.config.folder import CONVERSION_VERSION
from mlx_transformer.storage.atomic import atomic_write_text

REPOSITORY_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
MODEL_FOLDER = re.compile(r"[0-9a-f]{40}-[\w.]+", re.ASCII)  # everything else in the cache is left alone
INCOMPLETE_RECORDS = "ref-*.????????.partial"  # the temporary names of `atomic_write_text`
OFFLINE = ".offline"
RECENT = 3600  # seconds after its last use for which a superseded model is kept: a process may be loading it


@dataclass(frozen=True)
class CachedModel:
    """A converted model in the cache.

    Attributes:
        repository: owner/name.
        commit: The commit that was converted.
        revisions: The revisions that it was loaded for; none if it is superseded.
        is_current: Whether this version of mlx_transformer would convert the commit in the same way.
        device: The device whose default type it is stored in, "gpu" or "gpu_without_bfloat16"; empty if it is stored
            as in the repository.
        size: Bytes on disk; 0 for a link to the files of huggingface_hub's cache.
        last_used: Time of the last load, in seconds since 1970.
        folder: The model folder.
    """

    repository: str
    commit: str
    revisions: list[str]
    is_current: bool
    device: str
    size: int
    last_used: float
    folder: Path

    @property
    def precision(self) -> str:
        """How the weights are stored, such as float32 or 8 bits; empty if they cannot be read."""
        from mlx_transformer.checkpoints.model_folder import read_config  # imports MLX
        from mlx_transformer.storage.safetensors import read_arrays

        try:
            quantization = read_config(self.folder).quantization
            arrays = [] if quantization else read_arrays(self.folder / "model.safetensors").values()
        except (OSError, ValueError):
            return ""
        types = sorted({str(array.dtype).removeprefix("mlx.core.") for array in arrays})
        return f"{quantization.bits} bits" if quantization else ", ".join(types)


def is_repository_id(text: str) -> bool:
    """Whether a text has the form owner/name of a repository."""
    return REPOSITORY_ID.fullmatch(text) is not None


def cache_folder() -> Path:
    """Return the folder of converted models; it may be deleted, as a whole or model by model, to free disk space.

    Raises:
        OSError: If the user has no home folder, as in some containers, and the environment names no other.
    """
    try:
        if folder := os.environ.get("MLX_TRANSFORMER_CACHE"):
            return Path(folder).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mlx_transformer"
    except RuntimeError:  # from expanduser
        raise OSError(
            "The model cache needs a folder, and you have no home folder: set MLX_TRANSFORMER_CACHE and HF_HOME."
        ) from None


def repository_folder(name: str) -> Path:
    """Return the folder of a repository's models."""
    return cache_folder() / name.replace("/", "--")


def converted_folder(name: str, commit: str, device: str = "", *, offline: bool = False) -> Path:
    """Return the model folder of a commit, as this version of mlx_transformer converts it for a device.

    Conversions of files that other programs downloaded, of which some may be missing, have a folder of their own, which
    is used only offline.
    """
    suffix = f".{device}" if device else ""
    return repository_folder(name) / f"{commit}-v{CONVERSION_VERSION}{suffix}{OFFLINE if offline else ''}"


def commit_of(folder: Path) -> str:
    """Return the commit of a model folder in the cache."""
    return folder.name.partition("-")[0]


def device_of(folder: Path) -> str:
    """Return the device that a model folder in the cache was converted for; see `CachedModel`."""
    return folder.name.removesuffix(OFFLINE).partition("-v")[2].partition(".")[2]


def read_last_used(name: str, revision: str | None, device: str = "") -> Path | None:
    """Return the folder that was last loaded for a revision on a device, if it still exists."""
    record = _record(name, revision, device)
    folder = record.parent / record.read_text() if record.exists() else None
    return folder if folder and (folder / "config.json").exists() else None


def write_last_used(name: str, revision: str | None, folder: Path) -> None:
    """Record that a folder was used for a revision, and delete the models that are superseded now."""
    was_used_recently = folder.lstat().st_mtime > time.time() - RECENT
    if read_last_used(name, revision, device_of(folder)) != folder or not was_used_recently:
        with suppress(OSError), lock_folder(folder.parent):  # the cache may be read-only
            record_use(name, revision, folder)
    with suppress(OSError):
        os.utime(folder, follow_symlinks=False)


def record_use(name: str, revision: str | None, folder: Path) -> None:
    """Record that a model folder was used for a revision, and delete the models that are superseded now.

    The folder of the repository must be locked.
    """
    for leftover in folder.parent.glob(INCOMPLETE_RECORDS):  # of killed processes
        leftover.unlink()
    atomic_write_text(_record(name, revision, device_of(folder)), folder.name)
    with suppress(OSError):
        _delete_superseded(name, older_than=RECENT)


def _record(name: str, revision: str | None, device: str) -> Path:
    suffix = f"@{device}" if device else ""  # quoted revisions have no @
    return repository_folder(name) / f"ref-{quote(revision or 'main', safe='')}{suffix}"


def cached_models(name: str | None = None) -> list[CachedModel]:
    """Return the converted models of a repository of the hub, or of all repositories, the last used first."""
    homes = cache_folder().glob("*--*") if name is None else [repository_folder(name)] * is_repository_id(name)
    models = [model for home in homes for model in _list_repository(home)]
    return sorted(models, key=lambda model: model.last_used, reverse=True)


def _list_repository(home: Path) -> Iterator[CachedModel]:
    revisions: dict[str, list[str]] = {}
    for record in home.glob("ref-*"):
        revision = unquote(record.name.removeprefix("ref-").partition("@")[0])
        revisions.setdefault(record.read_text(), []).append(revision)
    for folder in home.iterdir() if home.is_dir() else ():
        if not MODEL_FOLDER.fullmatch(folder.name) or not (folder.is_symlink() or (folder / "config.json").exists()):
            continue
        files = [] if folder.is_symlink() else list(folder.rglob("*"))
        yield CachedModel(
            repository=home.name.replace("--", "/", 1),
            commit=commit_of(folder),
            revisions=sorted(revisions.get(folder.name, [])),
            is_current=folder.name.partition("-")[2].partition(".")[0] == f"v{CONVERSION_VERSION}",
            device=device_of(folder),
            size=sum(path.stat().st_size for path in files if path.is_file()),
            last_used=folder.lstat().st_mtime,
            folder=folder,
        )


def prune_cache() -> list[CachedModel]:
    """Delete the superseded models of all repositories, and return them."""
    deleted = []
    for name in sorted({model.repository for model in cached_models()}):
        with lock_folder(repository_folder(name)):
            deleted += _delete_superseded(name, older_than=0)
    return deleted


def _delete_superseded(name: str, older_than: float) -> list[CachedModel]:
    """Delete the superseded models of a repository that were last used more than `older_than` seconds ago."""
    newest = time.time() - older_than
    models = [model for model in cached_models(name) if not model.revisions and model.last_used <= newest]
    for model in models:
        _delete(model.folder)
    return models


def remove_cached(name: str) -> list[CachedModel]:
    """Delete all converted models of a repository and return them; downloads stay in huggingface_hub's cache.

    Raises:
        FileNotFoundError: If the cache has no model of the repository.
    """
    models = cached_models(name)
    if not models:
        raise FileNotFoundError(f"The cache has no model {name}: mlx-transformer cache lists those that it has.")
    with lock_folder(repository_folder(name)):
        for record in repository_folder(name).glob("ref-*"):
            record.unlink()
        for model in models:
            _delete(model.folder)
    return models


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Give one process or thread at a time access to a folder; the lock ends with the process."""
    from filelock import FileLock  # slow to import, and `--help` needs no lock

    lock = FileLock(folder / ".lock")
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cache_errors(folder: Path, *numbers: int) -> Iterator[None]:
    """Say of errors of the system, or only of those with these numbers, that the cache cannot be used."""
    try:
        yield
    except OSError as error:
        if not error.strerror or (numbers and error.errno not in numbers):
            raise
        raise OSError(
            f"The model cache {folder} cannot be used: {error.strerror}; free disk space, or set MLX_TRANSFORMER_CACHE."
        ) from error
