"""`generate`: text or JSON lines in, the model's hypotheses out, in order, as soon as they are there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.files import check_paths, none_if_dash, open_input, output_option, with_progress, write
from mlx_transformer.cli.lines import Line, parse_windows, split_lines
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


@click.command("generate", short_help="Lines in, hypotheses out.")
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
@output_option
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
@batch_option
@click.option("--scores", is_flag=True, help="Write SCORE, a tab, then the text.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in and out; see above.")
@click.option("--strict", is_flag=True, help="A source that is too long for the model is an error; else it is cut.")
@dtype_option
@overflow_option
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
    batch_tokens: int,
    scores: bool,
    as_json: bool,
    strict: bool,
    dtype: str | None,
    allow_overflow: bool,
    **search: Any,
) -> None:
    """Generate from each TEXT, or from each line of --input or standard input.

    One line out for each line in, in order, blank lines kept; with --num-hypotheses N, N lines for each line in, best
    first (empty ones where the search found fewer). Only a newline separates lines. Standard input is answered as it
    arrives, a file in large windows. Scores are natural logarithms, divided by length ** length penalty.

    With --json an input line is a JSON string, or an object with "text" and perhaps "id", any value, which is handed
    back, "source_language" and "target_language"; a TEXT is plain. Each result is one line:

    \b
    {"id": ..., "text": ..., "score": ..., "tokens": [...], "finish_reason": "stop" or "length", "truncated": ...}
    {"id": ..., "hypotheses": [{"text": ..., ...}, ...]}       with --num-hypotheses 2 or more
    """  # noqa: D301 (click needs the backspace)
    check_arguments(texts, source, output)
    windows = [[os.fsencode(text) for text in texts]] if texts else split_lines(open_input(source, context))
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow)
    defaults, prefix = chosen_task(network, task, source_prefix)
    config = search_config(defaults, search)

    def results() -> Iterator[bytes]:
        for window in parse_windows(windows, as_json and not texts, "TEXT" if texts else "Line"):
            found = mt.generate_hypotheses(
                network,
                tokenizer,
                [line.text for line in window],
                config,
                source_language=[line.source_language or source_language for line in window],
                target_language=[line.target_language or target_language for line in window],
                source_prefix=prefix,
                batch_tokens=batch_tokens,
            )
            for line, hypotheses in zip(window, found, strict=True):
                if hypotheses[0].truncated:
                    refuse_truncated(line) if strict else warn_truncated(line.name)
                if as_json:
                    yield format_json(line, hypotheses, config.num_hypotheses, tokenizer)
                else:
                    yield format_text(hypotheses, config.num_hypotheses, scores)

    write(output, with_progress(results(), source), context)


def check_arguments(texts: tuple[str, ...], source: str | None, output: str | None) -> None:
    """Refuse, before the model is loaded, what cannot work."""
    if texts and source is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    check_paths(output, *([] if texts else [source]))


def refuse_truncated(line: Line) -> None:
    """What --strict makes of a source that is too long."""
    raise ValueError(
        f"{line.name} is longer than the model can read: shorten or split it, or leave out --strict to have it cut."
    )


def format_text(hypotheses: list[mt.Hypothesis], count: int, scores: bool) -> bytes:
    """`count` lines; a newline inside a text would break the count, so it becomes a space."""
    texts = [(hypothesis.text or "").replace("\n", " ") for hypothesis in hypotheses]
    if scores:
        texts = [f"{hypothesis.score:.4f}\t{text}" for hypothesis, text in zip(hypotheses, texts, strict=True)]
    texts += [""] * (count - len(texts))
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "replace")


def format_json(line: Line, hypotheses: list[mt.Hypothesis], count: int, tokenizer: mt.Tokenizer) -> bytes:
    """One line; the single best hypothesis lies flat in the object, an n-best list under "hypotheses"."""
    rows = [
        {
            "text": hypothesis.text,
            "score": hypothesis.score,
            "tokens": tokenizer.tokens(hypothesis.ids),
            "finish_reason": hypothesis.finish_reason,
            "truncated": hypothesis.truncated,
        }
        for hypothesis in hypotheses
    ]
    result = line.fields | (rows[0] if count == 1 else {"hypotheses": rows})
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")
