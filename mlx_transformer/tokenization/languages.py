"""Language codes and the ids of their tokens."""

import difflib
import re
from collections.abc import Sequence

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.messages import short_repr, shorten
from mlx_transformer.tokenization.texts import TextError, check_list, check_string

# ISO 639-3 codes -> the codes of two letters that models for one pair and sentence splitters use.
SHORT_CODES = dict(
    pair.split("=")
    for pair in """
    amh=am ara=ar arb=ar ben=bn bul=bg cat=ca ces=cs dan=da deu=de ell=el eng=en spa=es fin=fi fra=fr glg=gl guj=gu
    hat=ht hin=hi hye=hy ita=it jpn=ja kan=kn kaz=kk ltz=lb mal=ml mar=mr mya=my nld=nl oci=oc pan=pa pol=pl por=pt
    rus=ru slk=sk tam=ta tat=tt tel=te ukr=uk
    """.split()
)
LanguageCodes = str | Sequence[str | None] | None  # one code for all texts, or one per text; None for the default


def short_code(code: str) -> str:
    """Return the code of a language without script and region, in two letters if it has them: fr for fra_Latn."""
    base = re.split("[-_]", code.casefold())[0]
    return SHORT_CODES.get(base, base)


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
        for code in codes:
            check_only_language(config, side, code)
        return [None] * count
    default = config.default_source_language if side == "source" else config.default_target_language
    codes = [default if code is None else code for code in codes]
    return [None if code is None else language_token_id(config, code) for code in codes]


def check_only_language(config: TokenizerConfig, side: str, code: str | None) -> None:
    """Raise ValueError if a code is not that of the only language that the model has on this side.

    Args:
        config: The tokenizer's config, which has no tokens for languages of this side.
        side: "source" or "target".
        code: The code; None is always right.
    """
    pair = config.language_pair
    index = ("source", "target").index(side)
    if code is None or (pair is not None and short_code(code) == pair[index]):
        return
    if pair is None:
        raise TextError(f"This model takes no {side} language: got {short_repr(code)}; leave it out.")
    others = f"--from {short_code(code)}" if side == "source" else f"--from {pair[0]} --to {short_code(code)}"
    raise TextError(
        f"This model translates {pair[0]} to {pair[1]} only: for {short_repr(code)} choose another. Known ones are "
        f"listed by: mlx-transformer models search {others}"
    )


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
