"""Encoder-decoder Transformers on Apple's MLX: train, load, save, search and generate.

The public names are loaded on first use, so importing the package neither imports MLX nor touches the device.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "ModelConfig": "config",
    "StackConfig": "config",
    "SearchConfig": "config",
    "AlignmentConfig": "alignment",
    "Transformer": "model",
    "Memory": "model",
    "Tokenizer": "tokenizer",
    "Hypothesis": "hypotheses",
    "generate_ids": "search",
    "generate": "generation",
    "generate_hypotheses": "generation",
    "stream_generate": "generation",
    "Score": "scoring",
    "score": "scoring",
    "score_ids": "scoring",
    "attention": "attending",
    "load": "pretrained",
    "convert": "pretrained",
    "save": "checkpoint",
    "TrainingConfig": "recipe",
    "train": "training",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = vars(importlib.import_module(f"{__name__}.{_MODULES[name]}"))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
