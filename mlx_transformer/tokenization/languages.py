"""Language codes and the ids of their tokens."""

import difflib
from collections.abc import Sequence

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.messages import short_repr, shorten
from mlx_transformer.tokenization.texts import TextError, check_list, check_string

LanguageCodes = str | Sequence[str | None] | None  # one code for all texts, or one per text; None for the default


def resolve_language_ids(config: TokenizerConfig, side: str, languages: LanguageCodes, count: int) -> list[int | None]:
    """Return the id of each text's language; None where neither a code nor a default is set.

    Args:
        config: The tokenizer's config.
        side: "source" or "target".
        languages: One code for all texts, or one per text.
        count: The number of texts.

    Raises:
        ValueError: If a code is unknown, the number of codes is wrong, or the model takes no language on this side.
    """
    if languages is None or isinstance(languages, str):
        codes = [languages] * count
    else:
        check_list(languages, f"{side}_language")
        codes = list(languages)
        for index, code in enumerate(codes):
            if code is not None:
                check_string(code, f"{side}_language", index)
    if len(codes) != count:
        raise ValueError(f"{side}_language must be one code or one per text: got {len(codes)} for {count} texts.")
    role = config.source_language if side == "source" else config.target_language
    if role == "none":
        if unexpected := [code for code in codes if code is not None]:
            raise TextError(f"This model takes no {side} language: got {short_repr(unexpected[0])}; leave it out.")
        return [None] * count
    default = config.default_source_language if side == "source" else config.default_target_language
    codes = [default if code is None else code for code in codes]
    return [None if code is None else language_token_id(config, code) for code in codes]


def language_token_id(config: TokenizerConfig, code: str) -> int:
    """Return the id of a language's token.

    Raises:
        ValueError: If the model does not know the language; the message suggests similar codes.
    """
    if code in config.languages:
        return config.languages[code]
    suggestions = shorten(", ".join(_similar_codes(config, code) or sorted(config.languages)[:4]), 100)
    raise TextError(
        f"A language must be one of the {len(config.languages)} that the model knows: got {short_repr(code)}. "
        f"Similar codes are {suggestions}; the command info lists all."
    )


def _similar_codes(config: TokenizerConfig, code: str) -> list[str]:
    """Return up to four codes that begin with `code` or are spelled like it: "fr" may stand for "fra_Latn"."""
    prefix = code.casefold()
    completions = [name for name in sorted(config.languages) if name.casefold().startswith(prefix)] if code else []
    folded = {name.casefold(): name for name in config.languages}
    close = [folded[name] for name in difflib.get_close_matches(prefix, folded, n=4, cutoff=0.4)]
    return list(dict.fromkeys([*completions, *close]))[:4]


def require_language_ids(config: TokenizerConfig, side: str, ids: Sequence[int | None]) -> list[int]:
    """Return the ids; raise ValueError, with instructions, if one is None."""
    language_ids = [i for i in ids if i is not None]
    if len(language_ids) < len(ids):
        raise missing_language_error(config, side)
    return language_ids


def missing_language_error(config: TokenizerConfig, side: str) -> TextError:
    """Return the error for a text without a language."""
    example = "fra_Latn" if "fra_Latn" in config.languages else shorten(min(config.languages))
    return TextError(
        f"This model knows {len(config.languages)} languages and needs the {side} language: "
        f'--{side}-language {example} on the command line, {side}_language="{example}" in Python.'
    )
