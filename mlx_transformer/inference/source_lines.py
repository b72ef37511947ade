"""Source lines: a text with its languages and prefixes, from the caller to the search."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import NamedTuple, TypeVar, cast

from mlx_transformer.config.terminology import PROTECTED_PATTERNS
from mlx_transformer.config.tokenizer import AUTO, TokenizerConfig
from mlx_transformer.inference.language_detection import detect_language
from mlx_transformer.messages import short_repr
from mlx_transformer.tokenization.normalization import is_blank
from mlx_transformer.tokenization.texts import TextError, check_list, string_error

PerLineText = str | Iterable[str | None] | None  # one text for all lines, or one for each
Item = TypeVar("Item")
KINDS_WITHOUT_CASE = ("urls", "addresses", "placeholders", "tags")  # parts of a text that keep their case
WITHOUT_CASE = re.compile(f"({'|'.join(map(PROTECTED_PATTERNS.__getitem__, KINDS_WITHOUT_CASE))})")

FIRST_LETTER = re.compile(r"[^\W\d_]")


class SourceLine(NamedTuple):
    """A source text with the settings of its line.

    Attributes:
        text: The text; `prepare_lines` puts a prefix before it.
        source_language: Language code of the text, or AUTO to detect it; None for models that need none.
        target_language: Language code to generate; None for models that need none.
        target_prefix: Text that the target begins with; None or blank for none.
        start: Index in `text` at which the line itself begins, after an added prefix.
        required_phrases: Texts that the target must contain, in this order; they need a beam search.
        recase: Whether the line was in capitals: its texts are lower-cased, and its results are put in capitals.
        error: Why the line has no result, known before it is tokenized; its text is empty then.
    """

    text: str
    source_language: str | None = None
    target_language: str | None = None
    target_prefix: str | None = None
    start: int = 0
    required_phrases: tuple[str, ...] = ()
    recase: bool = False
    error: str | None = None


def as_list(texts: Iterable[Item], name: str) -> Iterable[Item]:
    """Return texts; a single text becomes a list of one. Raises ValueError, with their name, for what is no list."""
    if isinstance(texts, str | SourceLine):
        return cast(list[Item], [texts])
    check_list(texts, name)
    return texts


def make_source_lines(
    texts: Iterable[str | SourceLine],
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    target_prefix: PerLineText = None,
    name: str = "texts",
) -> Iterator[SourceLine]:
    """Combine texts with their settings; a text that is a SourceLine already keeps its own.

    A line of which a text or a setting is not a string has an `error`.

    Args:
        texts: The texts, or a single one.
        source_language: Language code of the texts, or one for each.
        target_language: Language code to generate, or one for each.
        target_prefix: Text that the targets begin with, or one for each.
        name: Name of the texts in error messages, a plural.

    Raises:
        ValueError: If the texts or the values of a setting are no list, or if a setting is given per line and has fewer
            values than there are lines.
    """
    texts = as_list(texts, name)
    columns = [
        _setting_of_each_line("source_language", source_language),
        _setting_of_each_line("target_language", target_language),
        _setting_of_each_line("target_prefix", target_prefix),
    ]
    for index, text in enumerate(texts):
        try:
            source, target, prefix = [next(column) for column in columns]  # StopIteration ends a generator silently
        except StopIteration:
            raise ValueError(
                f"Languages and target prefixes must be one for all lines or one for each: line {index + 1} lacks one."
            ) from None
        line = text if isinstance(text, SourceLine) else SourceLine(text, source, target, prefix)
        error = string_error(line.text, f"The {name.removesuffix('s')}")
        for field in ("source_language", "target_language", "target_prefix"):
            value = line._asdict()[field]
            error = error or (None if value is None else string_error(value, field))
        yield SourceLine("", error=error) if error else line


def _setting_of_each_line(name: str, setting: PerLineText) -> Iterator[str | None]:
    """Yield a setting that is one for all lines or one for each."""
    if setting is None or isinstance(setting, str):
        yield from repeat(setting)
    else:
        check_list(setting, name)
        yield from setting


def check_lines(lines: Iterable[SourceLine]) -> None:
    """Raise TextError for a line that has an error."""
    for line in lines:
        if line.error:
            raise TextError(line.error)


def prepare_lines(
    config: TokenizerConfig, lines: Iterable[SourceLine], source_prefix: str | None
) -> Iterator[SourceLine]:
    """Put the source prefix before each line that does not begin with it; blank lines become empty.

    If the tokenizer's configuration says so, lines in capitals are lower-cased, unless their target prefix is not in
    capitals.

    Args:
        config: The tokenizer's configuration, which has the model's own prefix.
        lines: Lines without a prefix.
        source_prefix: The prefix; the model's own if None, no prefix if empty.
    """
    prefix = config.source_prefix if source_prefix is None else source_prefix
    for line in lines:
        line = detect_source_language(config, line)
        blank = is_blank(line.text)
        added = "" if blank or line.text.startswith(prefix) else prefix
        if config.recase and is_in_capitals(line.text) and not has_lowercase(target_prefix := line.target_prefix or ""):
            phrases = tuple(map(lowercase, line.required_phrases))
            line = line._replace(text=capitalize(line.text), target_prefix=capitalize(target_prefix))
            line = line._replace(required_phrases=phrases, recase=True)
        yield line._replace(text="" if blank else added + line.text, start=len(added))


def detect_source_language(config: TokenizerConfig, line: SourceLine) -> SourceLine:
    """Return a line with the detected language if its source language is AUTO; with an error if there is none.

    Models that take no source language are given none.
    """
    if line.source_language != AUTO:
        return line
    if config.source_language == "none":
        return line._replace(source_language=None)
    language = None if is_blank(line.text) else detect_language(line.text, config.languages)
    if language is None and not is_blank(line.text):
        error = f"No language of the model can be detected in {short_repr(line.text)}: give its source language."
        return line._replace(text="", source_language=None, error=error)
    return line._replace(source_language=language)


def is_in_capitals(text: str) -> bool:
    """Whether a text has several words with letters, all of them capitals; a single word may be an abbreviation.

    As in the functions below, URLs, addresses, placeholders and tags do not count, and keep their case.
    """
    words = WITHOUT_CASE.sub(" ", text).split()
    return not has_lowercase(text) and sum(word.lower() != word for word in words) > 1


def has_lowercase(text: str) -> bool:
    """Whether a text has lower-case letters."""
    return uppercase(text) != text


def uppercase(text: str) -> str:
    """Return a text in capitals."""
    return _change_case(text, str.upper)


def lowercase(text: str) -> str:
    """Return a text in lower case."""
    return _change_case(text, str.lower)


def _change_case(text: str, change: Callable[[str], str]) -> str:
    parts = WITHOUT_CASE.split(text)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)


def capitalize(text: str) -> str:
    """Return a text in lower case, with a capital at its beginning."""
    parts = WITHOUT_CASE.split(text)
    for index in range(0, len(parts), 2):
        lower = parts[index].lower()
        is_first = not any(map(str.isalpha, "".join(parts[:index])))
        parts[index] = FIRST_LETTER.sub(lambda match: match[0].upper(), lower, count=1) if is_first else lower
    return "".join(parts)


def uppercase_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a text that arrives in pieces in capitals, word by word."""
    word = ""
    for piece in pieces:
        *words, word = re.split(r"(?<=\s)", word + piece)
        yield from map(uppercase, words)
    if word:
        yield uppercase(word)
