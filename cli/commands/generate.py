"""The command `generate`: text or JSON lines in, hypotheses out, in order, as soon as they are available."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import LINE_OPTIONS, InputLine, parse_lines
from mlx_transformer.cli.languages import detect_language_of_line
from mlx_transformer.cli.options import (
    SEARCH_OPTIONS,
    adapter_option,
    alignments_option,
    batch_option,
    check_languages,
    dtype_option,
    heads_option,
    layers_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    prefix_option,
    revision_option,
    sampling_options,
    search_config,
    search_options,
    select_task,
    sentence_language_option,
    shortlist_option,
    source_language_option,
    split_option,
    target_language_option,
    task_option,
    warn_truncated,
)
from mlx_transformer.cli.pivot import check_pivot, translate_to_pivot, with_faults_of_pivot
from mlx_transformer.cli.progress import activity, describe_first_batch
from mlx_transformer.cli.results import (
    FailedLines,
    LineResult,
    check_options,
    choose_formats,
    format_json,
    format_text,
    generate_lines,
    prepare_split,
    prepare_stream,
    reject_prefix,
    stream_lines,
)
from mlx_transformer.cli.run_stats import RunStats, memory_option, verbose_option
from mlx_transformer.cli.streams import (
    check_paths,
    input_option,
    output_option,
    read_input,
    warn_file_names,
    with_progress,
    write_results,
)
from mlx_transformer.cli.terms import choose_terms, glossary_option, protect_option

# Describes the results of --json below the options.
JSON_FORMATS = """\b
With --json or --output-format json every result is one line:
  {"id": ..., "text": ..., "score": ..., "tokens": [...],
   "finish_reason": "stop" or "length", "truncated": ..., "too_short": ...}
with terms that are not in the text also "missing_terms";
with --scores also "token_scores";
with --alignments also "alignment": [[0, 0], ...];
with --num-hypotheses 2 or more:
  {"id": ..., "hypotheses": [{"text": ..., ...}, ...]}
for lines split into sentences; the score of a line is the sum over its
sentences, and its finish_reason is "length" if that of any sentence is:
  {"id": ..., "text": ..., ...,
   "sentences": [{"source": ..., "text": ..., ...}, ...]}
