"""Run folders: options.toml, pairs that were in memory, checkpoints with checksums, and the log."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.checkpoints.adapter_folder import read_adapter, save_adapter
from mlx_transformer.checkpoints.replacement import (
    ADAPTER_FILE,
    check_destination,
    delete_model_folder,
    is_adapter_folder,
)
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.config.training import TrainingConfig, split_corpora
from mlx_transformer.data.parallel_corpus import SentencePair, absolute_spec
from mlx_transformer.messages import shorten
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import atomic
from mlx_transformer.storage.atomic import atomic_write_text
from mlx_transformer.storage.checksums import find_damage, write_checksums
from mlx_transformer.storage.files import parse_json
from mlx_transformer.storage.text_files import read_lines
from mlx_transformer.tokenization.tokenizer import Tokenizer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # its backport to Python 3.10

MAX_OPTIONS_FILE, MAX_DOTS = 2**18, 1000
logger = logging.getLogger(__name__)

STEP_NAME = re.compile(r"step-(\d+)", re.ASCII)  # of an earlier checkpoint
OPTIONS_START = b"# command: "  # of an options.toml that `prepare` wrote
CORPUS_OPTIONS = ("train", "valid")
STATE_FILES = ("training.safetensors", "training.json")


class RunDirectory:
    """The folder of a training run.

    Attributes:
        folder: The run folder.
        best: The best model: a model folder, or that of its adapter.
        last: The latest checkpoint.
        earlier: The folder of earlier checkpoints.
        options_file: The options of the run, as TOML.
        log_file: The log, as JSON lines.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last", self.folder / "best"
        self.earlier, self.options_file = self.folder / "earlier", self.folder / "options.toml"
        self.log_file = self.folder / "log.jsonl"

    def pairs_file(self, name: str) -> Path:
        """Return the file that holds the pairs of an option, `train` or `valid`, that were given in memory."""
        return self.folder / f"{name}-pairs.tsv"

    def recover(self) -> None:
        """Restore best/ and last/ if a process was killed while replacing them, and rename what is in the way."""
        atomic.finish_interrupted_replacement(self.best, delete_model_folder)
        atomic.finish_interrupted_replacement(self.last, self._retire)
        if self.earlier.exists() and not self.earlier.is_dir():
            logger.warning("%s must be a folder. Renamed to %s.", self.earlier, self._set_aside(self.earlier, "kept"))

    @contextmanager
    def lock(self, is_main_process: bool) -> Iterator[None]:
        """Create the folder and lock it against other training runs.

        Args:
            is_main_process: Whether this process takes the lock; the other processes of a distributed run do not.

        Raises:
            BlockingIOError: If another run holds the lock.
            FileExistsError: If there is a file of this name.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"A run must be a folder, but {self.folder} is a file: choose another output.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic.try_lock(self.folder) if is_main_process else nullcontext(True) as locked:
            if not locked:
                raise BlockingIOError(f"{self.folder} is in use by another training process: stop that one first.")
            try:
                yield
            finally:
                with suppress(OSError):
                    self.folder.rmdir()  # only succeeds if empty, after an error before training

    def check_new(self, pairs: Iterable[str]) -> None:
        """Raise FileExistsError if a new run would overwrite another run, or files that are not of a run.

        Args:
            pairs: Names of the options whose pairs the folder will hold.
        """
        if self.checkpoints():
            raise FileExistsError(f"{self.folder} already holds a run: set resume, or choose another output.")
        is_run = self.options_file.is_file() and self.options_file.read_bytes().startswith(OPTIONS_START)
        for path in (self.options_file, self.log_file, self.best, *map(self.pairs_file, pairs)):
            if path.exists() and not is_run:
                raise FileExistsError(f"{path} exists and is not of a run, it would be lost: choose another output.")

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints, intact or damaged, newest first."""
        earlier = [path for path in self.earlier.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
        earlier.sort(key=checkpoint_step, reverse=True)
        return [*([self.last] if self.last.exists() else []), *earlier]

    def latest_checkpoint(self, set_aside_damaged: bool = True) -> Path | None:
        """Return the newest intact checkpoint, None if the run has no checkpoint.

        Args:
            set_aside_damaged: Rename damaged checkpoints that are newer, with a warning.

        Raises:
            ValueError: If all checkpoints are damaged.
        """
        damaged: dict[Path, str] = {}
        for path in self.checkpoints():
            weights = ADAPTER_FILE if is_adapter_folder(path) else "model.safetensors"
            if (damage := find_damage(path, (weights, *STATE_FILES))) is None:
                break
            damaged[path] = damage
        else:
            if damaged:
                details = "; ".join(f"{path}: {damage}" for path, damage in damaged.items())
                raise ValueError(
                    f"No checkpoint is intact: {details}. Restore one, or start another run from the best model with "
                    f"init {self.best}."
                )
            return None
        for checkpoint, damage in damaged.items() if set_aside_damaged else ():
            aside = self._set_aside(checkpoint)
            logger.warning("%s is damaged: %s. Renamed to %s; using an earlier checkpoint.", checkpoint, damage, aside)
        return path

    def save_checkpoint(self, write: Callable[[Path], None], keep: int, valid_every: int) -> None:
        """Write last/, and keep the previous one in earlier/ if it belongs to a validation and is recent enough.

        Args:
            write: Function that writes a checkpoint into a folder.
            keep: Number of checkpoints to keep, including this one.
            valid_every: Steps between validations.
        """
        with atomic.atomic_replace(self.last, self._retire) as new:
            write(new)
            write_checksums(new)
        _, *earlier = self.checkpoints()
        for path in set(earlier) - set(validation_checkpoints(earlier, valid_every)[: keep - 1]):
            if not path.is_symlink():
                delete_model_folder(path)

    def _retire(self, checkpoint: Path) -> None:
        """Move a checkpoint that was replaced to earlier/."""
        self.earlier.mkdir(exist_ok=True)
        retired = self.earlier / f"step-{checkpoint_step(checkpoint)}"
        if retired.exists():
            self._set_aside(retired, "kept")
        checkpoint.rename(retired)
        atomic.fsync(self.earlier)

    def save_best(self, model: Transformer, tokenizer: Tokenizer) -> None:
        """Write best/: a model folder, or the adapter of the model.

        A folder that cannot be replaced without the loss of other files is renamed, with a warning.
        """
        try:
            check_destination(self.best, kind="model" if model.adapter is None else "adapter")
        except FileExistsError as error:
            logger.warning("%s Renamed to %s.", error, self._set_aside(self.best, "kept"))
        if model.adapter is None:
            model_folder.save(self.best, model, tokenizer)
        else:
            save_adapter(self.best, model)

    def check_best(self) -> bool:
        """Return whether best/ holds a model or an adapter; if it is damaged, rename it with a warning."""
        if not self.best.exists():
            return False
        try:
            if is_adapter_folder(self.best):
                read_adapter(self.best)
            else:
                model_folder.read_model(self.best, model_folder.read_config(self.best))
        except (OSError, ValueError) as error:
            aside = self._set_aside(self.best)
            logger.warning("%s is damaged: %s Renamed to %s; the next validation writes it.", self.best, error, aside)
            return False
        return True

    def _set_aside(self, path: Path, prefix: str = "damaged") -> Path:
        """Rename a file or folder of the run, and return its new name; the model set aside before is deleted."""
        names = (f"{prefix}-{path.name}{suffix}" for suffix in chain([""], map("-{}".format, count(2))))
        for aside in map(self.folder.joinpath, names):
            if aside.is_dir() and not aside.is_symlink():
                delete_model_folder(aside)
            if not aside.exists():
                break
        path.rename(aside)
        return aside

    def prepare(
        self,
        config: TrainingConfig,
        step: int,
        environment: Mapping[str, str],
        pairs: Mapping[str, Iterable[SentencePair]],
    ) -> None:
        """Write the files that a run needs to resume, and remove log entries after `step`.

        Args:
            config: Options of the run, for options.toml.
            step: The step that training continues from.
            environment: What options.toml has as comments.
            pairs: The pairs of `train` or `valid` that were given in memory, without tabs and line ends.
        """
        for name in set(CORPUS_OPTIONS) - pairs.keys():
            if str(self.pairs_file(name).absolute()) not in vars(config)[name]:  # left by another run
                self.pairs_file(name).unlink(missing_ok=True)
        for name, corpus in pairs.items():
            lines = (f"{pair.source}\t{pair.target}\n" for pair in corpus)
            atomic_write_text(self.pairs_file(name), "".join(lines))
        comments = [f"# {name}: {quote_toml(value)[1:-1]}" for name, value in environment.items()]
        options = [
            f"{name} = {quote_toml(value)}"
            for name, value in to_dict(config).items()
            if value is not None and name != "resume"
        ]
        atomic_write_text(self.options_file, "\n".join([*comments, *options]) + "\n")
        entries = [entry for entry in self.log_entries() if entry["step"] <= step] if step else []
        atomic_write_text(self.log_file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))

    def log_entries(self) -> list[dict[str, Any]]:
        """Return the entries of the log, without lines that were cut off."""
        if not self.log_file.exists():
            return []
        entries = []
        # Split only at line feeds, because texts may hold other line separators. Replace invalid UTF-8, because the
        # last line may be cut off within a character.
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):
                entry = parse_json(line)
                if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                    entries.append(entry)
        return entries


