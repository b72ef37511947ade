"""A run's folder on disk: options, checkpoints with checksums, and the log."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.storage import atomic
from mlx_transformer.storage.atomic import atomic_write_text
from mlx_transformer.storage.files import sha256_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, for Python 3.10

logger = logging.getLogger(__name__)

CHECKSUM_FILE = "SHA256SUMS"  # as `sha256sum --check` reads it


class RunDirectory:
    """The folder of a run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last", self.folder / "best"
        self.earlier, self.options = self.folder / "earlier", self.folder / "options.toml"
        self.log = self.folder / "log.jsonl"

    def recover(self) -> None:
        """Put right what a former process was cut off in."""
        atomic.restore_interrupted_replacement(self.best)

    @contextmanager
    def claimed(self, first: bool) -> Iterator[None]:
        """Let no other process train in this folder meanwhile, but those of which this is the first, or not.

        Raises:
            BlockingIOError: If another one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic.try_lock(self.folder) if first else nullcontext(True) as mine:
            if not mine:
                raise BlockingIOError(f"{self.folder} is being trained by another process: end that one first.")
            try:
                yield
            finally:
                with suppress(OSError):
                    self.folder.rmdir()  # it is empty if the run was refused

    def checkpoints(self) -> list[Path]:
        """Checkpoints, whole or not, the newest first."""
        earlier = sorted(self.earlier.glob("step-[0-9]*"), key=checkpoint_step, reverse=True)
        return [*([self.last] if self.last.exists() else []), *earlier]

    def newest(self, set_aside: bool = True) -> Path | None:
        """The newest checkpoint that is whole, None if there is none at all; those after it are set aside, and told.

        Raises:
            ValueError: If there are some, but none is whole.
        """
        damaged: dict[Path, str] = {}
        for path in self.checkpoints():
            if (damage := find_damaged_files(path)) is None:
                break
            damaged[path] = damage
        else:
            if damaged:
                found = "; ".join(f"{path}: {damage}" for path, damage in damaged.items())
                raise ValueError(
                    f"No checkpoint is whole, so nothing can go on: {found}. Copy one back, or start another run with "
                    f"init {self.best} to keep what was learned."
                )
            return None
        for each, damage in damaged.items() if set_aside else ():
            aside = self.folder / f"damaged-{each.name}"
            shutil.rmtree(aside, ignore_errors=True)
            each.rename(aside)
            logger.warning("%s is damaged: %s. It is %s now, the checkpoint before it is used.", each, damage, aside)
        return path

    def save(self, write: Callable[[Path], None], keep: int, every: int) -> None:
        """Write last/; what was there is kept as an earlier one, if it is of a validation and among the newest.

        Args:
            write: Writes a checkpoint into a folder.
            keep: How many checkpoints are kept, this one counted.
            every: Steps between validations.
        """
        retired = None
        if self.last.exists():
            retired = self.earlier / f"step-{checkpoint_step(self.last)}"
            shutil.rmtree(retired, ignore_errors=True)
            self.earlier.mkdir(exist_ok=True)
        with model_folder.replace_model_folder(self.last, retired) as new:
            write(new)
            write_checksums(new)
        _, *earlier = self.checkpoints()
        for path in set(earlier) - set(validation_checkpoints(earlier, every)[: keep - 1]):
            shutil.rmtree(path, ignore_errors=True)

    def begin(self, config: TrainingConfig, step: int, conditions: dict[str, str]) -> None:
        """Write all options as TOML, by which a run can be repeated, and cut off the log what will be done again."""
        remarks = [f"# {name}: {quote_toml(value)[1:-1]}" for name, value in conditions.items()]
        options = [
            f"{name} = {quote_toml(value)}"
            for name, value in to_dict(config).items()
            if value is not None and name != "resume"
        ]
        atomic_write_text(self.options, "\n".join([*remarks, *options]) + "\n")
        kept = [entry for entry in self.entries() if entry["step"] <= step] if step else []
        atomic_write_text(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))

    def entries(self) -> list[dict[str, Any]]:
        """What the log says; a line that was cut off is left out."""
        if not self.log.exists():
            return []
        found = []
        # Texts may hold other line ends than the log's, and the last line may be cut off within a letter.
        for line in self.log.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and "step" in entry:
                    found.append(entry)
        return found


def quote_toml(value: Any) -> str:
    """A value as both JSON and TOML have it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def checkpoint_step(checkpoint_folder: Path) -> int:
    """The step of a checkpoint: earlier ones have it in their names."""
    named = re.fullmatch(r"step-(\d+)", checkpoint_folder.name)
    return int(named[1]) if named else model_folder.read_json(checkpoint_folder / "training.json")["step"]


def validation_checkpoints(checkpoints: list[Path], every: int) -> list[Path]:
    """Those of checkpoints that were written after a validation, not because a run was stopped."""
    return [path for path in checkpoints if checkpoint_step(path) % every == 0]


def read_options_file(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file, such as a run's own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no TOML.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file of options {path}: check the path.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML, a line `name = value` for each option: {error}.") from None


def load_run_options(folder: str | Path) -> TrainingConfig:
    """The options of a run that was started.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If its options.toml is damaged.
    """
    path = RunDirectory(folder).options
    if not path.exists():
        raise FileNotFoundError(f"There is no run to resume in {folder}: start one, without resume.")
    return from_dict(TrainingConfig, read_options_file(path), str(path))


def write_checksums(folder: Path) -> None:
    """Write the checksum of every file of a folder."""
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / CHECKSUM_FILE).write_text("".join(sums), encoding="utf-8")


def find_damaged_files(folder: Path) -> str | None:
    """Why a checkpoint is not what was written; None if it is."""
    path = folder / CHECKSUM_FILE
    if not path.exists():
        return f"it has no {CHECKSUM_FILE}"
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        listed = {name: digest for digest, name in lines}
    except ValueError:
        return f"{CHECKSUM_FILE} cannot be read"
    for name in ("model.safetensors", "training.safetensors", "training.json", *listed):
        if name not in listed or not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != listed[name]:
            return f"{name} has another checksum than {CHECKSUM_FILE} says"
    return None
