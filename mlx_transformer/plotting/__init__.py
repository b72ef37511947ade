"""Figures, drawn by matplotlib: learning curves of training runs, and attention maps."""

from mlx_transformer.metrics import INSTALL_HINT

try:
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    raise ValueError(f"Pictures need matplotlib: {error}; {INSTALL_HINT}.") from error
