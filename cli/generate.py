"""`generate`: text or JSON lines in, the model's hypotheses out, in order, as soon as they are there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

import mlx_transformer as mt
from mlx_transformer.cli.answers import Answer, answer_split, answer_whole, format_json, format_text, prepare_split
from mlx_transformer.cli.lines import WINDOW_BYTES, parse_windows, split_lines
from mlx_transformer.cli.options import (
    EARLY_STOPPING,
    batch_option,
    beam_option,
    chosen_task,
    dtype_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    penalty_option,
    prefix_option,
    revision_option,
    search_config,
    source_language_option,
    target_language_option,
    task_option,
    warn_truncated,
)
from mlx_transformer.cli.report import Report, memory_option, verbose_option

PARTIAL = "mlx_transformer.partial"  # where the context says which file holds the results of a run that failed
# How results of --json look, below the options.
FORMATS = """\b
With --json each result is one line:
  {"id": ..., "text": ..., "score": ..., "tokens": [...],
   "finish_reason": "stop" or "length", "truncated": ...}
with --num-hypotheses 2 or more:
  {"id": ..., "hypotheses": [{"text": ..., ...}, ...]}
with --split-sentences, where the score of a line is the sum of those of its
sentences, and its finish_reason is "length" if that of one of them is:
  {"id": ..., "text": ..., ..., "sentences": [{"source": ..., "text": ..., ...}, ...]}
