"""The vocabularies that a user gives for a checkpoint, and how they split text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_transformer.config.serialization import check_type

Level = Literal["pieces", "words", "characters"]
SourceSpecials = Literal["both", "start", "end", "none"]


@dataclass(frozen=True)
class TokenizerOptions:
    """The tokenizer of a checkpoint that comes without one, or whose own is to be replaced.

    A vocabulary is a file: a tokenizer.json, a sentencepiece model, tokens as text (one a line), JSON or pickle, or a
    torchtext vocabulary. The content shows which. Pickles are read as data; no code in them is run.

    Attributes:
        source: The source vocabulary; a file with a vocabulary for each side counts for both.
        target: The target vocabulary; None if `source` counts for both sides.
        level: What the tokens of a list are; None to find out. Words are separated by white space; a word that is not
            in the vocabulary is split at its punctuation.
        lowercase: Lower-case texts before they are split into tokens.
        source_specials: The special tokens around sources; None for what the file or the checkpoint's family does.
    """

    source: str | Path
    target: str | Path | None = None
    level: Level | None = None
    lowercase: bool = False
    source_specials: SourceSpecials | None = None

    def __post_init__(self) -> None:
        check_type("lowercase", self.lowercase, bool)
        if self.level is not None:
            check_type("level", self.level, Level)
        if self.source_specials is not None:
            check_type("source_specials", self.source_specials, SourceSpecials)
