"""The vocabularies of DeepPhonemizer, from the options in its checkpoints: characters of texts, and phonemes."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.weights.source_config import training_options
from mlx_transformer.weights.tokenizers.options import TokenizerOptions
from mlx_transformer.weights.tokenizers.user_vocabularies import UserVocabularies
from mlx_transformer.weights.tokenizers.vocabulary_files import FileVocabulary

logger = logging.getLogger(__name__)


def read_deep_phonemizer(path: Path, model: ModelConfig, extras: dict[str, Any]) -> UserVocabularies | None:
    """Return the vocabularies of a checkpoint; None if its options do not list them.

    Args:
        path: The checkpoint.
        model: The configuration of the model, whose start token is that of one of the languages.
        extras: The content of the checkpoint file besides its tensors.
    """
    options = training_options(extras)
    names = ("languages", "text_symbols", "phoneme_symbols")
    lists: list[Any] = [options.get(f"preprocessing_{name}") for name in names]
    if not all(isinstance(value, str | list | tuple) for value in lists):
        return None
    if options.get("preprocessing_char_repeats", 1) != 1:
        logger.warning("No tokenizer is converted from %s: it repeats the characters of texts.", path)
        return None
    special_ids = {"pad": model.pad_id, "start": model.start_id, "end": model.eos_id}
    languages, *symbols = lists
    specials = ["_", *(f"<{language}>" for language in languages), "<end>"]
    source, target = (FileVocabulary(path, number_tokens([*specials, *tokens]), special_ids) for tokens in symbols)
    lowercase = bool(options.get("preprocessing_lowercase", True))
    return UserVocabularies(source, target, TokenizerOptions(path, None, "characters", lowercase, "both"))


def number_tokens(tokens: Iterable[str]) -> dict[str, int]:
    """Return the ids of tokens, each the number of different tokens before it."""
    ids: dict[str, int] = {}
    for token in tokens:
        ids[token] = len(ids)
    return ids
