"""Answers to lines: what is generated from each, as a whole or sentence by sentence, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import click

import mlx_transformer as mt
from mlx_transformer.cli.lines import Line

Generate = Callable[..., Iterator[list[mt.Hypothesis]]]  # generate_hypotheses, but for lines and their languages


class Answer(NamedTuple):
    """What is generated from a line.

    Attributes:
        line: The line.
        hypotheses: Its hypotheses, best first; where lines are split, the one that its sentences make together.
        sentences: Its sentences, each with its best hypothesis; None where lines are not split.
    """

    line: Line
    hypotheses: list[mt.Hypothesis]
    sentences: list[tuple[str, mt.Hypothesis]] | None = None


def answer_whole(windows: Iterable[list[Line]], generate: Generate) -> Iterator[Answer]:
    """Answer each line as a whole."""
    for window in windows:
        found = generate(
            [line.text for line in window],
            source_language=[line.source_language for line in window],
            target_language=[line.target_language for line in window],
        )
        for line, hypotheses in zip(window, found, strict=True):
            yield Answer(line, hypotheses)


def answer_split(
    windows: Iterable[list[Line]],
    generate: Generate,
    model: mt.Transformer,
    tokenizer: mt.Tokenizer,
    prefix: str | None,
    language: str | None,
) -> Iterator[Answer]:
    """Answer each line sentence by sentence; the rules of `language`, or of the line's own, tell where these end."""
    from mlx_transformer.sentences import Paragraph, by_paragraph, combine, fits, split

    limit = model.config.encoder.max_length
    before = tokenizer.config.source_prefix if prefix is None else prefix

    def paragraph(line: Line) -> Paragraph:
        codes = (line.source_language, line.target_language)
        found = split(line.text, lambda text: fits(before + text, limit, tokenizer, *codes), language or codes[0])
        return found._replace(source_language=codes[0], target_language=codes[1])

    for window in windows:
        for line, (found, parts) in zip(window, by_paragraph(map(paragraph, window), generate), strict=True):
            best = [hypotheses[0] for hypotheses in parts]
            yield Answer(line, [combine(found, best)], list(zip(found.sentences, best, strict=True)))


def prepare_split(search: dict[str, Any]) -> dict[str, Any]:
    """The options of a search for one hypothesis; an error, before the model is loaded, where no line can be split."""
    from mlx_transformer.sentences import segmenter

    if (search["num_hypotheses"] or 1) > 1:
        raise click.UsageError("--split-sentences gives one text for each line: leave out --num-hypotheses.")
    segmenter()
    return search | {"num_hypotheses": 1}


def format_text(answer: Answer, count: int, scores: bool) -> bytes:
    """`count` lines; a newline inside a text would break the count, so it becomes a space."""
    texts = [(hypothesis.text or "").replace("\n", " ") for hypothesis in answer.hypotheses]
    if scores:
        texts = [f"{hypothesis.score:.4f}\t{text}" for hypothesis, text in zip(answer.hypotheses, texts, strict=True)]
    texts += [""] * (count - len(texts))
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "replace")


def format_json(answer: Answer, count: int, tokenizer: mt.Tokenizer) -> bytes:
    """One line; the single best hypothesis lies flat in the object, an n-best list under "hypotheses"."""
    rows = [describe(hypothesis, tokenizer) for hypothesis in answer.hypotheses]
    result = answer.line.fields | (rows[0] if count == 1 else {"hypotheses": rows})
    if answer.sentences is not None:
        result["sentences"] = [{"source": source} | describe(best, tokenizer) for source, best in answer.sentences]
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def describe(hypothesis: mt.Hypothesis, tokenizer: mt.Tokenizer) -> dict[str, Any]:
    """A hypothesis as plain data."""
    return {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "tokens": tokenizer.tokens(hypothesis.ids),
        "finish_reason": hypothesis.finish_reason,
        "truncated": hypothesis.truncated,
    }
