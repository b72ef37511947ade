"""`evaluate`: BLEU, chrF and exact matches of a model on a test set."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.generate import (
    batch_option,
    beam_option,
    dtype_option,
    model_option,
    penalty_option,
    search_config,
)


@click.command("evaluate", short_help="BLEU, chrF and exact matches on a test set.")
@click.argument("spec", required=False)
@model_option
@click.option("--sources", type=click.Path(), help="Instead of SPEC: file of sources, one a line.")
@click.option("--references", type=click.Path(), multiple=True, help="File of references, one a line; may be repeated.")
@beam_option
@penalty_option
@batch_option
@dtype_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    spec: str | None,
    model: str | None,
    sources: str | None,
    references: tuple[str, ...],
    batch_tokens: int | None,
    dtype: str | None,
    as_json: bool,
    **search: Any,
) -> None:
    """Measure a model by BLEU and chrF (sacrebleu, with its signatures) and by exact matches.

    SPEC is a file of SOURCE<tab>REFERENCE lines, SOURCE_FILE::REFERENCE_FILE, or `dates`; .gz or plain. A source that
    stands on several lines is translated once and compared with all its references. --sources with --references takes
    each line for itself.
    """
    from mlx_transformer.evaluation import check_sacrebleu, corpus_scores

    if (spec is None) == (sources is None) or bool(sources) != bool(references):
        raise click.UsageError("Give either SPEC, or --sources with one or more --references.")
    check_sacrebleu()
    lines, groups = read_spec(spec) if spec is not None else read_files(str(sources), references)
    network, tokenizer = mt.load(model, dtype=dtype)
    if tokenizer is None:
        raise ValueError(f"evaluate needs a model folder with a tokenizer: {model} has none.")
    config = search_config(network.search_defaults, search | {"num_hypotheses": 1})
    options: dict[str, Any] = {"batch_tokens": batch_tokens} if batch_tokens else {}
    start = time.perf_counter()
    found = mt.generate_hypotheses(network, tokenizer, lines, config, **options)
    hypotheses = [best[0].text or "" for best in progress(found, len(lines))]
    seconds = time.perf_counter() - start
    scores = corpus_scores(hypotheses, groups)
    counts = {"sentences": len(lines), "references": sum(map(len, groups)), "seconds": round(seconds, 2)}
    click.echo(json.dumps(scores | counts) if as_json else report(scores | counts))


def read_spec(spec: str) -> tuple[list[str], list[list[str]]]:
    """Distinct sources, each with all its references."""
    from mlx_transformer.data import read_pairs
    from mlx_transformer.evaluation import group_references

    return group_references(read_pairs(spec, split="test").pairs)


def read_files(sources: str, references: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Lines of sources, each with one reference of every file."""
    from mlx_transformer.data import read_pairs

    columns = [read_pairs(f"{sources}::{file}").pairs for file in references]
    return [source for source, _ in columns[0]], [[target for _, target in row] for row in zip(*columns, strict=True)]


def progress(found: Iterator[Any], total: int) -> Iterable[Any]:
    """A bar on standard error where that is a terminal."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(found, total=total, unit=" lines", file=sys.stderr, disable=not sys.stderr.isatty())
    return bar


def report(figures: dict[str, Any]) -> str:
    """The figures for a reader."""
    return "\n".join(
        (
            f"BLEU         {figures['bleu']:.2f}   {figures['bleu_signature']}",
            f"chrF         {figures['chrf']:.2f}   {figures['chrf_signature']}",
            f"exact match  {figures['exact_match']:.2%}",
            f"sentences    {figures['sentences']:,} with {figures['references']:,} references",
            f"seconds      {figures['seconds']}",
        )
    )
