"""Detection of the language of a text among those of a model, with py3langid (Lui and Baldwin 2012, "langid.py")."""

import copy
import functools
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from mlx_transformer.messages import install_command
from mlx_transformer.tokenization.texts import check_list, check_texts, string_error


def detect_language(text: str, codes: Iterable[str]) -> str | None:
    """Return the code of the language that a text is most likely written in.

    Args:
        text: The text. In one or two words, languages that are related are often confused.
        codes: Language codes to choose from, such as `tokenizer.languages`: "fr", "fra_Latn" or "fr_XX". Those that
            cannot be detected are ignored; of several for one language, such as "zho_Hans" and "zho_Hant", the first
            one stands for all.

    Returns:
        One of the codes; None if the text has no letters, or none of the codes can be detected.

    Raises:
        ValueError: If the text is not a string, or py3langid and langcodes are not installed.
    """
    ranked = rank_language(text, codes)
    return None if ranked is None else ranked[0]


def rank_language(text: str, codes: Iterable[str]) -> tuple[str, float] | None:
    """Return the most probable language, with its probability among all of these; see `detect_language`."""
    if error := string_error(text, "text"):
        raise ValueError(error)
    check_list(codes, "codes")
    codes = tuple(codes)
    check_texts(codes, "codes")
    identifier, code_of_label = _make_identifier(codes)
    if not code_of_label or not any(map(str.isalpha, text)):
        return None
    label, probability = identifier.classify(text)
    if len(code_of_label) == 1:  # compare it with all languages, or it would be certain
        probability = dict(_load_identifier().rank(text))[label]
    return code_of_label[label], probability


def is_installed() -> bool:
    """Whether the packages that detect languages are installed."""
    return all(map(find_spec, ("py3langid", "langcodes")))


@functools.lru_cache(maxsize=8)
def _make_identifier(codes: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """Return an identifier of some languages, and the code of each of its labels."""
    identifier = copy.copy(_load_identifier())
    labels, code_of_label = frozenset(identifier.labels), dict[str, str]()
    for code in codes:
        if label := _find_label(code, labels):
            code_of_label.setdefault(label, code)
    identifier.set_languages([*code_of_label])
    return identifier, code_of_label


@functools.cache
def _load_identifier() -> Any:
    """Load the identifier of all languages, which takes a second."""
    try:
        import langcodes  # noqa: F401
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ValueError(f"Languages are detected by py3langid and langcodes: {install_command('detect')}.") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _find_label(code: str, labels: frozenset[str]) -> str | None:
    """Return the identifier's label of a model's language code: of the language, or of what it is a variety of."""
    import langcodes

    tag = code.replace("_", "-")
    for macro in (False, True):
        try:
            language = langcodes.standardize_tag(tag, macro=macro).split("-")[0]
        except ValueError:  # LanguageTagError: no language code
            return None
        if language in labels:
            return language
    return None
