"""The network and what it is built from."""

from mlx_transformer.model.transformer import Memory as Memory
from mlx_transformer.model.transformer import Transformer as Transformer
