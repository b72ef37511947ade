"""Reads the model configuration that accompanies a checkpoint's tensors."""

import logging
from pathlib import Path
from typing import Any

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.formats.pickled_objects import to_plain

logger = logging.getLogger(__name__)

MAX_YAML = 2**20  # bytes of a config.yaml, a hundred times what one needs

MAX_OPTIONS = 10_000

MAX_NAME = 1000

# Where training programs keep the options of the model, in the order of trust.
OPTION_KEYS = (("args",), ("cfg", "model"), ("opt",), ("hyper_parameters",), ("config",))


def read_config(path: Path) -> dict[str, Any]:
    """The config.json beside a checkpoint or in its folder; nothing if there is none, or it is no model's.

    The end token is that of the generation settings, as in transformers.
    """
    found = read_sibling_json(path, "config.json") or {}
    if "model_type" not in found:
        return {}
    end = (read_sibling_json(path, "generation_config.json") or {}).get("eos_token_id")
    return found if end is None else found | {"eos_token_id": end}


def read_yaml(path: Path, section: str = "model") -> dict[str, Any]:
    """The options of a section of the config.yaml beside a checkpoint or in its folder."""
    file = (path if path.is_dir() else path.parent) / "config.yaml"
    if not file.exists():
        return {}
    import yaml

    class Loader(yaml.SafeLoader):
        """Without merge keys, with which a small file fills the memory."""

        def flatten_mapping(self, node: Any) -> None:
            """Leave a mapping as it is."""

    if file.stat().st_size > MAX_YAML:
        raise ValueError(f"A config.yaml has at most {MAX_YAML} bytes: {file} has more; is it another file?")
    try:
        data = yaml.load(file.read_bytes(), Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        # All of these come of values with tags that they do not fit.
        raise ValueError(f"{file} must be YAML: {' '.join(str(error).split())}.") from None
    found = data.get(section) if isinstance(data, dict) else None
    return flatten_options(found) if isinstance(found, dict) else {}


def read_joeynmt_options(path: Path) -> dict[str, Any]:
    """The options of the model in the config.yaml beside a checkpoint, and as "testing_..." those of its search."""
    model, testing = (read_yaml(path, section) for section in ("model", "testing"))
    return model and model | {f"testing_{key}": value for key, value in testing.items()}


def read_sibling_json(path: Path, name: str) -> dict[str, Any] | None:
    """A JSON file in the folder of a checkpoint."""
    file = (path if path.is_dir() else path.parent) / name
    return read_json(read_bytes(file), str(file)) if file.exists() else None


def training_options(extras: dict[str, Any]) -> dict[str, Any]:
    """The options of the training program that a checkpoint file itself holds; nothing if there are none."""
    for keys in OPTION_KEYS:
        found: Any = extras
        for key in keys:
            found = to_plain(found.get(key)) if isinstance(found, dict) else None
        if isinstance(found, dict) and found:
            return flatten_options(found) | {"vocab": to_plain(extras.get("vocab"))}
    return {}


def flatten_options(options: dict[Any, Any]) -> dict[str, Any]:
    """Options of sections as "section_option".

    Raises:
        ValueError: If there are too many: a section may hold one that stands elsewhere too, or itself.
    """
    flat: dict[str, Any] = {}
    sections, count = [("", options)], 0
    while sections:
        prefix, section = sections.pop()
        count += len(section)
        for key, value in section.items():
            name = f"{prefix}{key}"
            if count > MAX_OPTIONS or len(name) > MAX_NAME:
                raise ValueError(
                    f"A checkpoint's settings must be at most {MAX_OPTIONS} options with names of at most {MAX_NAME} "
                    "letters, those of sections within sections counted: these are more, check where they are from."
                )
            if isinstance(value, dict):
                sections.append((f"{name}_", value))
            else:
                flat[name] = value
    return flat
