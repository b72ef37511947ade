"""The language of a request's text, among those that the models read."""

from collections.abc import Sequence
from typing import NamedTuple

from mlx_transformer.documents.content import has_letters
from mlx_transformer.inference.language_detection import is_installed, rank_language
from mlx_transformer.server.settings import RequestError

MIN_TARGET_PROBABILITY = 0.9


class Detection(NamedTuple):
    """A language with its probability, which is 0 for a text without letters."""

    language: str
    probability: float


def detect(text: str, sources: Sequence[str]) -> Detection:
    """Return the most probable language of a text.

    Args:
        text: The text.
        sources: Codes of languages.

    Raises:
        RequestError: If the packages are not installed that detect languages, or they know none of these.
    """
    if not is_installed():
        raise RequestError(
            501,
            "This server does not detect languages: give the source language, see /languages, or install the extra "
            "detect where it runs.",
        )
    if sources and not has_letters(text):
        return Detection(sources[0], 0.0)
    if (ranked := rank_language(text, sources)) is None:
        raise RequestError(400, "The language of the text cannot be detected: give it as source, see /languages.")
    return Detection(*ranked)


def detect_source(text: str, sources: Sequence[str], target: str) -> Detection:
    """Return the most probable source language, or the target language of a text that is in it already.

    Short texts could be in many languages, so a text is in the target language only if that is very probable.
    """
    of_all = detect(text, [*sources, target])
    is_target = of_all.language not in sources and of_all.probability >= MIN_TARGET_PROBABILITY
    return of_all if is_target else detect(text, sources)
