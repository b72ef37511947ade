"""Results of input lines: generated as a whole, as a stream or sentence by sentence, and formatted as text or JSON."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import click

import mlx_transformer as mt
from mlx_transformer.cli.input_lines import InputLine, escape_control_characters
from mlx_transformer.cli.progress import activity
from mlx_transformer.inference.source_lines import SourceLine

GenerateFunction = Callable[..., Iterator[list[Any]]]  # `mt.generate_hypotheses` with all arguments but the lines


class MayFail(Protocol):
    """The result of a line, or why there is none."""

    @property
    def error(self) -> str | None:
        """Why the line has no result, with the name of the line."""


Result = TypeVar("Result", bound=MayFail)


class LineResult(NamedTuple):
    """The result of a line.

    Attributes:
        line: The line.
        hypotheses: Its hypotheses, best first; with split sentences, their combination.
        sentences: Its sentences with their best hypotheses; None if the line is not split.
    """

    line: InputLine
    hypotheses: list[mt.Hypothesis]
    sentences: list[tuple[str, mt.Hypothesis]] | None = None

    @property
    def error(self) -> str | None:
        """Why the line has no result, with the name of the line."""
        error = self.hypotheses[0].error
        return f"{self.line.name}: {error}" if error else self.line.error


class FailedLines:
    """Reports lines without a result: their errors go to standard error, unless the results hold them (JSON)."""

    def __init__(self, in_results: bool) -> None:
        self.in_results = in_results
        self.count = 0
        self.first = ""

    def report(self, error: str) -> None:
        """Count a line, and print its error."""
        self.count += 1
        self.first = self.first or escape_control_characters(error)
        if not self.in_results:
            activity.print_line(f"Error: {escape_control_characters(error)}", err=True)

    def watch(self, results: Iterable[Result]) -> Iterator[Result]:
        """Report the failed lines among results as they pass through."""
        for result in results:
            if result.error:
                self.report(result.error)
            yield result

    def check(self) -> None:
        """End the command with exit status 1 if lines have failed; if the results hold the errors, with the first."""
        if self.count and self.in_results:
            one, many = '1 of the results has an "error":', f'{self.count} of the results have an "error"; the first:'
            raise click.ClickException(f"{one if self.count == 1 else many} {self.first}")
        if self.count:
            raise click.exceptions.Exit(1)


def generate_lines(
    windows: Iterable[list[InputLine]],
    generate: GenerateFunction,
    split: Callable[[SourceLine], Any],
    num_distinct: int | None = None,
) -> Iterator[LineResult]:
    """Generate from each line as a whole, or sentence by sentence if `split`, which returns a Paragraph, splits it.

    With `num_distinct`, so many hypotheses are kept, and of those whose texts look alike only the best.
    """
    from mlx_transformer.inference.sentence_splitting import combine_hypotheses, generate_paragraphs

    count = 0
    for window in windows:
        paragraphs = (split(line.source) for line in window)
        results = generate_paragraphs(paragraphs, partial(generate, first_line=count, return_errors=True))
        for line, (paragraph, rows) in zip(window, results, strict=True):
            count += len(rows)
            if paragraph.is_whole:
                yield LineResult(line, distinct_texts(rows[0])[:num_distinct] if num_distinct else rows[0])
                continue
            best = [row[0] for row in rows]
            sentences = list(zip(paragraph.sentences, best, strict=True))
            yield LineResult(line, [combine_hypotheses(paragraph, best)], sentences)


def distinct_texts(hypotheses: list[mt.Hypothesis]) -> list[mt.Hypothesis]:
    """Return hypotheses without those whose text differs from that of a better one only in spaces or invisibly."""
    first: dict[str, mt.Hypothesis] = {}
    for hypothesis in hypotheses:
        first.setdefault(" ".join(unicodedata.normalize("NFKC", hypothesis.text or "").split()), hypothesis)
    return list(first.values())


def stream_lines(
    windows: Iterable[list[InputLine]], stream: Callable[..., Iterator[str]], failed: FailedLines
) -> Iterator[bytes]:
    """Yield the text of each line in pieces, as it is generated; line feeds inside a text become spaces."""
    from mlx_transformer.inference.line_errors import error_of_line

    for number, line in enumerate(chain.from_iterable(windows)):
        if line.error:
            failed.report(line.error)
        try:
            for piece in stream(line.source, line=number):
                yield piece.replace("\n", " ").encode("utf-8", "replace")
        except Exception as error:
            if (message := error_of_line(error)) is None:
                raise
            failed.report(f"{line.name}: {message}")
        yield b"\n"


def reject_prefix(line: InputLine) -> InputLine:
    """Return a line to split; one with a target prefix gets an error."""
    if not line.source.target_prefix:
        return line
    error = f"{line.name} cannot be split and have a target prefix: leave out one of them."
    return line._replace(source=SourceLine(""), error=error)


def check_options(options: dict[str, Any]) -> None:
    """Raise UsageError for options that have no effect without another option."""
    for name, needed in (
        ("alignment_layers", "alignments"),
        ("alignment_heads", "alignments"),
        ("sentence_language", "split_sentences"),
        ("seed", "temperature"),
    ):
        without = options[needed] is False if needed == "split_sentences" else not options[needed]
        if options[name] not in (None, ()) and without:
            option, other = name.removesuffix("s").replace("_", "-"), needed.replace("_", "-")
            raise click.UsageError(f"--{option} has no effect on its own: give --{other} as well.")
    if options["via"] and options["glossary"]:
        raise click.UsageError("Give --via or --glossary, not both: a glossary has terms of two languages.")
    if options["alternatives"] and (options["num_hypotheses"] or 1) < 2:
        raise click.UsageError("--alternatives needs several hypotheses: give --num-hypotheses 2 or more as well.")


def choose_formats(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the formats of input and output, of which --json sets both."""
    usual = "json" if options["as_json"] else "text"
    return options | {name: options[name] or usual for name in ("input_format", "output_format")}


