"""The folder of a training run: its checkpoints, each whole or not taken, its options and its log.

RUN/best/ RUN/last/     model folders; last/ also holds the state of training
RUN/earlier/step-N/     checkpoints before last/, should it be damaged, or for a mean of several
RUN/options.toml        all options; RUN/log.jsonl, a JSON object a line
"""

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mlx_transformer import checkpoint
from mlx_transformer.fields import from_dict, to_dict
from mlx_transformer.recipe import TrainingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, for Python 3.10

logger = logging.getLogger(__name__)
CHECKSUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
CHUNK = 2**20


class Run:
    """The folder of a run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last", self.folder / "best"
        self.earlier, self.options = self.folder / "earlier", self.folder / "options.toml"
        self.log = self.folder / "log.jsonl"

    def recover(self) -> None:
        """Put right what a former process was cut off in."""
        checkpoint.recover(self.best)

    @contextmanager
    def claimed(self, rank: int) -> Iterator[None]:
        """Let no other process train in this folder meanwhile, but those that train together with this one.

        Raises:
            BlockingIOError: If another one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.claimed(self.folder) if rank == 0 else nullcontext(True) as mine:
            if not mine:
                raise BlockingIOError(f"{self.folder} is being trained by another process: end that one first.")
            yield

    def checkpoints(self) -> list[Path]:
        """Checkpoints, whole or not, the newest first."""
        earlier = sorted(self.earlier.glob("step-*"), key=step_of, reverse=True)
        return [*([self.last] if self.last.exists() else []), *earlier]

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; those after it are set aside, and it is said why."""
        for path in self.checkpoints():
            if (damage := find_damage(path)) is None:
                return path
            aside = self.folder / f"damaged-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("%s is damaged: %s. It is %s now, the checkpoint before it is used.", path, damage, aside)
        return None

    def save(self, write: Callable[[Path], None], keep: int, every: int) -> None:
        """Write last/; what was there is kept as an earlier one, if it is of a validation and among the newest.

        Args:
            write: Writes a checkpoint into a folder.
            keep: How many checkpoints are kept, this one counted.
            every: Steps between validations.
        """
        retired = None
        if self.last.exists():
            retired = self.earlier / f"step-{step_of(self.last)}"
            shutil.rmtree(retired, ignore_errors=True)
            self.earlier.mkdir(exist_ok=True)
        with checkpoint.replacing(self.last, retired) as new:
            write(new)
            write_checksums(new)
        _, *earlier = self.checkpoints()
        for path in set(earlier) - set(validated(earlier, every)[: keep - 1]):
            shutil.rmtree(path, ignore_errors=True)

    def begin(self, config: TrainingConfig, step: int, conditions: dict[str, str]) -> None:
        """Write all options as TOML, by which a run can be repeated, and cut off the log what will be done again."""
        remarks = [f"# {name}: {value}" for name, value in conditions.items()]
        options = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}"
            for name, value in to_dict(config).items()
            if value is not None and name != "resume"
        ]
        replace_text(self.options, "\n".join([*remarks, *options]) + "\n")
        kept = [entry for entry in self.entries() if entry["step"] <= step] if step else []
        replace_text(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))

    def entries(self) -> list[dict[str, Any]]:
        """What the log says; a line that was cut off is left out."""
        if not self.log.exists():
            return []
        found = []
        # Texts may hold other line ends than the log's, and the last line may be cut off within a letter.
        for line in self.log.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def step_of(checkpoint_folder: Path) -> int:
    """The step of a checkpoint: earlier ones have it in their names."""
    named = re.fullmatch(r"step-(\d+)", checkpoint_folder.name)
    return int(named[1]) if named else checkpoint.read_json(checkpoint_folder / "training.json")["step"]


def validated(checkpoints: list[Path], every: int) -> list[Path]:
    """Those of checkpoints that were written after a validation, not because a run was stopped."""
    return [path for path in checkpoints if step_of(path) % every == 0]


def read_options(path: str | Path) -> dict[str, Any]:
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


def options_of(folder: str | Path) -> TrainingConfig:
    """The options of a run that was started.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If its options.toml is damaged.
    """
    path = Run(folder).options
    if not path.exists():
        raise FileNotFoundError(f"There is no run to resume in {folder}: start one, without resume.")
    return from_dict(TrainingConfig, read_options(path), str(path))


def replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    checkpoint.sync(new)
    new.replace(path)


def write_checksums(folder: Path) -> None:
    """Write the checksum of every file of a folder."""
    sums = [f"{checksum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / CHECKSUMS).write_text("".join(sums), encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Why a checkpoint is not what was written; None if it is."""
    path = folder / CHECKSUMS
    if not path.exists():
        return f"it has no {CHECKSUMS}"
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        listed = {name: digest for digest, name in lines}
    except ValueError:
        return f"{CHECKSUMS} cannot be read"
    for name in ("model.safetensors", "training.safetensors", "training.json", *listed):
        if name not in listed or not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != listed[name]:
            return f"{name} has another checksum than {CHECKSUMS} says"
    return None


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
