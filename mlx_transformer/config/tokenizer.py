"""Configuration of a tokenizer: special tokens, languages and the positions of their tokens."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mlx_transformer.config.serialization import check_padding, check_positive, check_types
from mlx_transformer.messages import short_repr

AUTO = "auto"  # source language of a text whose language is to be detected
MIN_SOURCE_TOKENS = 10  # sources from which the ratio of lengths tells something


@dataclass(frozen=True)
class TokenizerConfig:
    """Special tokens around texts, and the languages a model knows.

    Attributes:
        pad_id: Pads short sequences on the right.
        eos_id: Ends a sequence.
        start_id: The decoder's first input.
        before_source: Ids before every source.
        after_source: Ids after every source.
        before_target: Ids before every target.
        after_target: Ids after every target.
        skip_ids: Ids that decoding skips.
        clean_up: Remove spaces before punctuation and English contractions from decoded text.
        lowercase: Lower-case texts before they are encoded.
        recase: Generate from lines in capitals as from the same in lower case, and put the results in capitals, because
            the model was hardly trained on capitals.
        source_vocab_size: The model's source vocabulary size if larger than the vocabulary; None for the same.
        target_vocab_size: The same for targets.
        languages: Language code -> id of its token.
        source_language: Position of the source language's token: "before" or "after" everything else in the source.
        target_language: Position of the target language's token: at the beginning of the "source", as the "start" token
            of the decoder, or as the "first" generated token, which is forced.
        default_source_language: The source language if none is given.
        default_target_language: The target language if none is given.
        language_pair: The source and the target language of a model for one pair, as far as neither has a token; None
            for others, and where they are unknown.
        source_prefix: Text prepended to every source if no other prefix is given.
        max_sentence_tokens: Texts with more source tokens are split into sentences, because the model was hardly
            trained on longer ones; None if that is unknown.
        min_length_ratio: Target tokens per source token, for sources of MIN_SOURCE_TOKENS or more, below which a
            result is reported as too short; 0 if unknown.
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
    lowercase: bool = False
    recase: bool = False
    source_vocab_size: int | None = None
    target_vocab_size: int | None = None
    languages: dict[str, int] = field(default_factory=dict)
    source_language: Literal["none", "before", "after"] = "none"
    target_language: Literal["none", "source", "start", "first"] = "none"
    default_source_language: str | None = None
    default_target_language: str | None = None
    language_pair: tuple[str, str] | None = None
    source_prefix: str = ""
    max_sentence_tokens: int | None = None
    min_length_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        added = (*self.before_source, *self.after_source, *self.before_target, *self.after_target)
        ids = (self.pad_id, self.eos_id, self.start_id, *added, *self.skip_ids, *self.languages.values())
        if min(ids) < 0:
            raise ValueError(f"Ids of a tokenizer's config must not be below 0: got {min(ids)}.")
        check_padding(self.pad_id, self.eos_id)
        optional = ("source_vocab_size", "target_vocab_size", "max_sentence_tokens")
        check_positive(self, *(name for name in optional if vars(self)[name] is not None))
        if not 0 <= self.min_length_ratio < math.inf:
            raise ValueError(f"min_length_ratio must be at least 0: got {self.min_length_ratio}.")
        if (self.source_language, self.target_language) != ("none", "none") and not self.languages:
            raise ValueError("A tokenizer with language tokens must know some languages: languages is empty.")
        for name in ("default_source_language", "default_target_language"):
            if (code := vars(self)[name]) is not None and code not in self.languages:
                raise ValueError(f"{name} must be one of the tokenizer's languages: got {short_repr(code)}.")

    @property
    def only_languages(self) -> tuple[str | None, str | None]:
        """The language of all sources and that of all targets, for a model for one pair; None where there are more."""
        source, target = self.language_pair or (None, None)
        has_tokens = self.source_language != "none", self.target_language != "none"
        return None if has_tokens[0] else source, None if has_tokens[1] else target

    def special_ids(self) -> dict[str, set[int]]:
        """The ids that are added to texts of the "source" and of the "target"."""
        ids = {
            "source": {self.pad_id, self.eos_id, *self.before_source, *self.after_source},
            "target": {self.pad_id, self.eos_id, self.start_id, *self.before_target, *self.after_target},
        }
        if self.source_language != "none" or self.target_language == "source":
            ids["source"] |= set(self.languages.values())
        if self.target_language in ("start", "first"):
            ids["target"] |= set(self.languages.values())
        return ids
