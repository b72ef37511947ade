"""Models of the Hugging Face hub: which files are downloaded, and when they are converted.

Downloads stay in the cache of huggingface_hub (HF_HOME), which other programs share. Code in them is never run.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from mlx_transformer.pretrained.cache import (
    cache_errors,
    commit_of,
    converted_folder,
    device_of,
    is_repository_id,
    lock_folder,
    read_last_used,
    record_use,
    write_last_used,
)
from mlx_transformer.storage.redaction import hide_passwords
from mlx_transformer.weights.conversion_plan import check_convertible
from mlx_transformer.weights.formats.checkpoint import PREFERRED_FILES, SHARD_NAME, WEIGHT_SUFFIXES
from mlx_transformer.weights.formats.other_formats import CTRANSLATE2, OtherFormat, describe_name, describe_names
from mlx_transformer.weights.source_config import read_config

logger = logging.getLogger(__name__)

COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
CONFIG_FILES = (
    *("config.json", "generation_config.json", "config.yaml", "*tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "*vocab*.json", "*vocab*.txt", "merges.txt", "dict*.txt", "*.spm", "*.model"),
    *("bpecodes", "code", "*.codes"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)
MODULE_FILE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)")  # of sentence-transformers
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")
LOGIN_HINT = "log in with `hf auth login` or set HF_TOKEN"


def hide_passwords_in_record(record: logging.LogRecord) -> bool:
    """Remove passwords from a message of huggingface_hub, which logs the URLs that it tries again."""
    record.msg = hide_passwords(str(record.msg))
    return True


logging.getLogger("huggingface_hub.utils._http").addFilter(hide_passwords_in_record)


class HubUnreachableError(OSError):
    """The hub does not respond, or offline mode is on."""


def fetch_model(name: str, revision: str | None, convert: Callable[[Path, Path], None], device: str = "") -> Path:
    """Return the converted model folder of a repository: of its newest commit, or offline of the last one used.

    Offline, an exact conversion takes the place of one for a device.

    Args:
        name: The repository, owner/name.
        revision: Branch, tag or commit; None for the main branch.
        convert: Called with the path of the downloaded weights (the other files are beside it) and the model folder to
            write, atomically.
        device: The device that `convert` converts for; see `CachedModel`.

    Raises:
        OSError: If the repository or revision does not exist, access is denied, the disk is full, or the hub cannot be
            reached and no converted model is in the cache.
        ValueError: If the repository has no weights of a complete model.
    """
    if COMMIT_HASH.fullmatch(revision or "") and (folder := converted_folder(name, str(revision), device)).exists():
        write_last_used(name, revision, folder)
        return folder
    try:
        commit, names = resolve_revision(name, revision)
        return _convert_once(name, revision, commit, device, lambda: download(name, commit, names), convert)
    except HubUnreachableError as error:
        from huggingface_hub import constants

        last = read_last_used(name, revision, device) or read_last_used(name, revision)
        is_current = last is not None and last == converted_folder(name, commit_of(last), device_of(last))
        weights = None if is_current else find_downloaded(name, revision if last is None else commit_of(last))
        if weights is not None:
            commit = weights.parent.name
            last = _convert_once(name, revision, commit, device, lambda: weights, convert, offline=True)
        if last is None:
            raise
        if not constants.HF_HUB_OFFLINE:
            logger.warning("%s Using the last loaded model: %s.", error, last.name)
        return last


def _convert_once(
    name: str,
    revision: str | None,
    commit: str,
    device: str,
    get_weights: Callable[[], Path],
    convert: Callable[[Path, Path], None],
    *,
    offline: bool = False,
) -> Path:
    """Return the model folder of a commit; convert its weights if the cache does not have it."""
    folder = converted_folder(name, commit, device, offline=offline)
    if not folder.exists():
        with lock_folder(folder.parent):
            if not folder.exists():
                weights = get_weights()
                logger.info("Converting %s", name)
                with cache_errors(folder.parent, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    convert(weights, folder)
            record_use(name, revision, folder)
    write_last_used(name, revision, folder)
    return folder


def find_downloaded(name: str, revision: str | None) -> Path | None:
    """Return the weights of a revision in huggingface_hub's cache, which other programs fill too; None without them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        return folder / choose_files(name, [path.name for path in folder.iterdir() if path.exists()])[-1]
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def resolve_revision(name: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit of a revision and the names of its files.

    Raises:
        OSError: See `fetch_model`.
    """
    check_environment()
    from huggingface_hub import HfApi, constants

    with translate_hub_errors(name, revision):
        info = HfApi().model_info(name, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not COMMIT_HASH.fullmatch(info.sha or ""):
            raise ValueError("the answer names no commit")
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def check_environment() -> None:
    """Check what huggingface_hub reads from the environment: the address of the hub, and a folder for downloads.

    Raises:
        ValueError: If HF_ENDPOINT is no URL. It is not shown, because it may hold a password.
        OSError: If there is no home folder, and HF_HOME does not name another one.
    """
    try:
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        is_valid = endpoint.scheme in ("http", "https") and endpoint.hostname and endpoint.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(
            "HF_ENDPOINT must be a URL such as https://huggingface.co; in a password, write / as %2F and @ as %40."
        )
    from huggingface_hub import constants

    if constants.HF_HUB_CACHE.startswith("~"):
        raise OSError("Downloads need a folder, and you have no home folder: set HF_HOME and MLX_TRANSFORMER_CACHE.")


def download(name: str, commit: str, names: list[str]) -> Path:
    """Download the needed files of a commit, and return the path of its weights.

    Raises:
        OSError: See `fetch_model`.
        ValueError: If the repository has no weights of a complete model, or its config.json rules out a conversion.
    """
    from huggingface_hub import hf_hub_download

    logger.info("Downloading %s", name)
    for file in choose_files(name, names):  # one by one, so that Ctrl-C waits for one file only
        with translate_hub_errors(name, commit):
            path = Path(hf_hub_download(name, file, revision=commit))
        if file == "config.json":
            check_convertible(read_config(path))  # before the weights, which are large
    return path


def download_adapter(name: str) -> Path:
    """Download the adapter of a repository, of PEFT or of this package, and return its folder; offline the last one.

    Raises:
        OSError: See `fetch_model`.
        ValueError: If the repository has no adapter.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        _, names = resolve_revision(name, None)
    except HubUnreachableError as error:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError:
            raise error from None
    files = [file for file in ADAPTER_FILES if file in names][:2]
    if ADAPTER_FILES[0] not in files:
        raise ValueError(f"An adapter must have an {ADAPTER_FILES[0]}, the repository {name} has none: choose another.")
    revision = None  # the main branch, and then its commit
    for file in files:
        with translate_hub_errors(name, revision):
            folder = Path(hf_hub_download(name, file, revision=revision)).parent
        revision = folder.name
    return folder


def downloads_folder(name: str) -> Path:
    """Return the folder of a repository in huggingface_hub's cache, which need not exist."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))


def downloads_size(name: str) -> int:
    """Return the bytes on disk of what was downloaded of a repository, also by other programs."""
    paths = downloads_folder(name).rglob("*") if is_repository_id(name) else ()
    return sum(path.stat().st_size for path in paths if not path.is_symlink() and path.is_file())


def remove_downloads(name: str) -> None:
    """Delete what was downloaded of a repository, also by other programs; OSError if that fails."""
    with suppress(FileNotFoundError):
        shutil.rmtree(downloads_folder(name))


def choose_files(name: str, names: list[str]) -> list[str]:
    """Choose the files to download: configuration, tokenizer, and one set of weights, which comes last."""
    other = describe_names(names)
    modules = sorted(filter(MODULE_FILE.fullmatch, names)) if "modules.json" in names else []
    names = sorted(file for file in names if "/" not in file and not file.startswith("."))
    weights = next((file for file in PREFERRED_FILES if file in names), None)
    weights = weights or _single_weights_file(name, names, other)
    stem, suffix = os.path.splitext(weights.removesuffix(".index.json"))
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
    shards = [file for file in names if shard.fullmatch(file)] if weights.endswith(".index.json") else []
    small = [file for file in names if any(fnmatch(file, pattern) for pattern in CONFIG_FILES)]
    return [*small, *modules, *shards, weights]


def _single_weights_file(name: str, names: list[str], other: tuple[str, OtherFormat] | None) -> str:
    """Return the only weights file with an unusual name; .fp16. files count only if there are no others."""
    files = [file for file in names if file.endswith(WEIGHT_SUFFIXES) and describe_name(file) is None]
    files = [file for file in files if ".fp16." not in file] or files
    files = [file for file in files if file.endswith(".safetensors")] or files
    if shards := [file for file in files if SHARD_NAME.fullmatch(file)]:
        raise ValueError(f"Shards need their index, but {name} has {shards[0]} without one: choose another.")
    is_ctranslate2 = files == ["model.bin"] and other is not None and other[1] is CTRANSLATE2
    if len(files) == 1 and not is_ctranslate2:
        return files[0]
    if len(files) > 1:
        raise ValueError(
            f"A repository must hold one checkpoint, but {name} has {', '.join(files[:4])}: download one of them and "
            "give its path."
        )
    if other is not None:
        file, format = other
        raise ValueError(
            f"A repository must hold weights that torch can read, but {file} of {name} belongs to "
            f"{format.description}: {format.remedy}."
        )
    raise ValueError(
        f"A repository must hold weights that torch can read ({', '.join(WEIGHT_SUFFIXES)}), {name} has none: "
        "choose another."
    )


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
    address = hide_passwords(f"{constants.ENDPOINT}/{name}")
    reason = hide_passwords(" ".join(str(error).split())) or type(error).__name__
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
        return HubUnreachableError(
            f"{address} cannot be reached: HF_HUB_OFFLINE is set, and the model is not on this machine yet; unset "
            f"HF_HUB_OFFLINE once to download it, or check the path if {name} is one."
        )
    return HubUnreachableError(
        f"{address} cannot be reached: {reason}; check the network, or the path if {name} is one."
    )
