"""Models by name: the bundled one, or a model folder."""

from pathlib import Path

import mlx.core as mx

from mlx_transformer import checkpoint, weights
from mlx_transformer.model import Transformer
from mlx_transformer.tokenizer import Tokenizer

BUNDLED = Path(weights.__file__).parent / "pretrained" / "en-fr"


def load(model: str | Path | None = None, dtype: mx.Dtype | str | None = None) -> tuple[Transformer, Tokenizer | None]:
    """A model, ready to generate, and its tokenizer (None for a folder without one).

    Args:
        model: A model folder; the bundled English-to-French model if None.
        dtype: What to compute in; by default float32 on the CPU, the file's own on a GPU.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder does not hold a whole model.
    """
    return checkpoint.load(find(model), dtype)


def find(model: str | Path | None = None) -> Path:
    """The folder of a model.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = BUNDLED if model is None else Path(model)
    if (folder / "best" / "config.json").exists() and not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is a training run, which holds models: use {folder / 'best'}.")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"A model is a folder with config.json and model.safetensors: there is none at {folder}."
        )
    return folder
