"""Loading of the tokenizer that accompanies a checkpoint."""

from pathlib import Path
from typing import Any

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.conversion_plan import ConversionPlan
from mlx_transformer.weights.sentence_transformers import lowercases_texts
from mlx_transformer.weights.source_config import read_config
from mlx_transformer.weights.tokenizers.deep_phonemizer import read_deep_phonemizer
from mlx_transformer.weights.tokenizers.framework_vocabularies import read_framework_vocabularies
from mlx_transformer.weights.tokenizers.hf_pipeline import find_tokenizer_class, read_hf_tokenizer
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies
from mlx_transformer.weights.tokenizers.sentencepiece_models import SENTENCEPIECE_READERS
from mlx_transformer.weights.tokenizers.user_vocabularies import UserVocabularies

# Families of translation models, which learned single sentences and leave out sentences of longer texts; few single
# sentences have more tokens.
SENTENCE_FAMILIES = ("marian", "marian-native", "m2m100")
MAX_SENTENCE_TOKENS = 100


def read_tokenizer(
    source: Path,
    plan: ConversionPlan,
    extras: dict[str, Any],
    first_id: int | None = None,
    user_vocabularies: UserVocabularies | None = None,
) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint; None if it has none.

    Args:
        source: The checkpoint's folder or file.
        plan: The plan of the converted model.
        extras: The content of the checkpoint file besides its tensors.
        first_id: The forced first token of every target, if the generation settings have one.
        user_vocabularies: Vocabularies that take the place of the checkpoint's own.

    Raises:
        FileNotFoundError: If only some files of a tokenizer exist.
        ValueError: If a file is damaged, or the vocabulary does not fit the model.
    """
    if user_vocabularies is None and plan.family == "deep-phonemizer":
        user_vocabularies = read_deep_phonemizer(source, plan.config, extras)
    if user_vocabularies is not None:
        loaded: LoadedVocabularies | None = user_vocabularies.build(plan)
    else:
        loaded = load_vocabularies(source, plan.family, extras)
    if loaded is None:
        return None
    fields = dict(loaded.config_fields)
    model = plan.config
    # The model's own start or first token decides the default language, whatever the tokenizer's files say.
    default_id = {"start": model.start_id, "first": first_id}.get(fields.get("target_language", "none"))
    if codes := [code for code, i in fields.get("languages", {}).items() if i == default_id]:
        fields["default_target_language"] = codes[0]
    from_model = ("pad_id", "eos_id", "start_id", "source_vocab_size", "target_vocab_size")
    fields |= {name: vars(model)[name] for name in from_model}
    if plan.family in SENTENCE_FAMILIES:
        fields["max_sentence_tokens"] = MAX_SENTENCE_TOKENS
    fields["source_prefix"] = str(read_config(source).get("prefix") or "")
    if model.pooling is not None and lowercases_texts(source):
        fields["lowercase"] = True
    return Tokenizer(loaded.source, loaded.target, TokenizerConfig(**fields))


def load_vocabularies(source: Path, family: str, extras: dict[str, Any]) -> LoadedVocabularies | None:
    """Return the vocabularies that accompany a checkpoint; None if there are none."""
    folder = source if source.is_dir() else source.parent
    settings = read_config(source)
    if not settings:
        return read_framework_vocabularies(folder, family, extras)
    name = find_tokenizer_class(folder, settings)
    if name in SENTENCEPIECE_READERS:
        files, read = SENTENCEPIECE_READERS[name]
        return read(folder) if any((folder / file).exists() for file in files) else None
    return read_hf_tokenizer(folder, settings)
