"""Catalogues of gettext, .po: entries without a translation get one, also their plural forms; others stay."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

import polib
from babel.core import UnknownLocaleError
from babel.messages.plurals import get_plural

from mlx_transformer.documents.accelerators import add_accelerator, split_accelerator
from mlx_transformer.documents.content import write
from mlx_transformer.documents.subtitles import parse_tags
from mlx_transformer.documents.translator import Translator

NUM_PLURALS = re.compile(r"nplurals\s*=\s*(\d{1,2})\b")
ORDERED = re.compile(r"%[\d.]*[sdif](?!\w)")  # placeholders whose order has a meaning
# What programs fill in where an entry has a flag such as c-format; a sign of per cent alone would be an error there.
DIRECTIVE = re.compile(
    r"%%|%(\(\w+\)|\d+\$)?[-+#0 ]*(?:[1-9*][\d*]*)?(?:\.[\d*]*)?(?:hh?|ll?|[Lqjzt])?[A-Za-z@]|%|\{[^{}]*\}"
)


def translate_po(text: str, name: str, translator: Translator) -> str:
    """Translate the entries that have no translation; those with other placeholders become fuzzy."""
    try:
        catalogue = polib.pofile(f"{text}\n", check_for_duplicates=False)  # with a line end it is no file name
    except (OSError, UnicodeError, ValueError, IndexError) as error:
        reason = re.sub(r"^.*?\(line (\d+)\)", r"line \1", str(error)).removeprefix("Syntax error in po file ")
        raise ValueError(f"{name} must be a catalogue of gettext: {reason}; repair it with msgfmt -c.") from None
    charset = re.search(r"charset=([\w-]+)", catalogue.metadata.get("Content-Type", ""))
    if charset and charset[1].upper() not in ("UTF-8", "UTF8", "ASCII", "US-ASCII", "CHARSET"):
        raise ValueError(f"{name} must be in UTF-8, not {charset[1]}: convert it with msgconv -t UTF-8.")
    if translator.language:
        _set_language(catalogue, translator.language)
    match = NUM_PLURALS.search(catalogue.metadata.get("Plural-Forms", ""))
    num_plurals = int(match[1]) if match else 2
    entries = [entry for entry in catalogue if not entry.obsolete and not entry.translated() and not entry.fuzzy]
    entries = [entry for entry in entries if not translator.leaves((f"{entry.msgid}\n{entry.msgid_plural}",))]
    sources = [[text for text in (entry.msgid, entry.msgid_plural) if text] for entry in entries]
    texts = _translate_texts([text for texts in sources for text in texts], translator)
    for entry, source in zip(entries, sources, strict=True):
        targets = [next(texts) for _ in source]
        if entry.msgid_plural:
            # Form 0 is that of one, except in languages whose only form it is.
            forms = {index: targets[index > 0 or num_plurals == 1] for index in range(num_plurals)}
            entry.msgstr_plural = {index: entry.msgstr_plural.get(index) or form for index, form in forms.items()}
        else:
            entry.msgstr = targets[0]
        if not all(_has_same_format(old, new, entry.flags) for old, new in zip(source, targets, strict=True)):
            entry.flags.append("fuzzy")
    result = str(catalogue)
    return result if text.startswith("#") else result.removeprefix("#\n")  # polib begins with a comment


def _has_same_format(source: str, target: str, flags: Iterable[str]) -> bool:
    """Whether programs can fill in a translation as they fill in its source."""
    if not any(flag.endswith("-format") and not flag.startswith("no-") for flag in flags):
        return ORDERED.findall(source) == ORDERED.findall(target)
    old, new = ([(match[0], match[1]) for match in DIRECTIVE.finditer(text)] for text in (source, target))
    # Those with a name or number may change their order.
    in_order = [[text for text, name in each if not name and text[0] == "%" and text != "%%"] for each in (old, new)]
    return in_order[0] == in_order[1] and sorted(text for text, _ in old) == sorted(text for text, _ in new)


def _set_language(catalogue: polib.POFile, language: str) -> None:
    """Set the language and the plural forms of a template, or of a catalogue that no one has begun to translate."""
    is_new = not any(entry.translated() or entry.fuzzy for entry in catalogue)
    metadata = catalogue.metadata
    if "Language" in metadata and (is_new or not metadata["Language"]):
        metadata["Language"] = language.replace("-", "_")
    if "Plural-Forms" in metadata and (is_new or "INTEGER" in metadata["Plural-Forms"]):
        with suppress(UnknownLocaleError, ValueError):
            metadata["Plural-Forms"] = get_plural(language.replace("-", "_")).plural_forms


def _translate_texts(texts: list[str], translator: Translator) -> Iterator[str]:
    """Yield the translation of each text, between line ends and tabs, with its tags and its accelerator."""
    labels = [split_accelerator(text) for text in texts]
    parts = [re.split("([\n\t]+)", text) for text, *_ in labels]
    contents = iter(translator.translate_contents(parse_tags(part) for each in parts for part in each))
    translated = ("".join(write(next(contents)) for _ in each) for each in parts)
    return (add_accelerator(text, *accelerator) for text, (_, *accelerator) in zip(translated, labels, strict=True))
