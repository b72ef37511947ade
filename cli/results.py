"""Answers to lines: what is generated from each, as a whole or sentence by sentence, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import click

import mlx_transformer as mt
from mlx_transformer.cli.input_lines import InputLine

GenerateFunction = Callable[..., Iterator[list[Any]]]  # generate_hypotheses, with all but lines and their languages


class LineResult(NamedTuple):
    """What is generated from a line.

    Attributes:
        line: The line.
        hypotheses: Its hypotheses, best first; where lines are split, the one that its sentences make together.
        sentences: Its sentences, each with its best hypothesis; None where lines are not split.
    """

    line: InputLine
    hypotheses: list[mt.Hypothesis]
    sentences: list[tuple[str, mt.Hypothesis]] | None = None


def generate_lines(windows: Iterable[list[InputLine]], generate: GenerateFunction) -> Iterator[LineResult]:
    """Answer each line as a whole."""
    count = 0
    for window in windows:
        found = generate(
            [line.text for line in window],
            source_language=[line.source_language for line in window],
            target_language=[line.target_language for line in window],
            target_prefix=[line.target_prefix for line in window],
            first_line=count,
        )
        for line, hypotheses in zip(window, found, strict=True):
            yield LineResult(line, hypotheses)
        count += len(window)


def stream_lines(windows: Iterable[list[InputLine]], stream: Callable[..., Iterator[str]]) -> Iterator[bytes]:
    """The text of each line in pieces, as they come; a newline inside a text would break the count of lines."""
    for number, line in enumerate(chain.from_iterable(windows)):
        languages = {"source_language": line.source_language, "target_language": line.target_language}
        for piece in stream(line.text, target_prefix=line.target_prefix, line=number, **languages):
            yield piece.replace("\n", " ").encode("utf-8", "replace")
        yield b"\n"


def generate_sentences(
    windows: Iterable[list[InputLine]],
    generate: GenerateFunction,
    model: mt.Transformer,
    tokenizer: mt.Tokenizer,
    prefix: str | None,
    language: str | None,
) -> Iterator[LineResult]:
    """Answer each line sentence by sentence; the rules of `language`, or of the line's own, tell where these end."""
    from mlx_transformer.inference.sentence_splitting import (
        Paragraph,
        combine_hypotheses,
        fits_model,
        generate_paragraphs,
        split_paragraph,
    )

    limit = model.config.encoder.max_length
    before = tokenizer.config.source_prefix if prefix is None else prefix

    def paragraph(line: InputLine) -> Paragraph:
        if line.target_prefix:
            raise ValueError(f"{line.name} cannot be split and have a target prefix: leave out one of them.")
        codes = (line.source_language, line.target_language)
        found = split_paragraph(
            line.text, lambda text: fits_model(before + text, limit, tokenizer, *codes), language or codes[0]
        )
        return found._replace(source_language=codes[0], target_language=codes[1])

    count = 0
    for window in windows:
        found = generate_paragraphs(map(paragraph, window), partial(generate, first_line=count))
        for line, (sentences, parts) in zip(window, found, strict=True):
            best = [hypotheses[0] for hypotheses in parts]
            yield LineResult(
                line, [combine_hypotheses(sentences, best)], list(zip(sentences.sentences, best, strict=True))
            )
            count += len(best)


def check_options(options: dict[str, Any]) -> None:
    """Refuse an option that does nothing without another one."""
    for name, needed in (
        ("alignment_layers", "alignments"),
        ("alignment_heads", "alignments"),
        ("sentence_language", "split_sentences"),
        ("seed", "temperature"),
    ):
        if options[name] not in (None, ()) and not options[needed]:
            option, other = name.removesuffix("s").replace("_", "-"), needed.replace("_", "-")
            raise click.UsageError(f"--{option} does nothing by itself: give --{other} as well.")
    if options["alternatives"] and (options["num_hypotheses"] or 1) < 2:
        raise click.UsageError("--alternatives gives several ways to go on: give --num-hypotheses 2 or more as well.")


def prepare_split(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a search for one hypothesis; an error, before the model is loaded, where no line can be split."""
    from mlx_transformer.inference.sentence_splitting import load_segmenter

    for name in ("num_hypotheses", "target_prefix", "alternatives"):
        if options[name] not in (None, 1):
            option = name.replace("_", "-")
            raise click.UsageError(f"--split-sentences gives one text for each line: leave out --{option}.")
    load_segmenter()
    return options | {"num_hypotheses": 1}


def prepare_stream(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a search for one hypothesis that is written as it comes; an error where that cannot be."""
    for name in ("as_json", "split_sentences", "alignments", "scores", "strict", "verbose"):
        if options[name]:
            option = name.removeprefix("as_").replace("_", "-")
            raise click.UsageError(f"--stream writes plain text as it comes: leave out --{option}.")
    for name in ("beam_size", "num_hypotheses"):
        if options[name] not in (None, 1):
            option = f"--{name.replace('_', '-')} {options[name]}"
            raise click.UsageError(f"--stream gives one hypothesis, whose words stay as they are: leave out {option}.")
    return options | {"beam_size": 1, "num_hypotheses": 1}


def format_text(answer: LineResult, count: int, scores: bool) -> bytes:
    """`count` lines, with tabs between score, text and alignment; a newline inside a text becomes a space."""
    from mlx_transformer.inference.alignment import format_pharaoh

    lines = []
    for hypothesis in answer.hypotheses:
        columns = [f"{hypothesis.score:.4f}"] if scores else []
        columns.append((hypothesis.text or "").replace("\n", " "))
        columns += [] if hypothesis.alignment is None else [format_pharaoh(hypothesis.alignment)]
        lines.append("\t".join(columns))
    lines += [""] * (count - len(lines))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def format_json(answer: LineResult, count: int, scores: bool, tokenizer: mt.Tokenizer) -> bytes:
    """One line; the single best hypothesis lies flat in the object, an n-best list under "hypotheses"."""
    rows = [hypothesis_fields(hypothesis, tokenizer) for hypothesis in answer.hypotheses]
    result = answer.line.fields | (rows[0] if count == 1 else {"hypotheses": rows})
    if answer.sentences is not None:
        result["sentences"] = [
            {"source": source} | hypothesis_fields(best, tokenizer) for source, best in answer.sentences
        ]
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def hypothesis_fields(hypothesis: mt.Hypothesis, tokenizer: mt.Tokenizer) -> dict[str, Any]:
    """A hypothesis as plain data."""
    asked = {"token_scores": hypothesis.token_scores, "alignment": hypothesis.alignment}
    return {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "tokens": tokenizer.tokens(hypothesis.ids),
        "finish_reason": hypothesis.finish_reason,
        "truncated": hypothesis.truncated,
        **{name: value for name, value in asked.items() if value is not None},
    }
