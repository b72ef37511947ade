"""Translation through a third language: each line becomes its translation before it is translated again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import mlx_transformer as mt
from mlx_transformer.cli.input_lines import InputLine
from mlx_transformer.cli.options import check_languages
from mlx_transformer.cli.results import LineResult
from mlx_transformer.inference.source_lines import SourceLine


def check_pivot(
    tokenizer: mt.Tokenizer, language: str, source_language: str | None, target_language: str | None
) -> None:
    """Raise ValueError if a model cannot translate through a language, or it is one of the pair."""
    if not tokenizer.languages:
        raise ValueError(
            "--via needs a model of several languages: pipe the result of one model for a pair of languages into the "
            "command generate with the other."
        )
    if language in (source_language, target_language):
        raise ValueError(f"--via must be a third language, but {language} is the source or the target: leave it out.")
    check_languages(tokenizer, source_language, language)
    if tokenizer.config.source_language != "none":
        check_languages(tokenizer, language, language)


def translate_to_pivot(
    windows: Iterable[list[InputLine]],
    translate: Callable[[Iterable[list[InputLine]]], Iterator[LineResult]],
    language: str,
    takes_source: bool,
) -> Iterator[list[InputLine]]:
    """Replace lines by their translations, which they keep as `pivot`.

    Args:
        windows: Lines with their languages.
        translate: Translates windows of lines.
        language: The third language.
        takes_source: Whether the model is told the language of its sources.
    """
    for window in windows:
        to_pivot = [
            line._replace(source=line.source._replace(target_language=language, target_prefix=None)) for line in window
        ]
        answers = translate([to_pivot])
        yield [
            _pivot_line(line, answer, language if takes_source else None)
            for line, answer in zip(window, answers, strict=True)
        ]


def _pivot_line(line: InputLine, answer: LineResult, source_language: str | None) -> InputLine:
    if answer.error:
        return line._replace(source=SourceLine(""), error=answer.error)
    best = answer.hypotheses[0]
    source = line.source._replace(text=best.text or "", source_language=source_language)
    return line._replace(source=source, pivot=best)


def with_faults_of_pivot(answer: LineResult) -> LineResult:
    """Return a result that also has what its pivot was: truncated, too short, without some terms."""
    pivot = answer.line.pivot
    if pivot is None or answer.error:
        return answer
    hypotheses = [
        replace(
            hypothesis,
            truncated=pivot.truncated or hypothesis.truncated,
            too_short=pivot.too_short or hypothesis.too_short,
            missing_terms=tuple(dict.fromkeys(pivot.missing_terms + hypothesis.missing_terms)),
        )
        for hypothesis in answer.hypotheses
    ]
    return answer._replace(hypotheses=hypotheses)
