"""The contents of a model folder's config.json."""

from dataclasses import dataclass

from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import check_types

# Increases with every change of the conversion that changes its results for a checkpoint; tests notice most of them.
# 1: everything before it was recorded. 2: position tables in files, several end tokens, umT5's scale of logits.
# 3: Marian and NLLB models split long lines into sentences. 4: Pegasus is known to overflow float16.
CONVERSION_VERSION = 5


@dataclass(frozen=True)
class FolderConfig:
    """Contents of the config.json of a model folder.

    Attributes:
        format_version: Version of the folder format; increases when older package versions cannot read it.
        model: The model's configuration.
        search: The default search configuration.
        quantization: How the weights are quantised; None if they are not.
        tasks: The tasks that the model was trained for.
        conversion_version: CONVERSION_VERSION at the conversion of the checkpoint; None for other models.
        base_checksum: SHA-256 of the weights that these were converted from, which copies in several precisions have in
            common; None for the weights themselves. Adapters name their base by it.
    """

    format_version: int
    model: ModelConfig
    search: SearchConfig
    quantization: QuantizationConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()
    conversion_version: int | None = None
    base_checksum: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
