"""The command `score`: log-probabilities of given targets, in order, as soon as they are available."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, zip_longest
from typing import NamedTuple

import click

import mlx_transformer as mt
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import InputLine, parse_file, parse_lines
from mlx_transformer.cli.options import (
    adapter_option,
    alignments_option,
    check_languages,
    dtype_option,
    heads_option,
    layers_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    prefix_option,
    revision_option,
    select_task,
    source_language_option,
    target_language_option,
    task_option,
    warn_truncated,
)
from mlx_transformer.cli.progress import activity, describe_first_batch
from mlx_transformer.cli.results import FailedLines, to_json_line
from mlx_transformer.cli.streams import (
    check_paths,
    input_option,
    output_option,
    read_input,
    with_progress,
    write_results,
)
from mlx_transformer.config.search import BATCH_TOKENS
from mlx_transformer.tokenization.normalization import is_blank

PAIRS_PER_WINDOW = 2048


class TextPair(NamedTuple):
    """A source and its target, with their name in messages, or why they cannot be read."""

    name: str
    source: str
    target: str
    error: str | None = None


@click.command("score", cls=GroupedCommand, short_help="Compute how likely given translations are.")
@option_group("Model", model_option, adapter_option, task_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option)
@option_group(
    "Input and output",
    input_option("path", "File of SOURCE<tab>TARGET lines; - is standard input."),
    click.option("--source", "-s", type=click.Path(dir_okay=False), help="File of sources, one per line."),
    click.option("--target", "-t", type=click.Path(dir_okay=False), help="File of targets, one per line."),
    output_option,
    click.option(
        "--json", "as_json", is_flag=True, help="Write one JSON object per pair, with tokens and their scores."
    ),
)
@option_group("Word alignments", alignments_option, layers_option, heads_option)
@option_group(
    "Performance",
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=BATCH_TOKENS,
        show_default=True,
        help="Maximum number of padded tokens in a batch, on its longer side.",
    ),
    dtype_option,
    overflow_option,
)
@click.pass_context
def command(
    context: click.Context,
    source: str | None,
    target: str | None,
    path: str | None,
    output: str | None,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    source_language: str | None,
    target_language: str | None,
    source_prefix: str | None,
    task: str | None,
    batch_tokens: int,
    alignments: bool,
    alignment_layers: tuple[int, ...],
    alignment_heads: tuple[int, ...],
    as_json: bool,
    dtype: str | None,
    allow_overflow: bool,
) -> None:
    """Score given targets: write the natural logarithm of each target's probability, one line per pair.

    Pairs are SOURCE<tab>TARGET lines of --input or standard input, or the lines of --source and --target; files are
    plain or .gz. Scores include the end token; an empty target is the end token alone, a blank line a pair of empty
    texts. With --alignments pairs of words follow the score, after a tab, as in 0-0 1-2. With --json a result is

    \b
    {"score": ..., "tokens": [...], "token_scores": [...], "truncated": ...,
     "alignment": [[0, 0], [1, 2]]}
    """  # noqa: D301 (click needs the backspace)
    if bool(source) != bool(target) or (source and path):
        raise click.UsageError("Give --source with --target, or --input, or pairs on standard input.")
    alignment = alignment_config(alignments, alignment_layers, alignment_heads)
    check_paths(output, *((source, target) if source else (path,)))
    windows = read_pair_files(source, target) if source and target else read_pairs(path, context)
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter)
    _, prefix = select_task(network, task, source_prefix)
    check_languages(tokenizer, source_language, target_language)
    score = partial(
        mt.score,
        network,
        tokenizer,
        source_language=source_language,
        target_language=target_language,
        source_prefix=prefix,
        alignment=alignment,
        batch_tokens=batch_tokens,
        return_errors=True,
    )
    failed = FailedLines(in_results=as_json)
    form = partial(format_score_json, tokenizer=tokenizer) if as_json else format_score
    windows = activity.during(windows, describe_first_batch("Scoring"))
    results = map(form, failed.watch(score_pairs(windows, score)))
    write_results(output, with_progress(results, source or path, output), context)
    failed.check()


def alignment_config(alignments: bool, layers: tuple[int, ...], heads: tuple[int, ...]) -> mt.AlignmentConfig | None:
    """Return how to align words, or None; raise UsageError for layers or heads without --alignments."""
    if (layers or heads) and not alignments:
        raise click.UsageError(
            "--alignment-layer and --alignment-head have no effect on their own: give --alignments as well."
        )
    return mt.AlignmentConfig(layers or None, heads or None) if alignments else None


def score_pairs(windows: Iterable[list[TextPair]], score: Callable[..., Iterator[mt.Score]]) -> Iterator[mt.Score]:
    """Score pairs, with warnings for truncated ones; errors have the names of their pairs."""
    for window in windows:
        scores = score([pair.source for pair in window], [pair.target for pair in window])
        for pair, result in zip(window, scores, strict=True):
            if result.truncated:
                warn_truncated(pair.name)
            error = pair.error or (f"{pair.name}: {result.error}" if result.error else None)
            yield dataclasses.replace(result, error=error)


def read_pairs(path: str | None, context: click.Context) -> Iterator[list[TextPair]]:
    """Yield the pairs of a two-column file, or of standard input as they arrive."""
    for window in parse_lines(read_input(path, context), False, "Line"):
        yield [split_pair(line) for line in window]


def split_pair(line: InputLine) -> TextPair:
    """Split a line into its two columns; a blank line has empty ones."""
    columns = ["", ""] if is_blank(line.source.text) else line.source.text.split("	")
    if len(columns) == 2:
        return TextPair(line.name, columns[0], columns[1], line.error)
    error = (
        f"{line.name} must be a source, one tab and a target, but has {len(columns) - 1} tabs: correct the line, or "
        "select two columns with cut -f."
    )
    return TextPair(line.name, "", "", error)


def read_pair_files(source: str, target: str) -> Iterator[list[TextPair]]:
    """Yield the pairs of two files, line by line."""
    pairs = enumerate(zip_longest(parse_file(source), parse_file(target)), start=1)
    while window := list(islice(pairs, PAIRS_PER_WINDOW)):
        for number, lines in window:
            if None in lines:
                shorter = (source, target)[lines.index(None)]
                raise ValueError(
                    f"--source and --target must have equally many lines, but {shorter} ends after line "
                    f"{number - 1}: align them again."
                )
        yield [
            TextPair(f"Line {number}", s.source.text, t.source.text, s.error or t.error) for number, (s, t) in window
        ]


def format_score(score: mt.Score) -> bytes:
    """Format a score, followed by a tab and the alignment if there is one."""
    from mlx_transformer.inference.alignment import format_pharaoh

    if score.error:
        return b"\n"
    alignment = "" if score.alignment is None else f"\t{format_pharaoh(score.alignment)}"
    return f"{score.score:.4f}{alignment}\n".encode()


def format_score_json(score: mt.Score, tokenizer: mt.Tokenizer) -> bytes:
    """Format a score as one JSON line."""
    if score.error:
        return to_json_line({"error": score.error})
    result = {
        "score": score.score,
        "tokens": tokenizer.tokens(score.tokens),
        "token_scores": score.token_scores,
        "truncated": score.truncated,
    }
    alignment = {} if score.alignment is None else {"alignment": score.alignment}
    return to_json_line(result | alignment)