def prepare_split(options: dict[str, Any]) -> dict[str, Any]:
    """Set the search options for split sentences, and raise errors before the model is loaded."""
    for name in ("num_hypotheses", "target_prefix", "alternatives"):
        if options[name] not in (None, 1):
            option = name.replace("_", "-")
            raise click.UsageError(f"--split-sentences gives one text per line: leave out --{option}.")
    return options | {"num_hypotheses": 1}


def prepare_stream(options: dict[str, Any]) -> dict[str, Any]:
    """Set the search options for streaming; raise UsageError for options that it does not support."""
    if options["output_format"] == "json":
        option = "--json" if options["as_json"] else "--output-format json"
        raise click.UsageError(f"--stream writes plain text as it is generated: leave out {option}.")
    for name in ("split_sentences", "alignments", "scores", "strict", "verbose"):
        if options[name]:
            option = name.replace("_", "-")
            raise click.UsageError(f"--stream writes plain text as it is generated: leave out --{option}.")
    for name in ("beam_size", "num_hypotheses"):
        if options[name] not in (None, 1):
            option = f"--{name.replace('_', '-')} {options[name]}"
            raise click.UsageError(
                f"--stream writes one hypothesis, whose words cannot change any more: leave out {option}."
            )
    return options | {"beam_size": 1, "num_hypotheses": 1}


def format_text(answer: LineResult, count: int, scores: bool) -> bytes:
    """Format `count` lines with tabs between score, text and alignment.

    Line feeds inside a text become spaces, and so do tabs if there are other columns.
    """
    from mlx_transformer.inference.alignment import format_pharaoh

    lines = []
    for hypothesis in answer.hypotheses:
        columns = [f"{hypothesis.score:.4f}"] if scores else []
        text = (hypothesis.text or "").replace("\n", " ")
        columns.append(text.replace("\t", " ") if scores or hypothesis.alignment is not None else text)
        columns += [] if hypothesis.alignment is None else [format_pharaoh(hypothesis.alignment)]
        lines.append("" if answer.error else "\t".join(columns))
    lines += [""] * (count - len(lines))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def format_json(answer: LineResult, count: int, scores: bool, tokenizer: mt.Tokenizer) -> bytes:
    """Format one JSON line; a single hypothesis is merged into the object, an n-best list is under "hypotheses"."""
    if answer.error:
        return to_json_line(answer.line.fields | {"error": answer.error})
    rows = [hypothesis_fields(hypothesis, tokenizer) for hypothesis in answer.hypotheses]
    via = {} if answer.line.pivot is None else {"via": answer.line.pivot.text}
    result = answer.line.fields | via | (rows[0] if count == 1 else {"hypotheses": rows})
    if answer.sentences is not None:
        result["sentences"] = [
            {"source": source} | hypothesis_fields(best, tokenizer) for source, best in answer.sentences
        ]
    return to_json_line(result)


def to_json_line(fields: dict[str, Any]) -> bytes:
    """Return an object as one line of JSON."""
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def hypothesis_fields(hypothesis: mt.Hypothesis, tokenizer: mt.Tokenizer) -> dict[str, Any]:
    """Return a hypothesis as plain data."""
    optional = {
        "missing_terms": hypothesis.missing_terms or None,
        "token_scores": hypothesis.token_scores,
        "alignment": hypothesis.alignment,
    }
    return {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "tokens": tokenizer.tokens(hypothesis.ids),
        "finish_reason": hypothesis.finish_reason,
        "truncated": hypothesis.truncated,
        "too_short": hypothesis.too_short,
        **{name: value for name, value in optional.items() if value is not None},
    }
