"""Languages of models for one pair, whose names tell them."""

import re
from pathlib import Path

BUNDLED = ("en", "fr")
PAIR = re.compile(r"opus-mt-([a-z]{2})-([a-z]{2})")  # longer codes may stand for groups of languages: mul, roa


def language_pair(model: str | None) -> tuple[str, str] | None:
    """Return the source and the target language of a model for one pair; None if its name does not tell them."""
    if model in (None, "bundled"):
        return BUNDLED
    match = PAIR.fullmatch(Path(model or "").name)
    return (match[1], match[2]) if match else None


def base_code(code: str) -> str:
    """Return the language of a code without script and region: fr of fr_FR."""
    return re.split("[-_]", code.casefold())[0]
