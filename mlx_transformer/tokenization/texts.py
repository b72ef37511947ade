"""Checks of texts that callers give: lists of strings that can be encoded as UTF-8."""

from collections.abc import Iterable


class TextError(ValueError):
    """An error of one text or its languages, which does not concern the other texts of a batch."""


def check_texts(texts: Iterable[object], name: str) -> None:
    """Raise ValueError, with the index of the first bad text, unless an argument is a list of valid texts.

    Args:
        texts: The argument.
        name: Its name in the message.
    """
    check_list(texts, name)
    for index, text in enumerate(texts):
        check_string(text, name, index)
        check_unicode(str(text))


def check_list(texts: object, name: str) -> None:
    """Raise ValueError if an argument is one text, or nothing that has items, instead of a list of texts."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} must be a list of strings, not {texts!r:.60}: put a single text in a list.")


def check_string(text: object, name: str, index: int) -> None:
    """Raise ValueError, with the index from 0, if an item of a list of texts is not a string."""
    if error := string_error(text, f"{name}[{index}]"):
        raise ValueError(error)


def string_error(text: object, name: str) -> str | None:
    """Return what is wrong with a text that is not a string; None for a string."""
    return None if isinstance(text, str) else f"{name} must be a string, not {text!r:.60}."


def check_unicode(text: str) -> None:
    """Raise ValueError if a text cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"Text must be valid Unicode: {text[:40]!r} has a lone surrogate at position {error.start}; "
            "decode it from bytes as UTF-8."
        ) from error
