"""What stands around texts, as plain data, and languages: codes in, ids of their tokens out."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_transformer.fields import check_positive, check_types

Languages = str | Sequence[str | None] | None  # a code for all texts, or one for each; None for the default


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


def language_ids(config: TokenizerConfig, side: str, given: Languages, count: int) -> list[int | None]:
    """The id of each text's language; None where none is given and none is the default.

    Args:
        config: What the model knows.
        side: "source" or "target".
        given: A code for all texts, or one for each.
        count: How many texts there are.

    Raises:
        ValueError: If a code is unknown, their number is wrong, or the model asks for no language on this side.
    """
    codes = [given] * count if given is None or isinstance(given, str) else list(given)
    if len(codes) != count:
        raise ValueError(f"{side}_language must be one code, or one for each text: {len(codes)} for {count} texts.")
    asked = config.source_language if side == "source" else config.target_language
    if asked == "none":
        if wanted := [code for code in codes if code is not None]:
            raise ValueError(f"This model does not ask for a {side} language: leave out {wanted[0]!r}.")
        return [None] * count
    default = config.default_source_language if side == "source" else config.default_target_language
    chosen = [default if code is None else code for code in codes]
    return [None if code is None else language_id(config, code) for code in chosen]


def language_id(config: TokenizerConfig, code: str) -> int:
    """The id of a language; ValueError, which names like codes, if the model does not know it."""
    if code in config.languages:
        return config.languages[code]
    folded = {known.casefold(): known for known in config.languages}
    # Someone who writes "fr" may well mean "fra_Latn".
    begin = (
        [known for known in sorted(config.languages) if known.casefold().startswith(code.casefold())] if code else []
    )
    close = [folded[like] for like in difflib.get_close_matches(code.casefold(), folded, n=4, cutoff=0.4)]
    like = ", ".join(list(dict.fromkeys([*begin, *close]))[:4] or sorted(config.languages)[:4])
    raise ValueError(
        f"A language must be one of the {len(config.languages)} that the model knows: {code!r} is none. "
        f"Close to it are {like}; the command info lists all."
    )


def required(config: TokenizerConfig, side: str, ids: Sequence[int | None]) -> list[int]:
    """Ids of languages, none of which is missing; ValueError, which says how to give one, otherwise."""
    found = [i for i in ids if i is not None]
    if len(found) < len(ids):
        raise missing(config, side)
    return found


def missing(config: TokenizerConfig, side: str) -> ValueError:
    """The error of a text whose language is not told."""
    example = "fra_Latn" if "fra_Latn" in config.languages else min(config.languages)
    return ValueError(
        f"This model knows {len(config.languages)} languages and must be told the {side}'s: "
        f'--{side}-language {example} on the command line, {side}_language="{example}" in Python.'
    )