def quote_toml(value: Any) -> str:
    """Return a value in a notation that is valid as both JSON and TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint, from its name or from its training.json."""
    match = STEP_NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else model_folder.read_json(checkpoint / "training.json")["step"]


def validation_checkpoints(checkpoints: list[Path], valid_every: int) -> list[Path]:
    """Return the checkpoints written after a validation, not because a run was stopped."""
    return [path for path in checkpoints if checkpoint_step(path) % valid_every == 0]


def read_options_file(path: str | Path) -> dict[str, Any]:
    """Read options from a TOML file, such as a run's options.toml.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not valid TOML.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"The options file {path} does not exist: check the path.")
    lines = list(read_lines(str(path))) if path.stat().st_size <= MAX_OPTIONS_FILE else None
    # The parser takes quadratic time for the parts of a dotted name.
    if lines is None or any(line.count(b".") > MAX_DOTS for line in lines):
        raise ValueError(f"{path} must have at most {MAX_OPTIONS_FILE} bytes and {MAX_DOTS} dots in a line: check it.")
    try:
        return tomllib.loads(b"\n".join(lines).decode())
    except (ValueError, RecursionError) as error:
        reason = shorten(str(error), 120)
        raise ValueError(f"{path} must be TOML, with a line `name = value` per option: {reason}.") from None


def load_run_options(folder: str | Path) -> TrainingConfig:
    """Read the options of a run.

    Raises:
        FileNotFoundError: If the folder does not hold a run.
        ValueError: If its options.toml is damaged.
    """
    run = RunDirectory(folder)
    if not run.options_file.exists():
        raise FileNotFoundError(f"There is no run to resume in {folder}: start one without resume.")
    options = read_options_file(run.options_file)
    for name in CORPUS_OPTIONS:
        file = run.pairs_file(name)
        specs = options.get(name)
        if isinstance(specs, list) and [Path(str(spec)).name for spec in specs] == [file.name] and file.exists():
            options[name] = [str(file)]  # the run folder may have been moved
    return from_dict(TrainingConfig, options, str(run.options_file))


def with_absolute_paths(config: TrainingConfig) -> TrainingConfig:
    """Return the options of a run with absolute paths of its inputs, so that it resumes in any working directory.

    Pairs in memory are replaced by the file of the run folder that will hold them.
    """
    init, run = config.init, RunDirectory(config.output)
    if init is not None and Path(init).exists():  # otherwise a name
        init = os.path.abspath(init)
    corpora: dict[str, Any] = {}
    for name in CORPUS_OPTIONS:
        specs, pairs = split_corpora(name, vars(config)[name])
        corpora[name] = tuple(map(absolute_spec, specs)) or os.path.abspath(run.pairs_file(name))
    return replace(config, init=init, **corpora)