"""

FORMAT = click.Choice(["text", "json"])
target_prefix = click.option(
    "--target-prefix", metavar="TEXT", help="Text that targets begin with; it does not count in scores or lengths."
)
via_option = click.option(
    "--via", metavar="CODE", help="Translate through a third language, of which the model knows more than of the pair."
)
format_options = (
    click.option("--json", "as_json", is_flag=True, help="JSON lines in and out; see below."),
    click.option("--input-format", type=FORMAT, show_default="text, with --json json", help="Format of input lines."),
    click.option("--output-format", type=FORMAT, show_default="text, with --json json", help="Format of results."),
)
strict_option = click.option(
    "--strict", is_flag=True, help="Treat sources that are too long for the model as errors instead of truncating them."
)


@click.command(
    "generate",
    cls=GroupedCommand,
    short_help="Translate, summarise or otherwise generate text.",
    epilog=JSON_FORMATS,
)
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@option_group("Model", model_option, adapter_option, task_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option, target_prefix)
@option_group(
    "Input and output",
    input_option("source", "Text file to read, plain or .gz; - is standard input."),
    output_option,
    click.option("--stream", is_flag=True, help="Write text as it is generated: one hypothesis, greedy or sampled."),
    *format_options,
    click.option("--scores", is_flag=True, help="Write SCORE, a tab, then the text; with --json also token scores."),
    verbose_option,
)
@option_group("Long text", split_option, sentence_language_option, strict_option)
@option_group("Pivot language", via_option)
@option_group("Terms", glossary_option, protect_option)
@search_options
@sampling_options
@option_group("Word alignments", alignments_option, layers_option, heads_option)
@option_group("Performance", shortlist_option, batch_option, memory_option, dtype_option, overflow_option)
@click.pass_context
def command(
    context: click.Context,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    dtype: str | None,
    allow_overflow: bool,
    source_prefix: str | None,
    task: str | None,
    stream: bool,
    verbose: bool,
    strict: bool,
    **options: Any,
) -> None:
    """Generate from each TEXT, or from each line of --input or standard input.

    Writes one line per input line, in order; blank lines stay blank. With --num-hypotheses N, writes N lines per input
    line, best first; some are empty if the search found fewer, or texts that look alike. Only line feeds separate
    lines; a text without any, as from old Macs, is split at carriage returns. Standard input is processed as it
    arrives, files in large windows. Scores are natural logarithms, divided by length ** length penalty.
    A --temperature above 0 samples targets instead of searching for the most probable one.

    With --json or --input-format json an input line is a JSON string, or an object with "text" and optionally "id" (any
    value, returned with the result), "source_language", "target_language" and "target_prefix"; a TEXT argument is
    plain.

    The white space of a line that is split into sentences is kept, around them and between them.
    """
    if texts and source is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    check_paths(output, *([] if texts else [source]), *filter(None, [options["shortlist"]]))
    options = prepare_options(options | {"stream": stream, "strict": strict, "verbose": verbose})
    warn_file_names(texts, "to read the file, give --input {file}")
    windows = [[os.fsencode(text) for text in texts]] if texts else read_input(source, context)
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter)
    defaults, prefix = select_task(network, task, source_prefix)
    config = search_config(defaults, {name: options[name] for name in SEARCH_OPTIONS})
    lines = parse_input(windows, tokenizer, options, is_argument=bool(texts))
    lines = translate_through(options["via"], lines, network, tokenizer, config, prefix, options)
    failed = FailedLines(in_results=options["output_format"] == "json")
    if stream:
        choices = {"source_prefix": prefix, "shortlist": options["shortlist"]}
        pieces = partial(mt.stream_generate, network, tokenizer, search=config, **choices)
        write_results(output, stream_lines(lines, pieces, failed), context)
        failed.check()
        return
    report = RunStats()
    answers = check_truncated(
        report.watch(generate_results(lines, network, tokenizer, config, prefix, options)), strict
    )
    form = partial(format_json, tokenizer=tokenizer) if options["output_format"] == "json" else format_text
    results = (form(each, config.num_hypotheses, options["scores"]) for each in failed.watch(answers))
    write_results(output, with_progress(results, source, output), context)
    report.warn_missing_terms()
    if verbose:
        click.echo(report.lines(), err=True)
    failed.check()


def prepare_options(options: dict[str, Any]) -> dict[str, Any]:
    """Check options that depend on one another, before the model is loaded, and set those that follow from others."""
    check_options(options)
    options = choose_terms(choose_formats(options))
    if options["stream"]:
        options = prepare_stream(options)
    if options["shortlist"] is not None:
        options["shortlist"] = mt.read_shortlist(options["shortlist"])
    return prepare_split(options) if options["split_sentences"] else options


def parse_input(
    windows: Iterable[list[bytes]],
    tokenizer: mt.Tokenizer,
    options: dict[str, Any],
    is_argument: bool,
) -> Iterator[list[InputLine]]:
    """Parse lines, or TEXT arguments, which are always plain text; check the languages that all lines share."""
    defaults = {name: options[name] for name in LINE_OPTIONS}
    as_json = options["input_format"] == "json" and not is_argument
    if not as_json:
        check_languages(tokenizer, defaults["source_language"], defaults["target_language"])
    lines = parse_lines(windows, as_json, "TEXT" if is_argument else "Line", defaults)
    lines = (list(map(partial(detect_language_of_line, tokenizer), window)) for window in lines)
    return activity.during(lines, describe_first_batch("Generating"))


def generate_results(
    lines: Iterable[list[InputLine]],
    model: mt.Transformer,
    tokenizer: mt.Tokenizer,
    search: mt.SearchConfig,
    prefix: str | None,
    options: dict[str, Any],
) -> Iterator[LineResult]:
    """Answer lines as the options ask, as wholes or sentence by sentence."""
    from mlx_transformer.inference.sentence_splitting import split_line

    num_distinct = None
    if search.num_hypotheses > 1 and not search.temperature:  # all beams, because some texts may look alike
        num_distinct, search = search.num_hypotheses, replace(search, num_hypotheses=search.beam_size)
    alignment = mt.AlignmentConfig(options["alignment_layers"] or None, options["alignment_heads"] or None)
    generate: Callable[..., Iterator[list[mt.Hypothesis]]] = partial(
        mt.generate_hypotheses,
        model,
        tokenizer,
        search=search,
        source_prefix=prefix,
        batch_tokens=options["batch_tokens"],
        shortlist=options["shortlist"],
        glossary=options["glossary"],
        protect=options["protect"] if search.num_hypotheses == 1 else (),
        alignment=alignment if options["alignments"] else None,
        scores=options["scores"] or options["output_format"] == "json",
        token_scores=options["scores"] and options["output_format"] == "json",
    )
    split = partial(
        split_line,
        model=model,
        tokenizer=tokenizer,
        source_prefix=prefix,
        language=options["sentence_language"],
        split_sentences=options["split_sentences"] if search.num_hypotheses == 1 else False,
    )
    if options["split_sentences"]:
        lines = (list(map(reject_prefix, window)) for window in lines)
    return map(with_faults_of_pivot, generate_lines(lines, generate, split, num_distinct))


def translate_through(
    language: str | None,
    lines: Iterator[list[InputLine]],
    model: mt.Transformer,
    tokenizer: mt.Tokenizer,
    search: mt.SearchConfig,
    prefix: str | None,
    options: dict[str, Any],
) -> Iterator[list[InputLine]]:
    """Translate lines to a third language, if there is one, with the beams of the search."""
    if language is None:
        return lines
    check_pivot(tokenizer, language, options["source_language"], options["target_language"])
    plain = {"glossary": None, "alignments": False, "scores": False, "output_format": "text", "shortlist": None}
    search = replace(search, num_hypotheses=1, alternatives=False)
    translate = partial(
        generate_results,
        model=model,
        tokenizer=tokenizer,
        search=search,
        prefix=prefix,
        options=options | plain,
    )
    return translate_to_pivot(lines, translate, language, tokenizer.config.source_language != "none")


def check_truncated(answers: Iterable[LineResult], strict: bool) -> Iterator[LineResult]:
    """Warn of lines that the model could not read to their end; with --strict they have no result."""
    for answer in answers:
        if not answer.hypotheses[0].truncated:
            yield answer
        elif not strict:
            warn_truncated(answer.line.name, ": shorten it, or give --split-sentences")
            yield answer
        else:
            error = (
                f"{answer.line.name} is longer than the model can read: shorten it, give --split-sentences, or leave "
                "out --strict to have it cut."
            )
            yield answer._replace(line=answer.line._replace(error=error))
