"""Configuration of a tokenizer: special tokens and languages."""

from dataclasses import dataclass, field
from typing import Literal

from mlx_transformer.config.serialization import check_positive, check_types


@dataclass(frozen=True)
class TokenizerConfig:
    """What stands around texts besides their own ids, and which languages a model knows.

    Attributes:
        pad_id: Fills up short sequences on the right.
        eos_id: Ends a sequence.
        start_id: The decoder's first input.
        before_source: Ids before every source.
        after_source: Ids after every source.
        before_target: Ids before every target.
        after_target: Ids after every target.
        skip_ids: Ids that text is not made of.
        clean_up: Spaces before punctuation and English endings are taken out of generated text.
        source_vocab_size: Source ids of the model, if more than the vocabulary has names for; None for as many.
        target_vocab_size: Target ids of the model, likewise.
        languages: Code of a language -> id of its token.
        source_language: Where the source language's token stands: "before" or "after" all else of the source.
        target_language: What the target language's token does: it is written at the beginning of the "source", it is
            the "start" of the decoder, or it is generated "first", whatever its probability.
        default_source_language: The language of sources where none is given.
        default_target_language: The language of targets where none is given.
        source_prefix: What every source begins with where nothing else is asked for.
    """

    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 2
    before_source: tuple[int, ...] = ()
    after_source: tuple[int, ...] = (1,)
    before_target: tuple[int, ...] = ()
    after_target: tuple[int, ...] = (1,)
    skip_ids: tuple[int, ...] = (0, 1, 2)
    clean_up: bool = False
    source_vocab_size: int | None = None
    target_vocab_size: int | None = None
    languages: dict[str, int] = field(default_factory=dict)
    source_language: Literal["none", "before", "after"] = "none"
    target_language: Literal["none", "source", "start", "first"] = "none"
    default_source_language: str | None = None
    default_target_language: str | None = None
    source_prefix: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        around = (*self.before_source, *self.after_source, *self.before_target, *self.after_target)
        if min(self.pad_id, self.eos_id, self.start_id, *around, *self.skip_ids, *self.languages.values(), 0) < 0:
            raise ValueError("Ids of a tokenizer's config must not be below 0.")
        check_positive(
            self, *(name for name in ("source_vocab_size", "target_vocab_size") if vars(self)[name] is not None)
        )
        if (self.source_language, self.target_language) != ("none", "none") and not self.languages:
            raise ValueError("A tokenizer that asks for languages must know some: languages is empty.")
        for name in ("default_source_language", "default_target_language"):
            if (code := vars(self)[name]) is not None and code not in self.languages:
                raise ValueError(f"{name} must be one of the tokenizer's languages: {code!r} is none.")

    def ids(self) -> dict[str, set[int]]:
        """The ids that stand around texts of the source and of the target."""
        found = {
            "source": {self.pad_id, self.eos_id, *self.before_source, *self.after_source},
            "target": {self.pad_id, self.eos_id, self.start_id, *self.before_target, *self.after_target},
        }
        if self.source_language != "none" or self.target_language == "source":
            found["source"] |= set(self.languages.values())
        if self.target_language in ("start", "first"):
            found["target"] |= set(self.languages.values())
        return found
