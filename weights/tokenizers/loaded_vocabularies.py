"""The result of reading the tokenizer files of a checkpoint."""

from typing import Any, NamedTuple

from mlx_transformer.tokenization.vocabulary import Vocabulary


class LoadedVocabularies(NamedTuple):
    """Vocabularies and the fields of TokenizerConfig that the files determine.

    Attributes:
        source: The source vocabulary.
        target: The target vocabulary; None if both sides share one.
        config_fields: Fields of TokenizerConfig.
    """

    source: Vocabulary
    target: Vocabulary | None
    config_fields: dict[str, Any]
