"""Replacement of model folders: only files that this package wrote are ever deleted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.messages import short_names
from mlx_transformer.storage.atomic import atomic_replace, is_being_replaced, restore_interrupted_replacement
from mlx_transformer.storage.checksums import CHECKSUM_FILE, read_checksums, write_checksums
from mlx_transformer.storage.files import read_json, sha256_of

CARD = "Converted by mlx_transformer"  # in the README.md of converted models
CARD_FILE = "README.md"
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapters.safetensors"
MODEL_FILES = frozenset(
    {
        *(ADAPTER_CONFIG_FILE, ADAPTER_FILE),
        *("config.json", "model.safetensors"),
        *("vocabulary.json", "tokenizer.json", "sentencepiece.model", "sentencepiece_decoder.model"),
        *("target_tokenizer.json", "target_sentencepiece.model", "target_sentencepiece_decoder.model"),
    }
)
UNLISTED_FILES = frozenset({CHECKSUM_FILE, ".DS_Store"})  # .DS_Store is written by macOS when a folder is looked at
STATE_FILES = frozenset({"training.json", "training.safetensors"})  # only in checkpoints of a run
MAX_LISTED = 200  # characters of the names in an error
FolderKind = Literal["model", "adapter"]


@contextmanager
def replace_model_folder(
    folder: Path, source: Path | None = None, *, overwrite: bool = True, kind: FolderKind = "model"
) -> Iterator[Path]:
    """Yield a new folder that replaces a model or adapter folder when the block ends without an error.

    Checksums are added to its files. See `check_destination` for the parameters.

    Raises:
        FileExistsError: See `check_destination`.
        BlockingIOError: If another process or thread is writing the same folder.
    """
    restore_interrupted_replacement(folder)
    try:
        check_destination(folder, source, overwrite=overwrite, kind=kind)
    except OSError:
        if not is_being_replaced(folder):  # otherwise the folder may have been moved during the check
            raise
    with atomic_replace(folder, delete=delete_model_folder) as new:
        check_destination(folder, source, overwrite=overwrite, kind=kind)  # another process may just have written it
        yield new
        write_checksums(new)
        check_destination(folder, source, overwrite=overwrite, kind=kind)  # writing may have taken hours


def check_destination(
    folder: Path, source: Path | None = None, *, overwrite: bool = True, kind: FolderKind = "model"
) -> None:
    """Raise FileExistsError if other files would be lost by writing a model or adapter folder.

    Args:
        folder: The folder to write.
        source: The checkpoint that is converted.
        overwrite: Whether a folder of this kind may be replaced.
        kind: The kind of folder to write.
    """
    article = "an" if kind == "adapter" else "a"
    path = Path(os.path.realpath(folder))  # Path.resolve may raise RuntimeError
    if os.path.lexists(path) and not path.is_dir():
        raise FileExistsError(f"{path} exists and is not {article} {kind} folder: choose another name.")
    if source is not None and Path(os.path.realpath(source)).is_relative_to(path):
        raise FileExistsError(f"{path} is the source {source} or holds it: choose another destination.")
    if _holds_working_directory(path):
        raise FileExistsError(f"{path} is the current directory or holds it: choose another name.")
    if path.is_mount():
        raise FileExistsError(f"{path} is a mount point, which cannot be replaced: choose a folder inside it.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (is_adapter_folder(path) if kind == "adapter" else _has_model(path)):
        raise FileExistsError(f"{path} exists and is not {article} {kind} folder: choose another name.")
    if others := find_other_files(path):
        names = short_names(others, length=MAX_LISTED)
        raise FileExistsError(
            f"{path} holds files that do not belong to the {kind} and would be lost ({names}): move them to another "
            "folder, or choose another name."
        )
    if not overwrite:
        raise FileExistsError(f"{folder} already exists: choose another name, or use force to replace it.")


def _holds_working_directory(path: Path) -> bool:
    with suppress(FileNotFoundError):  # it may have been deleted
        return Path.cwd().is_relative_to(path)
    return False


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has the config.json of a model folder, of any format version."""
    return "format_version" in _read_config_fields(folder / "config.json")


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder has the adapter_config.json of an adapter folder, of any format version."""
    return "format_version" in _read_config_fields(folder / ADAPTER_CONFIG_FILE)


def _read_config_fields(path: Path) -> dict[str, Any]:
    """Return the fields of a folder's config file; none if it is missing or damaged."""
    try:
        data = read_json(path) if path.is_file() else None
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _has_model(folder: Path) -> bool:
    """Whether a folder is surely a model folder: other programs write a config.json with a format_version, too."""
    fields = _read_config_fields(folder / "config.json")
    model = fields.get("model")
    return "format_version" in fields and isinstance(model, dict) and {"encoder", "decoder"} <= model.keys()


def find_other_files(folder: Path) -> list[str]:
    """Return the names of the files and folders in a model folder that this package did not write.

    README.md is one of them if it was edited.
    """
    return sorted(path.name for path in folder.iterdir() if not _is_ours(path))


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.name not in {CARD_FILE, *UNLISTED_FILES, *MODEL_FILES, *STATE_FILES}:
        return False
    if path.name in UNLISTED_FILES:
        return True
    try:
        checksums = read_checksums(path.parent)
    except FileNotFoundError:  # as in folders of earlier versions
        return path.name in MODEL_FILES or path.name == CARD_FILE and CARD.encode() in path.read_bytes()
    except ValueError:
        return path.name in MODEL_FILES
    return path.name in checksums and (path.name != CARD_FILE or sha256_of(path) == checksums[path.name])


def delete_model_folder(folder: Path) -> None:
    """Delete the files of a model folder that this package wrote; the folder stays if it has other files.

    Files that cannot be deleted are ignored, such as open ones on a network drive.
    """
    others = find_other_files(folder)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CHECKSUM_FILE):  # which is needed until the end
        if path.name not in others:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        folder.rmdir()
