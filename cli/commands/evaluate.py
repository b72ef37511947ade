"""The command `evaluate`: BLEU, chrF and exact matches of a model on a test set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import decode_lines
from mlx_transformer.cli.options import (
    adapter_option,
    batch_option,
    beam_option,
    dtype_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    penalty_option,
    prefix_option,
    revision_option,
    search_config,
    select_task,
    source_language_option,
    target_language_option,
    task_option,
    warn_truncated,
)
from mlx_transformer.cli.progress import activity, describe_first_batch
from mlx_transformer.cli.run_stats import memory_option
from mlx_transformer.cli.tables import print_fields
from mlx_transformer.messages import install_command
from mlx_transformer.tokenization.normalization import is_blank


@click.command("evaluate", cls=GroupedCommand, short_help="Measure a model on a test set: BLEU, chrF, exact matches.")
@click.argument("spec", required=False)
@option_group("Model", model_option, adapter_option, task_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option)
@option_group(
    "Input and output",
    click.option("--sources", type=click.Path(), help="Instead of SPEC: file of sources, one per line."),
    click.option(
        "--references", type=click.Path(), multiple=True, help="File of references, one per line; repeatable."
    ),
    click.option("--json", "as_json", is_flag=True, help="Write one JSON object."),
)
@option_group("Search", beam_option, penalty_option)
@option_group("Performance", batch_option, memory_option, dtype_option, overflow_option)
def command(
    spec: str | None,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    sources: str | None,
    references: tuple[str, ...],
    source_language: str | None,
    target_language: str | None,
    source_prefix: str | None,
    task: str | None,
    batch_tokens: int,
    dtype: str | None,
    allow_overflow: bool,
    as_json: bool,
    **search: Any,
) -> None:
    """Measure a model by BLEU and chrF (sacrebleu, with its signatures) and by exact matches.

    SPEC is a file of SOURCE<tab>REFERENCE lines, SOURCE_FILE::REFERENCE_FILE, or `dates`; .gz or plain. A source on
    several lines is translated once and compared with all its references. SPEC may set the columns, as in
    `FILE:3,1`, and the languages, as in `en:fr=FILE`.

    With --sources and --references every line counts separately; a blank line in one of several reference files is not
    a reference. Lines whose source and references are blank do not count, and a note says how many they are; a blank
    source with a reference counts as an empty translation. Without sacrebleu only exact matches are counted.

    Sources are translated as wholes: unlike in `generate`, no long one is split into sentences, and no term is copied.
    """
    from mlx_transformer.metrics import corpus_scores, exact_match, has_sacrebleu

    lines, groups, *languages = read_test_set(spec, sources, references)
    if not (scored := has_sacrebleu()):
        click.echo(f"BLEU and chrF need sacrebleu and are left out: {install_command('train')}", err=True)
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter)
    source_language, target_language = source_language or languages[0], target_language or languages[1]
    defaults, prefix = select_task(network, task, source_prefix)
    config = search_config(defaults, search | {"num_hypotheses": 1})
    start = time.perf_counter()
    activity.show(describe_first_batch("Generating"))
    results = mt.generate_hypotheses(
        network,
        tokenizer,
        lines,
        config,
        source_language=source_language,
        target_language=target_language,
        source_prefix=prefix,
        batch_tokens=batch_tokens,
        scores=False,
        return_errors=True,
    )
    hypotheses = best_texts(lines, activity.track(results, len(lines), "lines"))
    seconds = time.perf_counter() - start
    scores = corpus_scores(hypotheses, groups) if scored else {"exact_match": exact_match(hypotheses, groups)}
    counts = {"sentences": len(lines), "references": sum(map(len, groups)), "seconds": round(seconds, 2)}
    print_report(scores | counts, as_json)


def read_test_set(
    spec: str | None, sources: str | None, references: tuple[str, ...]
) -> tuple[list[str], list[list[str]], str | None, str | None]:
    """Return sources, their references, and the languages that SPEC sets."""
    if (spec is None) == (sources is None) or bool(sources) != bool(references):
        raise click.UsageError("Give either SPEC, or --sources with one or more --references.")
    activity.show("Reading the test set")
    test_set = read_test_spec(spec) if spec is not None else (*read_test_files(str(sources), references), None, None)
    activity.clear()
    return test_set


def read_test_spec(spec: str) -> tuple[list[str], list[list[str]], str | None, str | None]:
    """Return the distinct sources of a SPEC, their references, and the languages that it sets."""
    from mlx_transformer.data.parallel_corpus import read_pairs
    from mlx_transformer.metrics import group_references

    corpus = read_pairs(spec, split="test", allow_blank=True)
    scored = leave_out_blank(spec, ((source, [reference]) for source, reference in corpus.pairs))
    sources, groups = group_references((source, reference) for source, (reference,) in scored)
    return sources, groups, corpus.source_language, corpus.target_language


def read_test_files(sources: str, references: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Return the lines of the source file, each with the references on the same line."""
    lines = list(decode_lines(sources))
    columns = [list(decode_lines(path)) for path in references]
    for path, column in zip(references, columns, strict=True):
        if len(column) != len(lines):
            raise ValueError(
                f"Sources and references must have equally many lines, but {sources} has {len(lines)} and {path} has "
                f"{len(column)}: align them again."
            )
    scored = leave_out_blank(sources, zip(lines, zip(*columns, strict=True), strict=True))
    return [source for source, _ in scored], [group for _, group in scored]


