"""Models that are known to convert: their tasks, languages, sizes and licences, and a search among them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from mlx_transformer.config.serialization import check_positive, check_type, check_types, from_dict
from mlx_transformer.messages import short_repr, similar_names
from mlx_transformer.pretrained.cache import is_repository_id

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # its backport to Python 3.10

TABLE = "known_models.toml"
BUNDLED = "bundled"
ENGLISH = "en"
Task = Literal["translation", "summarisation", "instructions", "grammar", "embedding"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class KnownModel:
    """A model that is known to convert.

    Attributes:
        name: owner/name on the hub, or "bundled".
        task: What it was trained for.
        sources: The languages that it reads, as codes of two letters, or three for those without one. The model itself
            may spell them differently.
        targets: The languages that it writes.
        megabytes: About how much is downloaded: the size of its weights in float32.
        licence: Its licence, or where to find it.
        family: The family that it is converted as; None for the bundled model, which needs no conversion.
        note: What else to know; may be empty.
    """

    name: str
    task: Task
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    megabytes: int
    licence: str
    family: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "megabytes")
        if self.name != BUNDLED and not is_repository_id(self.name):
            raise ValueError(f"name must be owner/name on the hub, not {short_repr(self.name)}.")
        if not (self.sources and self.targets and self.licence):
            raise ValueError(f"{self.name} must have sources, targets and a licence.")

    def has_languages(self, source: str | None, target: str | None) -> bool:
        """Whether the model reads one language and writes another; None stands for any."""
        if self.task == "translation" and source is not None and source == target:
            return False
        return (source is None or source in self.sources) and (target is None or target in self.targets)


@dataclass(frozen=True)
class ModelTable:
    """The known models, and the languages that they know.

    Attributes:
        models: The models, those of one pair of languages first.
        languages: The code of each language -> other codes and, last, its name in English.
    """

    models: tuple[KnownModel, ...]
    languages: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        check_types(self)
        codes = {code for model in self.models for code in (*model.sources, *model.targets)}
        if unknown := sorted(codes - self.languages.keys()):
            raise ValueError(f"languages must have all codes of the models, but {unknown[0]} is missing.")


@cache
def read_table() -> ModelTable:
    """Return the table of known models, which is a file of the package.

    Raises:
        ValueError: If it is invalid.
    """
    return parse_table(files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))


def parse_table(text: str) -> ModelTable:
    """Return a table of known models for its text in TOML; ValueError if it is invalid."""
    data = tomllib.loads(text)
    models = [model for fields in data["models"] for model in _expand_models(fields, data["groups"])]
    languages = {code: tuple(names) for code, names in data["languages"].items()}
    return ModelTable(tuple(models), languages)


def _expand_models(fields: dict[str, Any], groups: dict[str, str]) -> Iterator[KnownModel]:
    """Yield the models of an entry: one for each of its pairs of languages, or one with lists of languages."""
    fields = dict(fields)
    for pair in fields.pop("pairs", "").split() or [None]:
        if pair is not None:
            source, _, target = pair.partition("-")
            fields |= {"sources": source, "targets": target}
        sides = {side: _expand_groups(fields[side], groups) for side in ("sources", "targets")}
        name = fields["name"].replace("{pair}", pair or "")
        yield from_dict(KnownModel, fields | sides | {"name": name}, f"{TABLE}: {name}")


def _expand_groups(text: str, groups: dict[str, str]) -> list[str]:
    """Return the codes of languages in a text, in which words may be names of groups."""
    return [code for word in text.split() for code in groups.get(word, word).split()]


def known_models(
    *words: str, source_language: str | None = None, target_language: str | None = None, task: str | None = None
) -> list[KnownModel]:
    """Return models that are known to convert, those of one pair of languages first; without arguments all.

    Args:
        words: Parts of names, families, tasks or notes, or names of languages; a model has all of them.
        source_language: A language that the model reads: a code such as fr, fra or fra_Latn, or its name in English.
        target_language: A language that it writes.
        task: One of "translation", "summarisation", "instructions", "grammar" and "embedding".

    Raises:
        ValueError: If a language or the task is unknown.
    """
    for word in words:
        check_type("A word", word, str)
    source = find_language("source_language", source_language)
    target = find_language("target_language", target_language)
    if task is not None:
        check_type("task", task, Task)
    models = [model for model in read_table().models if task in (None, model.task)]
    models = [model for model in models if model.has_languages(source, target)]
    return [model for model in models if all(_has_word(model, word) for word in words)]


def _has_word(model: KnownModel, word: str) -> bool:
    """Whether a word is part of what the table says about a model, or the name of one of its languages."""
    word, languages = word.casefold(), read_table().languages
    text = f"{model.name} {model.family} {model.task} {model.note}".casefold()
    return word in text or any(languages[code][-1].casefold() == word for code in (*model.sources, *model.targets))


def find_language(name: str, language: str | None) -> str | None:
    """Return the table's code of a language, None for None; ValueError, which begins with `name`, if it is unknown."""
    if language is None:
        return None
    check_type(name, language, str)
    languages = read_table().languages
    codes = {other.casefold(): code for code, others in languages.items() for other in (code, *others)}
    spelling = language.strip().casefold()
    code = codes.get(spelling) or codes.get(spelling.replace("-", "_").partition("_")[0])  # fra_Latn, pt-BR
    if code is None:
        raise ValueError(
            f"{name} must be a language of a known model, such as fr or French, not {short_repr(language)}. "
            f"{similar_names(language, [*languages, *(names[-1] for names in languages.values())])}"
        )
    return code


def pivot_models(source_language: str, target_language: str) -> tuple[KnownModel, KnownModel] | None:
    """Return two models that translate through English one after the other; None if there are none.

    Raises:
        ValueError: If a language is unknown.
    """
    to_english = known_models(source_language=source_language, target_language=ENGLISH, task="translation")
    from_english = known_models(source_language=ENGLISH, target_language=target_language, task="translation")
    # Multilingual models need no pivot.
    first = next((model for model in to_english if model.targets == (ENGLISH,)), None)
    second = next((model for model in from_english if model.sources == (ENGLISH,)), None)
    return (first, second) if first is not None and second is not None else None
