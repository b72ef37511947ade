"""Languages of Marian's models, as files, names and tags tell them."""

import re
from typing import Any

from mlx_transformer.tokenization.languages import short_code

NAME = re.compile(r"(?:opus-mt-)?([a-z]+)-([a-z]+)")


def language_pair(source: object, target: object) -> tuple[str, str] | None:
    """Return the two letters of a source and a target language.

    None if one of them has none, which may be a group of languages, such as "mul", or no code at all.
    """
    codes = [short_code(code) if isinstance(code, str) else "" for code in (source, target)]
    first, second = codes
    return (first, second) if all(len(code) == 2 and code.isalpha() for code in codes) else None


def pair_of_name(name: str) -> tuple[str, str] | None:
    """Return the languages of a checkpoint with a name such as opus-mt-en-fr or eng-fra; None for other names."""
    match = NAME.fullmatch(name)
    return language_pair(*match.groups()) if match else None


def tag_fields(ids: dict[str, int]) -> dict[str, Any]:
    """Return the fields of TokenizerConfig for target languages with tags such as ">>fra<<" among the pieces.

    A model of one language needs no tag.
    """
    languages = {piece[2:-2]: i for piece, i in ids.items() if piece.startswith(">>") and piece.endswith("<<")}
    return {"languages": languages, "target_language": "source"} if len(languages) > 1 else {}
