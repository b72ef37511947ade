"""Models of the Hugging Face hub: which files are downloaded, and the cache of converted models.

Downloads stay in the cache of huggingface_hub (HF_HOME), which other programs share. Code in them is never run.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from mlx_transformer import __version__
from mlx_transformer.storage.atomic import atomic_write_text
from mlx_transformer.weights.conversion_plan import check_convertible
from mlx_transformer.weights.formats.checkpoint import OTHER_FILES, PREFERRED_FILES, SHARD_NAME, WEIGHT_SUFFIXES
from mlx_transformer.weights.source_config import read_config

logger = logging.getLogger(__name__)

REPOSITORY_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
CONFIG_FILES = (
    *("config.json", "generation_config.json", "config.yaml", "*tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "*vocab*.json", "*vocab*.txt", "merges.txt", "dict*.txt", "*.spm", "*.model"),
    *("bpecodes", "code", "*.codes"),
)
NON_MODEL_PREFIXES = ("adapter_", *OTHER_FILES)
LOGIN_HINT = "log in with `hf auth login` or set HF_TOKEN"


class HubUnreachableError(OSError):
    """The hub does not respond, or offline mode is on."""


def is_repository_id(text: str) -> bool:
    """Whether a text has the form owner/name of a repository."""
    return REPOSITORY_ID.fullmatch(text) is not None


def fetch_model(name: str, revision: str | None, convert: Callable[[Path, Path], None]) -> Path:
    """Return the converted model folder of a repository: of its newest commit, or offline of the last one used.

    Args:
        name: The repository, owner/name.
        revision: Branch, tag or commit; None for the main branch.
        convert: Called with the path of the downloaded weights (the other files are beside it) and the model folder to
            write, atomically.

    Raises:
        OSError: If the repository or revision does not exist, access is denied, the disk is full, or the hub cannot be
            reached and no converted model is in the cache.
        ValueError: If the repository has no weights of a complete model.
    """
    home = cache_folder() / name.replace("/", "--")
    record = home / f"ref-{quote(revision or 'main', safe='')}"
    if COMMIT_HASH.fullmatch(revision or "") and (pinned := home / f"{revision}-{__version__}").exists():
        return pinned
    try:
        commit, names = resolve_revision(name, revision)
        folder = home / f"{commit}-{__version__}"  # other versions may convert differently
        if read_last_used(record) != folder:
            with lock_folder(home):
                if not folder.exists():
                    convert(download(name, commit, names), folder)
                write_last_used(record, folder)
        return folder
    except HubUnreachableError as error:
        from huggingface_hub import constants

        last = read_last_used(record)
        if last is None:
            raise
        if not constants.HF_HUB_OFFLINE:
            logger.warning("%s Using the last loaded model: %s.", error, last.name)
        return last


def cache_folder() -> Path:
    """Return the folder of converted models; it may be deleted, as a whole or model by model, to free disk space."""
    if folder := os.environ.get("MLX_TRANSFORMER_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mlx_transformer"


def resolve_revision(name: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit of a revision and the names of its files.

    Raises:
        OSError: See `fetch_model`.
    """
    from huggingface_hub import HfApi, constants

    with translate_hub_errors(name, revision):
        info = HfApi().model_info(name, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not COMMIT_HASH.fullmatch(info.sha or ""):
            raise ValueError("the answer names no commit")
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def download(name: str, commit: str, names: list[str]) -> Path:
    """Download the needed files of a commit, and return the path of its weights.

    Raises:
        OSError: See `fetch_model`.
        ValueError: If the repository has no weights of a complete model, or its config.json rules out a conversion.
    """
    from huggingface_hub import hf_hub_download

    for file in choose_files(name, names):  # one by one, so that Ctrl-C waits for one file only
        with translate_hub_errors(name, commit):
            path = Path(hf_hub_download(name, file, revision=commit))
        if file == "config.json":
            check_convertible(read_config(path))  # before the weights, which are large
    return path


def choose_files(name: str, names: list[str]) -> list[str]:
    """Choose the files to download: configuration, tokenizer, and one set of weights, which comes last."""
    names = sorted(file for file in names if "/" not in file)
    weights = next((file for file in PREFERRED_FILES if file in names), None) or _single_weights_file(name, names)
    stem, suffix = os.path.splitext(weights.removesuffix(".index.json"))
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
    shards = [file for file in names if shard.fullmatch(file)] if weights.endswith(".index.json") else []
    small = [file for file in names if any(fnmatch(file, pattern) for pattern in CONFIG_FILES)]
    return [*small, *shards, weights]


def _single_weights_file(name: str, names: list[str]) -> str:
    """Return the only weights file with an unusual name; .fp16. files count only if there are no others."""
    files = [file for file in names if file.endswith(WEIGHT_SUFFIXES) and not file.startswith(NON_MODEL_PREFIXES)]
    files = [file for file in files if ".fp16." not in file] or files
    files = [file for file in files if file.endswith(".safetensors")] or files
    if shards := [file for file in files if SHARD_NAME.fullmatch(file)]:
        raise ValueError(f"Shards need their index, but {name} has {shards[0]} without one: choose another.")
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(
            f"A repository must hold one checkpoint, but {name} has {', '.join(files[:4])}: download one of them and "
            "give its path."
        )
    if any(file.startswith("adapter_") for file in names):
        raise ValueError(
            f"{name} is an adapter, not a complete model: merge it into its base model and save the result."
        )
    raise ValueError(
        f"A repository must hold weights that torch can read ({', '.join(WEIGHT_SUFFIXES)}), {name} has none: "
        "choose another."
    )


def read_last_used(record: Path) -> Path | None:
    """Return the folder that was last loaded for a revision, if it still exists."""
    folder = record.parent / record.read_text() if record.exists() else None
    return folder if folder and (folder / "config.json").exists() else None


def write_last_used(record: Path, folder: Path) -> None:
    """Record the folder of a revision for offline use."""
    atomic_write_text(record, folder.name)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Give one process or thread at a time access to a folder; the lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        if not error.strerror:
            raise
        raise OSError(
            f"The model cache {folder} cannot be used: {error.strerror}; free disk space, or set MLX_TRANSFORMER_CACHE."
        ) from error


@contextmanager
def translate_hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Translate errors of huggingface_hub to one-line messages with a remedy."""
    from huggingface_hub import errors

    try:
        yield
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:  # RuntimeError: from its Rust part
        raise describe_hub_error(error, name, revision) from error


def describe_hub_error(error: BaseException, name: str, revision: str | None) -> OSError:
    """Return the translated error for an error of huggingface_hub."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    address = f"{constants.ENDPOINT}/{name}"
    reason = " ".join(str(error).split()) or type(error).__name__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{name} is gated: ask for access at {address}, then {LOGIN_HINT}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"A revision must be a branch, tag or commit of {address}, not {revision or 'main'}: check the name."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"A model must be a path or owner/name on the hub: there is no path {name} and no model {address} that you "
            f"can access; check the name, or if it is private {LOGIN_HINT}."
        )
    if 400 <= status < 500 and status not in (408, 429):
        return PermissionError(f"The hub denies access to {address}: {reason}; check your token, {LOGIN_HINT}.")
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError | TimeoutError):
        return OSError(f"{name} cannot be downloaded to {constants.HF_HUB_CACHE}: {error.strerror}; set HF_HOME.")
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return HubUnreachableError(
        f"{address} cannot be reached: {reason}; check the network, or the path if {name} is one."
    )
