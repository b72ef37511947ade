"""Models by name: the bundled one, a model folder, a torch checkpoint, or either of the last two on the hub."""

from pathlib import Path

import mlx.core as mx

from mlx_transformer import weights
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained import hub
from mlx_transformer.storage import atomic
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.convert import convert as convert
from mlx_transformer.weights.convert import load as load_torch

BUNDLED_MODEL = Path(weights.__file__).parent / "pretrained" / "en-fr"
TORCH_PATTERNS = ("*.safetensors*", "*.bin*", "*.pt", "*.pth", "*.ckpt")


def load(
    model: str | Path | None = None,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    *,
    quantize: int | None = None,
    allow_overflow: bool = False,
) -> tuple[Transformer, Tokenizer | None]:
    """A model, ready to generate, and its tokenizer (None for a folder without one).

    A torch checkpoint is converted in memory; one of the hub once, to a folder in ~/.cache/mlx_transformer (or
    MLX_TRANSFORMER_CACHE), which is loaded from then on, offline too. The downloaded files stay in huggingface_hub's
    cache, which other programs share. No code of a repository is ever run.

    Args:
        model: A model folder, or the folder or file of a torch checkpoint; a text that is no path, but owner/name, is
            a repository of the Hugging Face hub; the bundled English-to-French model if None.
        dtype: What to compute in; by default float32 on the CPU, the file's own on a GPU.
        revision: A branch, tag or commit of the repository; by default the main branch.
        quantize: Bits of each weight, 8 or 4; by default as stored. The CPU computes with what they stand for.
        allow_overflow: Compute in float16 even if the model leaves its range.

    Raises:
        FileNotFoundError: If there is no such folder, file, repository or revision.
        OSError: If the hub refuses or cannot be reached, or the disk is full.
        ValueError: If it does not hold a whole model, or a checkpoint of no known family.
    """
    path = find_model(model, revision)
    read = load_torch if is_torch_checkpoint(path) else model_folder.load
    return read(path, dtype=dtype, quantize=quantize, allow_overflow=allow_overflow)


def find_model(model: str | Path | None = None, revision: str | None = None) -> Path:
    """The folder or file of a model; one of the hub is downloaded and converted.

    Raises:
        FileNotFoundError: If there is none.
        OSError: See `load`.
        ValueError: If a revision is asked for of a path.
    """
    if fetch_from_hub(model, revision):
        return hub.fetch_model(str(model), revision, convert_to_cache)
    path = BUNDLED_MODEL if model is None else Path(model)
    if (path / "best" / "config.json").exists() and not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is a training run, which holds models: use {path / 'best'}.")
    if not path.exists():
        raise FileNotFoundError(
            "A model is a folder with config.json and model.safetensors, or a torch checkpoint, or owner/name on the "
            f"hub: there is none at {path}."
        )
    return path


def find_torch_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The path of a torch checkpoint; one of the hub is downloaded.

    Raises:
        OSError: See `load`.
        ValueError: If a revision is asked for of a path.
    """
    return (
        hub.download(str(source), *hub.resolve_revision(str(source), revision))
        if fetch_from_hub(source, revision)
        else Path(source)
    )


def fetch_from_hub(model: str | Path | None, revision: str | None) -> bool:
    """Whether a model is one of the hub: a path that exists comes first."""
    if isinstance(model, str) and hub.is_repository_id(model) and not Path(model).exists():
        return True
    if revision is not None:
        raise ValueError(f"Only a model of the hub has revisions: {model or 'the bundled model'} is none.")
    return False


def convert_to_cache(weights: Path, folder: Path) -> None:
    """Make a model folder of downloaded files; if they are one, a link to them, to be light on the disk."""
    if not atomic.is_model_folder(weights.parent):
        convert(weights, folder)
        return
    new = folder.with_name(f".{folder.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(weights.parent)
    new.replace(folder)


def is_torch_checkpoint(path: Path) -> bool:
    """Whether a path is a torch checkpoint and not a model folder."""
    if path.is_file():
        return True
    holds_weights = any(next(path.glob(pattern), None) for pattern in TORCH_PATTERNS)
    return holds_weights and not atomic.is_model_folder(path)
