"""Models by name: the bundled one, a model folder, or a torch checkpoint, which is converted in memory."""

from pathlib import Path

import mlx.core as mx

from mlx_transformer import checkpoint, weights
from mlx_transformer.model import Transformer
from mlx_transformer.tokenizer import Tokenizer
from mlx_transformer.weights.convert import convert as convert
from mlx_transformer.weights.convert import load as load_torch

BUNDLED = Path(weights.__file__).parent / "pretrained" / "en-fr"
TORCH_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(model: str | Path | None = None, dtype: mx.Dtype | str | None = None) -> tuple[Transformer, Tokenizer | None]:
    """A model, ready to generate, and its tokenizer (None for a folder without one).

    Args:
        model: A model folder, or the folder or file of a torch checkpoint; the bundled English-to-French model if None.
        dtype: What to compute in; by default float32 on the CPU, the file's own on a GPU.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it does not hold a whole model, or a checkpoint of no known family.
    """
    path = find(model)
    return (load_torch(path, dtype=dtype), None) if is_torch(path) else checkpoint.load(path, dtype)


def find(model: str | Path | None = None) -> Path:
    """The folder or file of a model.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = BUNDLED if model is None else Path(model)
    if (path / "best" / "config.json").exists() and not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is a training run, which holds models: use {path / 'best'}.")
    if not path.exists():
        raise FileNotFoundError(
            "A model is a folder with config.json and model.safetensors, or a torch checkpoint: "
            f"there is none at {path}."
        )
    return path


def is_torch(path: Path) -> bool:
    """Whether a path is a torch checkpoint and not a model folder."""
    if path.is_file():
        return True
    if not (path / "config.json").exists():
        return any(next(path.glob(pattern), None) for pattern in TORCH_FILES)
    data = checkpoint.read_json(path / "config.json")
    return isinstance(data, dict) and "model_type" in data
