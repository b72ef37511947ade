"""Figures, drawn by matplotlib: learning curves of training runs, and attention maps."""

from mlx_transformer.messages import install_command

try:
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    raise ValueError(f"Pictures need matplotlib: {error}; {install_command('train')}.") from error