"""
DEVICES = {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}


def none_if_dash(context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """- is standard input or output, as no path is."""
    return None if path == "-" else path


@click.command("generate", short_help="Lines in, hypotheses out.", epilog=FORMATS)
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@model_option
@revision_option
@click.option(
    "--input",
    "-i",
    "source",
    type=click.Path(dir_okay=False),
    callback=none_if_dash,
    help="File to read; - is standard input.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True),
    callback=none_if_dash,
    help="File to write: results gather in OUTPUT.partial, which takes its place when all are there.",
)
@source_language_option
@target_language_option
@prefix_option
@task_option
@beam_option
@click.option("--num-hypotheses", type=int, help="Best hypotheses to give for each line. Default: the model's.")
@penalty_option
@click.option("--max-tokens", type=int, help="Most tokens to generate, the end token counted. Default: the model's.")
@click.option("--min-tokens", type=int, help="Fewest tokens to generate, the end token counted.")
@click.option("--early-stopping", type=click.Choice(list(EARLY_STOPPING)), help="When a beam search may end early.")
@click.option(
    "--split-sentences", is_flag=True, help="Split lines into sentences; then none is too long for the model."
)
@click.option(
    "--sentence-language",
    metavar="CODE",
    help="Language whose rules tell where sentences end. Default: the source language, or else en.",
)
@batch_option
@memory_option
@click.option("--scores", is_flag=True, help="Write SCORE, a tab, then the text.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in and out; see below.")
@click.option("--strict", is_flag=True, help="A source that is too long for the model is an error; else it is cut.")
@dtype_option
@overflow_option
@verbose_option
@click.pass_context
def command(
    context: click.Context,
    texts: tuple[str, ...],
    model: str | None,
    revision: str | None,
    source: str | None,
    output: str | None,
    source_language: str | None,
    target_language: str | None,
    source_prefix: str | None,
    task: str | None,
    split_sentences: bool,
    sentence_language: str | None,
    batch_tokens: int,
    scores: bool,
    as_json: bool,
    strict: bool,
    dtype: str | None,
    allow_overflow: bool,
    verbose: bool,
    **search: Any,
) -> None:
    """Generate from each TEXT, or from each line of --input or standard input.

    One line out for each line in, in order, blank lines kept; with --num-hypotheses N, N lines for each line in, best
    first (empty ones where the search found fewer). Only a newline separates lines. Standard input is answered as it
    arrives, a file in large windows. Scores are natural logarithms, divided by length ** length penalty.

    With --json an input line is a JSON string, or an object with "text" and perhaps "id", any value, which is handed
    back, "source_language" and "target_language"; a TEXT is plain.

    With --split-sentences the white space of a line is kept, around its sentences and between them.
    """
    check_paths(texts, source, output)
    if split_sentences:
        search = prepare_split(search)
    windows = [[os.fsencode(text) for text in texts]] if texts else split_lines(open_input(source, context))
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow)
    defaults, prefix = chosen_task(network, task, source_prefix)
    config = search_config(defaults, search)
    generate = partial(
        mt.generate_hypotheses, network, tokenizer, search=config, source_prefix=prefix, batch_tokens=batch_tokens
    )
    noun = "TEXT" if texts else "Line"
    lines = parse_windows(windows, as_json and not texts, noun, source_language, target_language)
    if split_sentences:
        answers = answer_split(lines, generate, network, tokenizer, prefix, sentence_language)
    else:
        answers = answer_whole(lines, generate)
    report = Report()
    form = partial(format_json, tokenizer=tokenizer) if as_json else partial(format_text, scores=scores)
    results = (form(each, config.num_hypotheses) for each in check_truncated(report.watch(answers), strict))
    write(output, with_progress(results, source, output), context)
    if verbose:
        click.echo(report.lines(), err=True)


def check_paths(texts: tuple[str, ...], source: str | None, output: str | None) -> None:
    """Refuse, before the model is loaded, what cannot work or would overwrite the input."""
    if texts and source is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    if output is None:
        return
    if not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(f"--output needs an existing folder: {Path(output).parent} is none.")
    if texts:
        return
    read = os.fstat(0) if source is None else os.stat(source)
    for path in (Path(output), partial_path(output)):
        if path.is_file() and os.path.samestat(path.stat(), read):
            raise ValueError(f"--output must be another file than the input: both are {path}.")


def open_input(source: str | None, context: click.Context) -> BinaryIO:
    """What to read lines from: a file, open until the command ends, or standard input."""
    if source is not None:
        return context.with_resource(Path(source).open("rb"))
    if sys.stdin.isatty():
        click.echo("Reading lines from the terminal; Ctrl-D ends.", err=True)
    return sys.stdin.buffer


def check_truncated(answers: Iterable[Answer], strict: bool) -> Iterator[Answer]:
    """Tell of a line that the model could not read to its end; with --strict it is an error."""
    for answer in answers:
        if answer.hypotheses[0].truncated and strict:
            raise ValueError(
                f"{answer.line.name} is longer than the model can read: shorten it, give --split-sentences, or leave "
                "out --strict to have it cut."
            )
        if answer.hypotheses[0].truncated:
            warn_truncated(answer.line.name)
        yield answer


def with_progress(results: Iterable[bytes], source: str | None, output: str | None) -> Iterable[bytes]:
    """A bar on standard error where that is a terminal that results do not go to, and the number of lines is known."""
    shared = output is None and sys.stdout.isatty()
    if source is None or not Path(source).is_file() or shared or not sys.stderr.isatty():
        return results
    from tqdm import tqdm

    with Path(source).open("rb") as file:
        total = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(WINDOW_BYTES), b""))
    bar: Iterable[bytes] = tqdm(results, total=total, unit=" lines", file=sys.stderr)
    return bar


def write(output: str | None, results: Iterable[bytes], context: click.Context) -> None:
    """Write the results as they come; a file that exists is replaced once all are there, a device written to."""
    if output is None:
        copy(results, sys.stdout.buffer)
    elif is_device(Path(output)):
        with Path(output).open("ab") as file:  # to append empties no file behind /dev/stdout
            copy(results, file)
    else:
        path, partial = Path(output).resolve(), partial_path(output)
        with partial.open("wb") as file:
            context.meta[PARTIAL] = partial
            copy(results, file)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
        del context.meta[PARTIAL]


def partial_path(output: str) -> Path:
    """Where results gather, beside the file that a link may lead to."""
    path = Path(output).resolve()
    return path.with_name(f"{path.name}.partial")


def is_device(path: Path) -> bool:
    """Whether a path is no regular file, or another name of an open one."""
    return path.exists() and (not path.is_file() or path.absolute().parent in DEVICES)


def copy(results: Iterable[bytes], stream: BinaryIO) -> None:
    """Write and flush each result as it comes."""
    for result in results:
        stream.write(result)
        stream.flush()
