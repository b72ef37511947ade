"""Configuration of low-rank adapters, and the contents of their folders' adapter_config.json."""

import math
from dataclasses import dataclass
from typing import Literal

from mlx_transformer.config.serialization import check_positive, check_shares, check_types

# Name of a group of linear layers -> patterns of their names.
TARGET_GROUPS = {
    "attention": ("self_attention.*", "ssru.*", "average_attention.*", "cross_attention.*"),
    "mlp": ("feed_forward.*",),
}
# Name of a part to train in full -> its modules.
SAVED_PARTS = {"embeddings": ("source_embedding", "target_embedding"), "output": ("output",)}
ALL_LAYERS = -1  # in files, as mlx-lm has it
MAX_NAMES = 10_000  # of targets, and of modules to save: more than a model has layers


@dataclass(frozen=True)
class AdapterConfig:
    """A low-rank adapter (LoRA, Hu et al. 2021): which layers it changes, and how.

    Attributes:
        rank: Inner width of the two factors of each update.
        alpha: Factor of updates, relative to the rank; see `scale`.
        dropout: Dropout rate of the inputs of updates, in training.
        targets: Linear layers to adapt: "attention", "mlp", or names such as "query_proj" or "decoder.*.value_proj", in
            which * stands for any text.
        layers: Adapt the last layers of each stack only; None for all.
        dora: Also learn the magnitude of each output (DoRA, Liu et al. 2024).
        rslora: Divide by the root of the rank (rsLoRA, Kalajdzievski 2023), so that high ranks learn as fast.
        modules_to_save: Parts to train in full: "embeddings", "output", or names of modules, as for targets.
        base_model: Path, or owner/name on the hub, of the model that the adapter belongs to.
        base_checksum: SHA-256 of its weights; None if unknown.
        source_prefix: Text before every source that the adapter was trained with; empty for that of the base.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention", "mlp")
    layers: int | None = None
    dora: bool = False
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    base_model: str | None = None
    base_checksum: str | None = None
    source_prefix: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "rank", "alpha", *(["layers"] if self.layers is not None else []))
        check_shares(self, "dropout")
        for name in ("targets", "modules_to_save"):
            if len(vars(self)[name]) > MAX_NAMES:
                raise ValueError(f"{name} must be at most {MAX_NAMES} names, not {len(vars(self)[name])}.")
        if not self.targets and not self.modules_to_save:
            raise ValueError("targets must name a layer, unless other parts are trained in full: name what to train.")

    @property
    def scale(self) -> float:
        """The factor of the product of the two factors."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class LoRAParameters:
    """The field `lora_parameters` of an adapter_config.json, as mlx-lm has it; see `AdapterConfig`.

    `scale` follows from the others; `keys` are the targets.
    """

    rank: int
    alpha: float
    scale: float
    dropout: float
    keys: tuple[str, ...]
    rslora: bool = False

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class AdapterFolderConfig:
    """Contents of the adapter_config.json of an adapter folder.

    Attributes:
        format_version: Version of the folder format; increases when older package versions cannot read it.
        fine_tune_type: "lora" or "dora".
        model: Path or name of the base model.
        num_layers: Number of last layers of each stack that are adapted; ALL_LAYERS for all.
        lora_parameters: Rank, scale and targets.
        modules_to_save: Parts that were trained in full.
        base_checksum: SHA-256 of the weights of the base model.
        source_prefix: Text before every source.
    """

    format_version: int
    fine_tune_type: Literal["lora", "dora"]
    model: str | None
    num_layers: int
    lora_parameters: LoRAParameters
    modules_to_save: tuple[str, ...] = ()
    base_checksum: str | None = None
    source_prefix: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        scale, expected = self.lora_parameters.scale, self.adapter_config().scale
        if not math.isclose(scale, expected, rel_tol=1e-6):
            raise ValueError(f"scale must be that of rank and alpha, {expected:g}, not {scale:g}.")

    @classmethod
    def of(cls, config: AdapterConfig, format_version: int) -> "AdapterFolderConfig":
        """Return the contents for an adapter."""
        return cls(
            format_version=format_version,
            fine_tune_type="dora" if config.dora else "lora",
            model=config.base_model,
            num_layers=ALL_LAYERS if config.layers is None else config.layers,
            lora_parameters=LoRAParameters(
                config.rank, config.alpha, config.scale, config.dropout, config.targets, config.rslora
            ),
            modules_to_save=config.modules_to_save,
            base_checksum=config.base_checksum,
            source_prefix=config.source_prefix,
        )

    def adapter_config(self) -> AdapterConfig:
        """Return the adapter's configuration."""
        parameters = self.lora_parameters
        return AdapterConfig(
            rank=parameters.rank,
            alpha=parameters.alpha,
            dropout=parameters.dropout,
            targets=parameters.keys,
            layers=None if self.num_layers == ALL_LAYERS else self.num_layers,
            dora=self.fine_tune_type == "dora",
            rslora=parameters.rslora,
            modules_to_save=self.modules_to_save,
            base_model=self.model,
            base_checksum=self.base_checksum,
            source_prefix=self.source_prefix,
        )
