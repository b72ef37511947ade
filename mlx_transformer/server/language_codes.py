"""Codes of languages as clients write them, such as fr or zh-Hans, and their names in English."""

import re
from collections.abc import Iterable
from functools import cache

from mlx_transformer.pretrained.known_models import read_table

Codes = dict[str, str | None]  # codes that clients use -> the model's own, None where it takes none
# Codes that stand for others, in small letters: of Chinese by country, and old ones of LibreTranslate.
ALIASES = {"zh": "zh-hans", "zh-cn": "zh-hans", "zh-tw": "zh-hant", "zh-hk": "zh-hant", "zt": "zh-hant", "pb": "pt-br"}
VARIETIES = {"Hans": "simplified", "Hant": "traditional"}


def client_codes(codes: Iterable[str]) -> Codes:
    """Map codes to themselves, and before them those of clients: fr for fra_Latn, zh-Hans where there are two scripts.

    Args:
        codes: The model's own codes.
    """
    codes = list(codes)
    tags = [_split(code) for code in codes]
    bases = [base for base, _ in tags]
    shorts: Codes = {
        base if bases.count(base) == 1 else "-".join([base, *others]): code
        for code, (base, others) in zip(codes, tags, strict=True)
    }
    return shorts | {code: code for code in codes}


def distinct_codes(codes: Codes) -> list[str]:
    """Return one code of each language, the shortest."""
    firsts: dict[str, str] = {}
    for code, own in codes.items():
        firsts.setdefault(own or code, code)
    return list(firsts.values())


def find_code(code: str, known: Iterable[str]) -> str | None:
    """Return a known code: the same in any spelling, or that of the language without script and region."""
    known = list(known)
    if code in known:
        return code
    tags: dict[str, str] = {}
    for name in known:
        tags.setdefault(_tag(name), name)
    alias = ALIASES.get(tag := _tag(code), tag)
    base = alias.partition("-")[0]
    return next((tags[each] for each in (tag, alias, base, ALIASES.get(base)) if each in tags), None)


def language_name(code: str) -> str:
    """Return the name of a language, with its script or region if the code has one; the code if it is unknown."""
    base, others = _split(code)
    if base not in (languages := read_table().languages):
        return code
    varieties = ", ".join(VARIETIES.get(other, other) for other in others)
    return f"{languages[base][-1]} ({varieties})" if others else languages[base][-1]


@cache
def _split(code: str) -> tuple[str, list[str]]:
    """Return the language of a code, in two letters where it has such a code, and its script and region."""
    base, *others = re.split("[-_]", code)
    base = base.casefold()
    return _other_codes().get(base, base), [each.title() if len(each) == 4 else each.upper() for each in others]


def _tag(code: str) -> str:
    base, others = _split(code)
    return "-".join([base, *others]).casefold()


@cache
def _other_codes() -> dict[str, str]:
    """Return the code of the table of known models for each other code of a language."""
    return {other.casefold(): code for code, (*others, _) in read_table().languages.items() for other in others}
