"""The contents of a model folder's config.json."""

from dataclasses import dataclass

from mlx_transformer.config.model import ModelConfig, QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import check_types


@dataclass(frozen=True)
class FolderConfig:
    """The config.json of a model folder.

    Attributes:
        format_version: Raised when an older version of the package could not read the folder.
        model: What the model is.
        search: The search that it was made for.
        quantization: How its weights are quantised, None if they are not.
        tasks: The tasks that it was trained for.
    """

    format_version: int
    model: ModelConfig
    search: SearchConfig
    quantization: QuantizationConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
