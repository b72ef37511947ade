"""Encoder-decoder Transformers on Apple's MLX: train, load, save, search and generate.

The public names are loaded on first use, so importing the package neither imports MLX nor touches the device. On
Linux it loads a fast BLAS for MLX (see `blas`).
"""

import importlib
import types

from .blas import load_blas
from .environment import set_command_buffer_limits

set_command_buffer_limits()  # before MLX is imported
load_blas()

__version__ = "0.1.0"

_MODULES = {
    "ModelConfig": "config.model",
    "StackConfig": "config.model",
    "PoolingConfig": "config.model",
    "AverageAttentionConfig": "config.model",
    "SearchConfig": "config.search",
    "SearchOptions": "config.search",
    "AlignmentConfig": "config.alignment",
    "Transformer": "model.transformer",
    "Memory": "model.transformer",
    "Tokenizer": "tokenization.tokenizer",
    "Hypothesis": "decoding.hypothesis",
    "generate_ids": "decoding.beam_search",
    "LexicalShortlist": "decoding.lexical_shortlist",
    "read_shortlist": "weights.formats.lexical_shortlist",
    "Engine": "inference.engine",
    "generate": "inference.generation",
    "generate_hypotheses": "inference.generation",
    "stream_generate": "inference.generation",
    "translate_file": "documents.translation",
    "translate_document": "documents.translation",
    "TranslatedDocument": "documents.translation",
    "DocumentReport": "documents.translator",
    "Score": "inference.scoring",
    "score": "inference.scoring",
    "score_ids": "inference.scoring",
    "embed": "inference.embedding",
    "detect_language": "inference.language_detection",
    "attention": "inference.text_attention",
    "TextAttention": "inference.text_attention",
    "attention_ids": "inference.attention_weights",
    "AttentionWeights": "inference.attention_weights",
    "evaluate": "inference.evaluation",
    "Evaluation": "inference.evaluation",
    "load": "pretrained.loading",
    "load_model": "pretrained.loading",
    "known_models": "pretrained.known_models",
    "KnownModel": "pretrained.known_models",
    "cached_models": "pretrained.cache",
    "CachedModel": "pretrained.cache",
    "AdapterConfig": "config.adapter",
    "add_adapter": "model.adapters",
    "load_adapter": "pretrained.loading",
    "save_adapter": "checkpoints.adapter_folder",
    "save_peft_adapter": "weights.adapters.peft_writer",
    "remove_adapter": "model.adapters",
    "fuse_adapter": "model.adapters",
    "convert": "weights.convert",
    "ConversionReport": "weights.convert",
    "TokenizerOptions": "weights.tokenizers.options",
    "save": "checkpoints.model_folder",
    "TrainingConfig": "config.training",
    "train": "training.trainer",
    "TrainingStep": "training.step_metrics",
    "Validation": "training.validation",
    "loss": "training.losses",
    "plot_attention": "plotting.attention_maps",
    "plot_learning_curves": "plotting.learning_curves",
}

# Without the functions that need matplotlib, so that `from mlx_transformer import *` works where it is not installed.
__all__ = [*(name for name in _MODULES if not name.startswith("plot_")), "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = vars(importlib.import_module(f"{__name__}.{_MODULES[name]}"))[name]
    if isinstance(value, types.FunctionType):
        from .arguments import check_arguments

        value = check_arguments(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