def leave_out_blank(name: str, lines: Iterable[tuple[str, Iterable[str]]]) -> list[tuple[str, list[str]]]:
    """Return sources with their references, without blank references and without lines that are blank altogether.

    Args:
        name: The SPEC or the file of sources, for messages.
        lines: The source and the references of each line.

    Raises:
        ValueError: If a source has no reference, or no line is left.
    """
    rows = [(source, [text for text in texts if not is_blank(text)]) for source, texts in lines]
    for number, (source, references) in enumerate(rows, start=1):
        if not is_blank(source) and not references:
            raise ValueError(f"Every source needs a reference: line {number} of {name} has no reference.")
    scored = [row for row in rows if row[1]]
    if not scored:
        raise ValueError(f"{name} must have at least one source with a reference, but has none.")
    num_empty = sum(is_blank(source) for source, _ in scored)
    if num_empty or len(scored) < len(rows):
        activity.clear()
        click.echo(
            f"Blank lines of {name}: {len(rows) - len(scored):,} left out, {num_empty:,} with a reference counted as "
            "empty translations.",
            err=True,
        )
    return scored


def best_texts(lines: list[str], results: Iterable[list[mt.Hypothesis]]) -> list[str]:
    """Return the best hypothesis of each line, with warnings for truncated lines; ValueError for one without any."""
    texts = []
    for line, (best, *_) in zip(lines, results, strict=True):
        activity.clear()
        if best.error:
            raise ValueError(f'"{line[:40]}" has no result: {best.error}')
        if best.truncated:
            warn_truncated(f'"{line[:40]}..."')
        texts.append(best.text or "")
    return texts


def print_report(figures: dict[str, Any], as_json: bool) -> None:
    """Print metrics and counts."""
    if as_json:
        click.echo(json.dumps(figures))
    else:
        print_fields(format_report(figures), width=16)


def format_report(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Format metrics and counts as names and values."""
    if "bleu" in figures:
        yield "BLEU", f"{figures['bleu']:.2f}"
        yield "chrF", f"{figures['chrf']:.2f}"
    yield "exact match", f"{figures['exact_match']:.2%}"
    yield "sentences", f"{figures['sentences']:,} with {figures['references']:,} references"
    yield "seconds", str(figures["seconds"])
    if "bleu" in figures:
        yield "BLEU signature", figures["bleu_signature"]
        yield "chrF signature", figures["chrf_signature"]
