"""Reads the model configuration that accompanies a checkpoint's tensors."""

import logging
from pathlib import Path
from typing import Any

from mlx_transformer.messages import shorten
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.formats.marian_binary import OPTIONS as MARIAN_OPTIONS
from mlx_transformer.weights.formats.pickled_objects import to_plain
from mlx_transformer.weights.formats.state_dicts import MODULE_SETTINGS

logger = logging.getLogger(__name__)

MAX_YAML = 2**17  # bytes of a config.yaml, twenty times the usual size; a megabyte would take seconds
MAX_DIGITS = 100  # of a number in it
MAX_OPTIONS = 10_000
OPTION_FILES = ("config.yaml", "config.json", "args.json", "hparams.json", "hparams.yaml")
# Of OPUS-MT, of Firefox, and of Marian itself beside each of its files.
MARIAN_SEARCH_FILES = ("decoder.yml", "config.intgemm8bitalpha.yml", "*.npz.decoder.yml")
MAX_NAME = 1000

# Where training programs store the model's options, the most reliable first.
OPTION_KEYS = (
    *(("args",), ("cfg", "model"), ("opt",), ("hyper_parameters",), ("hparams",), ("hyperparams",), ("model_args",)),
    *(("model_config",), ("config",), ("cfg",), ("settings",), ("options",), ("params",), (MODULE_SETTINGS,)),
)


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json next to a checkpoint or in its folder; empty if there is none, or none with a model_type.

    As in transformers, eos_token_id of generation_config.json takes precedence.
    """
    config = read_sibling_json(path, "config.json") or {}
    if "model_type" not in config:
        return {}
    eos_id = (read_sibling_json(path, "generation_config.json") or {}).get("eos_token_id")
    return config if eos_id is None else config | {"eos_token_id": eos_id}


def read_yaml(path: Path, section: str | None = "model", name: str = "config.yaml") -> dict[str, Any]:
    """Read a section of the config.yaml next to a checkpoint or in its folder, flattened; empty if there is none.

    Args:
        path: The checkpoint.
        section: The section, None for the whole file.
        name: The name of the file.
    """
    file = (path if path.is_dir() else path.parent) / name
    if not file.exists():
        return {}
    if file.stat().st_size > MAX_YAML:
        raise ValueError(f"A {name} must have at most {MAX_YAML} bytes: {file} has more; check the file.")
    return parse_options(file.read_bytes(), str(file), section)


def parse_options(content: bytes, name: str, section: str | None = None) -> dict[str, Any]:
    """Return the options in a YAML file, or in a section of it, flattened; errors call it `name`."""
    try:
        data = _parse_yaml(content)
    except (ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # Values that do not fit their YAML tag raise all of these.
        raise ValueError(f"{name} must be YAML: {shorten(str(error), 120)}.") from None
    options = data.get(section) if isinstance(data, dict) and section is not None else data
    return flatten_options(options) if isinstance(options, dict) else {}


def _parse_yaml(content: bytes) -> Any:
    """Parse YAML whose keys are read as text, without merge keys, in time that is linear in its size."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader without what can make a small file slow or large: merge keys, keys that collide, long numbers."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            """Return a dict; its keys are strings, which nobody can make collide."""
            keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else [node]
            if any(not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge") for key in keys):
                raise ValueError("the keys of a section must be plain, and no merge keys")
            return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

        def construct_yaml_number(self, node: Any) -> int | float:
            """Return a number; those with base 60 take quadratic time."""
            if len(text := self.construct_scalar(node)) > MAX_DIGITS:
                raise ValueError(f"a number must have at most {MAX_DIGITS} characters, not {len(text)}")
            is_int = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_yaml_number)
    try:
        return yaml.load(content, Loader)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def read_joeynmt_options(path: Path) -> dict[str, Any]:
    """Read the model options of a JoeyNMT config.yaml, and its search options prefixed with "testing_"."""
    model, testing = (read_yaml(path, section) for section in ("model", "testing"))
    return model and model | {f"testing_{key}": value for key, value in testing.items()}


def read_marian_search_options(path: Path) -> dict[str, Any]:
    """Read the options of Marian's decoder next to a checkpoint or in its folder: its own ones, or the first ones."""
    folder = path if path.is_dir() else path.parent
    names = [file.name for pattern in MARIAN_SEARCH_FILES for file in sorted(folder.glob(pattern))]
    options = (read_yaml(path, None, name) for name in (f"{path.name}.decoder.yml", *names))
    return next(filter(None, options), {})


def read_sibling_json(path: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON file in the folder of a checkpoint; None if there is none."""
    file = (path if path.is_dir() else path.parent) / name
    return read_json(read_bytes(file), str(file)) if file.exists() else None


def read_sibling_options(path: Path) -> dict[str, Any]:
    """Read the options of a training program from the files next to a checkpoint, flattened; empty if there are none.

    A config.json counts if it has no model_type.
    """
    options: dict[str, Any] = {}
    for name in OPTION_FILES:
        if name.endswith(".yaml"):
            options |= read_yaml(path, section=None, name=name)
        elif "model_type" not in (data := read_sibling_json(path, name) or {}):
            options |= flatten_options(data)
    return options


def training_options(extras: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the training program stored in a checkpoint file, flattened; empty if there are none.

    An option of an earlier one of OPTION_KEYS takes precedence; numbers and words beside the weights come last. A
    model_type is left out: only that of a config.json names a family.
    """
    flat = {key: value for key, value in extras.items() if isinstance(value, str | int | float)}
    for keys in reversed(OPTION_KEYS):
        options: Any = extras
        for key in keys:
            options = to_plain(options.get(key)) if isinstance(options, dict) else None
        if isinstance(options, dict):
            flat |= flatten_options(options)
    flat.pop("model_type", None)
    if isinstance(text := flat.pop(MARIAN_OPTIONS, None), str):
        flat |= parse_options(text.encode(), MARIAN_OPTIONS)
    return flat | {"vocab": to_plain(extras["vocab"])} if "vocab" in extras else flat


def flatten_options(options: dict[Any, Any]) -> dict[str, Any]:
    """Flatten nested options: an option of a section becomes "section_option" and, under another key, "section.option".

    Lists of lists or dicts are left out.

    Raises:
        ValueError: If there are too many, for instance because a section contains itself.
    """
    flat: dict[str, Any] = {}
    sections: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), options)]
    count = 0
    while sections:
        path, section = sections.pop()
        count += len(section)
        for key, value in section.items():
            name = "_".join((*path, str(key)))
            if count > MAX_OPTIONS or len(name) > MAX_NAME:
                raise ValueError(
                    f"A checkpoint may have at most {MAX_OPTIONS} options with names of at most {MAX_NAME} "
                    "characters, including nested sections: this one has more; check where it comes from."
                )
            if isinstance(value, dict):
                sections.append(((*path, str(key)), value))
            # Lists that share one another could be endless as text.
            elif not isinstance(value, list | tuple) or not any(
                isinstance(part, list | tuple | dict) for part in value
            ):
                flat[name] = flat[".".join((*path, str(key)))] = value
    return flat
