"""The tokenizer that lies beside a checkpoint's tensors: which files it is made of, and what the model adds to it."""

from pathlib import Path
from typing import Any

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import Vocabulary
from mlx_transformer.weights.conversion_plan import ConversionPlan
from mlx_transformer.weights.source_config import read_config
from mlx_transformer.weights.tokenizers.framework_vocabularies import read_framework_vocabularies
from mlx_transformer.weights.tokenizers.hf_pipeline import find_tokenizer_class, read_hf_tokenizer
from mlx_transformer.weights.tokenizers.sentencepiece_models import SENTENCEPIECE_READERS

# A source and a target vocabulary (None for the same), and fields of TokenizerConfig.
TokenizerResult = tuple[Vocabulary, Vocabulary | None, dict[str, Any]]


def read_tokenizer(
    source: Path, plan: ConversionPlan, extras: dict[str, Any], first_id: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None if it has none.

    Args:
        source: The checkpoint's folder or file.
        plan: The model that is made of it.
        extras: What its file holds besides tensors.
        first_id: The first token of every target, if the generation settings ask for one.

    Raises:
        FileNotFoundError: If some files of a tokenizer are there and others are not.
        ValueError: If a file is damaged, or the vocabulary does not fit the model.
    """
    found = load_vocabularies(source, plan.family, extras)
    if found is None:
        return None
    vocabulary, target, fields = found
    model = plan.config
    # What the decoder starts with by itself is the original's language, whatever the tokenizer's files state.
    stated = {"start": model.start_id, "first": first_id}.get(fields.get("target_language", "none"))
    if codes := [code for code, i in fields.get("languages", {}).items() if i == stated]:
        fields["default_target_language"] = codes[0]
    shared = ("pad_id", "eos_id", "start_id", "source_vocab_size", "target_vocab_size")
    fields |= {name: vars(model)[name] for name in shared}
    fields["source_prefix"] = str(read_config(source).get("prefix") or "")
    return Tokenizer(vocabulary, target, TokenizerConfig(**fields))


def load_vocabularies(source: Path, family: str, extras: dict[str, Any]) -> TokenizerResult | None:
    """The vocabularies beside a checkpoint, and what is known of them; None if there are none."""
    folder = source if source.is_dir() else source.parent
    settings = read_config(source)
    if not settings:
        return read_framework_vocabularies(folder, family, extras)
    name = find_tokenizer_class(folder, settings)
    if name in SENTENCEPIECE_READERS:
        files, read = SENTENCEPIECE_READERS[name]
        return read(folder) if any((folder / file).exists() for file in files) else None
    pieces = read_hf_tokenizer(folder, settings)
    return None if pieces is None else (pieces[0], None, pieces[1])
