"""The files of adapters of PEFT, and their adapter_config.json."""

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlx_transformer.config.serialization import check_positive, check_shares, check_types, from_dict
from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_json
from mlx_transformer.weights.formats.tensors import CheckpointError

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # before the names of modules
LORA_A, LORA_B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
MERGE = "merge it in PEFT by merge_and_unload(), save the model and convert that"
# Types without weights to merge.
PROMPTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"}
PROMPTS |= {"ADAPTION_PROMPT"}
# Options that change what a model computes in other ways than LoRA, DoRA and rsLoRA do.
UNSUPPORTED = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config"),
    *("target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config"),
)
# Initialisations that leave the base model as it is; others subtract the adapter from its weights.
PLAIN_INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# Patterns come from a file: without these limits, one could be made that takes ages to match.
MAX_PATTERNS = 2000
MAX_PATTERN = 200  # characters
MAX_REPETITIONS = 3
REPEATED_GROUP = re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:]")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of an adapter that determine what it computes, under PEFT's names.

    Attributes:
        r: Rank of all modules without another one in `rank_pattern`.
        lora_alpha: Scale of the updates, before the division by the rank.
        lora_dropout: Dropout rate in training.
        use_dora: Whether it is DoRA.
        use_rslora: Whether updates are divided by the root of the rank.
        target_modules: Ends of the names of adapted modules, or one regular expression of them.
        rank_pattern: Regular expression of modules -> their rank.
        alpha_pattern: Regular expression of modules -> their `lora_alpha`.
        modules_to_save: Ends of the names of modules that are stored as a whole.
        exclude_modules: Modules that are not adapted, as in `target_modules`.
        layers_to_transform: Numbers of the layers that are adapted; None for all.
        base_model_name_or_path: The base model.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] | None = None
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "r", "lora_alpha")
        check_shares(self, "lora_dropout")
        if any(rank <= 0 for rank in self.rank_pattern.values()):
            raise ValueError(f"rank_pattern must have ranks above 0, not {min(self.rank_pattern.values())}.")
        patterns = [*self.rank_pattern, *self.alpha_pattern]
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"rank_pattern and alpha_pattern must have at most {MAX_PATTERNS} patterns.")
        for pattern in patterns:
            check_pattern(pattern)

    def rank(self, module: str) -> int:
        """Return the rank of a module."""
        return _first_match(self.rank_pattern, module, self.r)

    def scale(self, module: str | None = None) -> float:
        """Return the factor of the update of a module; None for modules without patterns."""
        if module is None:
            return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)
        rank, alpha = self.rank(module), _first_match(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return whether a list of target modules has a module; none that also depends on other options."""
        if isinstance(self.target_modules, str) or self.exclude_modules or self.layers_to_transform is not None:
            return False
        return any(f".{module}".endswith(f".{target}") for target in self.target_modules)


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that is not valid, or could take long to match."""
    repetitions = sum(map(pattern.count, "*+{"))
    if len(pattern) > MAX_PATTERN or repetitions > MAX_REPETITIONS or REPEATED_GROUP.search(pattern):
        raise ValueError(
            f"a pattern must have at most {MAX_PATTERN} characters and {MAX_REPETITIONS} repetitions, none of a group, "
            f"not {short_repr(pattern)}: write the names of modules."
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"patterns must be regular expressions: {short_repr(pattern)} is not, {error}.") from None


def _first_match(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name."""
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, default)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read the adapter_config.json of an adapter.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, no LoRA, or has options that are not supported.
    """
    path = folder / CONFIG_FILE
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(kind := data.get("peft_type"), str):
        raise CheckpointError("an adapter_config.json of PEFT must have a peft_type", "download it again", path)
    if kind != "LORA":
        remedy = "train a LoRA instead" if kind in PROMPTS else MERGE
        raise CheckpointError(f"an adapter must be of peft_type LORA, not {short_repr(kind)}", remedy, path)
    if unsupported := [name for name in UNSUPPORTED if data.get(name)]:
        raise CheckpointError(f"LoRA with {unsupported[0]} is not supported", MERGE, path)
    if (bias := data.get("bias", "none")) != "none":
        raise CheckpointError(f'bias must be "none", {short_repr(bias)} is not supported', MERGE, path)
    if (kind := data.get("init_lora_weights", True)) not in PLAIN_INITIALIZATIONS:
        remedy = "save it in PEFT with path_initial_model_for_weight_conversion, or merge it there"
        raise CheckpointError(f"init_lora_weights {short_repr(kind)} changes the base model", remedy, path)
    names = {item.name for item in fields(PeftConfig)}
    # In files of PEFT, None stands for the default of an option.
    return from_dict(PeftConfig, {key: data[key] for key in names & data.keys() if data[key] is not None}, str(path))
