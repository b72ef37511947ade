"""Languages of a model for one pair, whose name tells them: it needs no codes, but its own ones are accepted."""

from __future__ import annotations

import re

import mlx_transformer as mt
from mlx_transformer.cli.input_lines import InputLine
from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.inference.source_lines import SourceLine, detect_source_language
from mlx_transformer.messages import short_repr
from mlx_transformer.weights.language_pairs import base_code, language_pair

CODE = re.compile(r"[a-z]{2,3}")


def leave_out_own_languages(
    model: str | None, tokenizer: mt.Tokenizer, source_language: str | None, target_language: str | None
) -> tuple[str | None, str | None]:
    """Return the languages to give to a model: None in place of the only ones of a model for one pair.

    Raises:
        ValueError: If a model for one pair is asked for another language; the message names a model that may know it.
    """
    if source_language == AUTO and tokenizer.config.source_language == "none":
        source_language = None
    languages, pair = (source_language, target_language), language_pair(model)
    if pair is None:
        return languages
    roles = (tokenizer.config.source_language, tokenizer.config.target_language)
    for side, code in enumerate(languages):
        if code is None or roles[side] != "none" or short_code(code) == pair[side]:
            continue
        wanted = [own if asked is None else short_code(asked) for asked, own in zip(languages, pair, strict=True)]
        is_code = all(map(CODE.fullmatch, wanted)) and wanted[0] != wanted[1]
        other = f"try --model Helsinki-NLP/opus-mt-{'-'.join(wanted)}" if is_code else "choose another model"
        raise ValueError(
            f"{model or 'The bundled model'} translates {pair[0]} to {pair[1]} only: for {short_repr(code)} {other}."
        )
    source, target = (None if role == "none" else code for role, code in zip(roles, languages, strict=True))
    return source, target


def short_code(code: str) -> str:
    """Return the two letters of a language's code, if it has them: fr of fr_FR and fra_Latn."""
    from mlx_transformer.inference.sentence_splitting import LANGUAGE_CODES

    base = base_code(code)
    return LANGUAGE_CODES.get(base, base)


def leave_out_languages_of_line(model: str | None, tokenizer: mt.Tokenizer, line: InputLine) -> InputLine:
    """Return a line without the languages that the model has anyway; one with others gets an error."""
    languages = line.source.source_language, line.source.target_language
    try:
        source, target = leave_out_own_languages(model, tokenizer, *languages)
    except ValueError as error:
        return line._replace(source=SourceLine(""), error=f"{line.name}: {error}")
    return line._replace(source=line.source._replace(source_language=source, target_language=target))


def detect_language_of_line(tokenizer: mt.Tokenizer, line: InputLine) -> InputLine:
    """Return a line with its detected language, also among the fields of its result, if its language is AUTO."""
    if line.error or line.source.source_language != AUTO:
        return line
    source = detect_source_language(tokenizer.config, line.source)
    if source.error:
        return line._replace(source=SourceLine(""), error=f"{line.name}: {source.error}")
    return line._replace(source=source, fields=line.fields | {"source_language": source.source_language})
