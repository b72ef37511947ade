"""Configuration as frozen dataclasses of plain data, validated on creation; nothing here imports MLX."""

from mlx_transformer.config.alignment import AlignmentConfig as AlignmentConfig
from mlx_transformer.config.folder import FolderConfig as FolderConfig
from mlx_transformer.config.model import ModelConfig as ModelConfig
from mlx_transformer.config.model import QuantizationConfig as QuantizationConfig
from mlx_transformer.config.model import StackConfig as StackConfig
from mlx_transformer.config.search import SearchConfig as SearchConfig
from mlx_transformer.config.search import TaskConfig as TaskConfig
from mlx_transformer.config.tokenizer import TokenizerConfig as TokenizerConfig
from mlx_transformer.config.training import TrainingConfig as TrainingConfig
