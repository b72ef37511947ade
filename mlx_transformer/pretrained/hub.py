"""Models of the Hugging Face hub: which files are downloaded, and where what is made of them is kept for later loads.

huggingface_hub keeps the downloads in the cache that all its users share (HF_HOME); nothing in them is ever run.
"""

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from mlx_transformer import __version__

logger = logging.getLogger(__name__)

REPOSITORY_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
CONFIG_FILES = (
    *("config.json", "generation_config.json", "config.yaml", "*tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "*vocab*.json", "*vocab*.txt", "merges.txt", "dict*.txt", "*.spm", "*.model"),
    *("bpecodes", "code", "*.codes"),
)
PREFERRED_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
NON_MODEL_PREFIXES = (
    "adapter_",
    "training_args.",
    "optimizer.",
    "scheduler.",
    "scaler.",
    "rng_state",
)  # no weights of a model
LOGIN_HINT = "log in with `hf auth login` or set HF_TOKEN"


class HubUnreachableError(OSError):
    """The hub gives no answer, or is not to be asked."""


def is_repository_id(text: str) -> bool:
    """Whether a text can be owner/name of a repository."""
    return REPOSITORY_ID.fullmatch(text) is not None


def fetch_model(name: str, revision: str | None, make: Callable[[Path, Path], None]) -> Path:
    """The model folder made of a repository: of its newest commit if the hub can be asked, else the last one made.

    Args:
        name: owner/name.
        revision: A branch, tag or commit; the main branch if None.
        make: Called with the downloaded weights, in the folder of the other files, and the folder to make, which must
            appear whole or not at all.

    Raises:
        OSError: If there is no such repository or revision, access is refused, the hub cannot be reached and nothing
            was made before, or the disk is full.
        ValueError: If it holds no weights of a whole model.
    """
    home = cache_folder() / name.replace("/", "--")
    record = home / f"ref-{quote(revision or 'main', safe='')}"
    if COMMIT_HASH.fullmatch(revision or "") and (pinned := home / f"{revision}-{__version__}").exists():
        return pinned
    try:
        commit, names = resolve_revision(name, revision)
        folder = home / f"{commit}-{__version__}"  # another version may convert otherwise
        if read_last_used(record) != folder:
            with lock_folder(home):
                if not folder.exists():
                    make(download(name, commit, names), folder)
                write_last_used(record, folder)
        return folder
    except HubUnreachableError as error:
        from huggingface_hub import constants

        last = read_last_used(record)
        if last is None:
            raise
        if not constants.HF_HUB_OFFLINE:
            logger.warning("%s What was loaded last is used: %s.", error, last.name)
        return last


def cache_folder() -> Path:
    """Where made model folders are kept; to free the space, delete it, or a model's folder in it."""
    if own := os.environ.get("MLX_TRANSFORMER_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mlx_transformer"


def resolve_revision(name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a revision, and the names of its files.

    Raises:
        OSError: See `fetch`.
    """
    from huggingface_hub import HfApi, constants

    with translate_hub_errors(name, revision):
        info = HfApi().model_info(name, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not COMMIT_HASH.fullmatch(info.sha or ""):
            raise ValueError("the answer names no commit")
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def download(name: str, commit: str, names: list[str]) -> Path:
    """Download what is needed of a commit with these files, and give the path of its weights.

    Raises:
        OSError: See `fetch`.
        ValueError: If there are no weights of a whole model.
    """
    from huggingface_hub import hf_hub_download

    files = choose_files(name, names)
    with translate_hub_errors(name, commit):
        # One by one, so that Ctrl-C need not wait for the others.
        return [Path(hf_hub_download(name, file, revision=commit)) for file in files][-1]


def choose_files(name: str, names: list[str]) -> list[str]:
    """Which files of a repository to download: settings, those of the tokenizer, and one set of weights, named last."""
    names = sorted(file for file in names if "/" not in file)
    weights = next((file for file in PREFERRED_WEIGHTS if file in names), None) or _single_weights_file(name, names)
    stem, suffix = os.path.splitext(weights.removesuffix(".index.json"))
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}")
    shards = [file for file in names if shard.fullmatch(file)] if weights.endswith(".index.json") else []
    small = [file for file in names if any(fnmatch(file, pattern) for pattern in CONFIG_FILES)]
    return [*small, *shards, weights]


def _single_weights_file(name: str, names: list[str]) -> str:
    """The one file of weights that has another name; half the precision only where there is nothing else."""
    found = [file for file in names if file.endswith(WEIGHT_SUFFIXES) and not file.startswith(NON_MODEL_PREFIXES)]
    found = [file for file in found if ".fp16." not in file] or found
    found = [file for file in found if file.endswith(".safetensors")] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"A repository must hold one checkpoint, {name} has {', '.join(found[:4])}: download the one that you want "
            "and give its path."
        )
    if any(file.startswith("adapter_") for file in names):
        raise ValueError(f"An adapter is no whole model, and {name} is one: merge it into its model and save that.")
    raise ValueError(
        f"A repository must hold weights that torch can read ({', '.join(WEIGHT_SUFFIXES)}), {name} has none: "
        "choose another."
    )


def read_last_used(record: Path) -> Path | None:
    """The folder that was last loaded for a revision, if it is still there."""
    folder = record.parent / record.read_text() if record.exists() else None
    return folder if folder and (folder / "config.json").exists() else None


def write_last_used(record: Path, folder: Path) -> None:
    """Remember the folder of a revision, for when the hub cannot be asked."""
    new = record.with_name(f".{record.name}")
    new.write_text(folder.name)
    new.replace(record)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder; when it ends in whatever way, the next goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if not error.strerror:
            raise
        raise OSError(
            f"Models are kept in {folder}, which fails: {error.strerror}; make room, or set MLX_TRANSFORMER_CACHE."
        ) from error


@contextmanager
def translate_hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line: what must hold, what was found, what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:  # of Python, its Rust and its HTTP library
        raise describe_hub_error(error, name, revision) from error


def describe_hub_error(error: BaseException, name: str, revision: str | None) -> OSError:
    """The line for an error of huggingface_hub."""
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
            f"A revision must be a branch, tag or commit of {address}: {revision or 'main'} is none; check the name."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"A model must be a path or owner/name on the hub: there is neither a path {name} nor, for you, a model "
            f"{address}; check the name, or if it is private {LOGIN_HINT}."
        )
    if 400 <= status < 500 and status not in (408, 429):
        return PermissionError(f"The hub refuses {address}: {reason}; check your token, {LOGIN_HINT}.")
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError | TimeoutError):
        return OSError(f"{name} cannot be downloaded to {constants.HF_HUB_CACHE}: {error.strerror}; set HF_HOME.")
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return HubUnreachableError(
        f"{address} cannot be reached: {reason}; check the network, or the path if {name} is one."
    )
