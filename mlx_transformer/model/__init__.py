"""The network and what it is built from."""

from mlx_transformer.model.masks import causal_mask as causal_mask
from mlx_transformer.model.masks import padding_mask as padding_mask
from mlx_transformer.model.positions import sinusoidal_positions as sinusoidal_positions
from mlx_transformer.model.transformer import Attention as Attention
from mlx_transformer.model.transformer import FeedForward as FeedForward
from mlx_transformer.model.transformer import Layer as Layer
from mlx_transformer.model.transformer import Memory as Memory
from mlx_transformer.model.transformer import Residual as Residual
from mlx_transformer.model.transformer import Stack as Stack
from mlx_transformer.model.transformer import Transformer as Transformer
