"""Language codes and the ids of their tokens."""

import difflib
from collections.abc import Sequence

from mlx_transformer.config.tokenizer import TokenizerConfig

LanguageCodes = str | Sequence[str | None] | None  # a code for all texts, or one for each; None for the default


def resolve_language_ids(config: TokenizerConfig, side: str, given: LanguageCodes, count: int) -> list[int | None]:
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
    return [None if code is None else language_token_id(config, code) for code in chosen]


def language_token_id(config: TokenizerConfig, code: str) -> int:
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


def require_language_ids(config: TokenizerConfig, side: str, ids: Sequence[int | None]) -> list[int]:
    """Ids of languages, none of which is missing; ValueError, which says how to give one, otherwise."""
    found = [i for i in ids if i is not None]
    if len(found) < len(ids):
        raise missing_language_error(config, side)
    return found


def missing_language_error(config: TokenizerConfig, side: str) -> ValueError:
    """The error of a text whose language is not told."""
    example = "fra_Latn" if "fra_Latn" in config.languages else min(config.languages)
    return ValueError(
        f"This model knows {len(config.languages)} languages and must be told the {side}'s: "
        f'--{side}-language {example} on the command line, {side}_language="{example}" in Python.'
    )
