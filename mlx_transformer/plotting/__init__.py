"""Figures, drawn by matplotlib: learning curves of training runs, and attention maps."""

try:
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    raise ValueError(f"Pictures need matplotlib: {error}; pip install matplotlib.") from error
