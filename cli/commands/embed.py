"""The command `embed`: text or JSON lines in, one vector for each out, in order."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, get_args

import click

import mlx_transformer as mt
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import InputLine, parse_lines
from mlx_transformer.cli.options import (
    adapter_option,
    check_source_languages,
    dtype_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    prefix_option,
    revision_option,
    source_language_option,
    target_language_option,
    warn_truncated,
)
from mlx_transformer.cli.progress import activity, describe_first_batch
from mlx_transformer.cli.results import FailedLines, to_json_line
from mlx_transformer.cli.run_stats import memory_option
from mlx_transformer.cli.streams import (
    check_paths,
    input_option,
    output_option,
    read_input,
    warn_file_names,
    with_progress,
    write_results,
)
from mlx_transformer.config.model import Pooling, PoolingConfig
from mlx_transformer.config.search import BATCH_TOKENS


class LineVector(NamedTuple):
    """The vector of a line, float32 (dims,); NaN where there is an `error`, which has the name of the line."""

    line: InputLine
    vector: Any
    truncated: bool
    error: str | None


@click.command("embed", cls=GroupedCommand, short_help="Compute vectors of texts with a model's encoder.")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@option_group("Model", model_option, adapter_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option)
@option_group(
    "Input and output",
    input_option("source", "Text file to read, plain or .gz; - is standard input."),
    output_option,
    click.option(
        "--input-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Format of input lines.",
    ),
    click.option(
        "--output-format",
        type=click.Choice(["json", "npy"]),
        show_default="npy if --output ends in .npy, otherwise json",
        help="One JSON object per line, or one NumPy array of all lines, written at the end.",
    ),
)
@option_group(
    "Vectors",
    click.option(
        "--pooling",
        type=click.Choice(get_args(Pooling)),
        show_default="the model's, or mean",
        help="Mean of the hidden states of all tokens, or those of the first or last token.",
    ),
    click.option(
        "--normalize/--no-normalize",
        default=None,
        show_default="as the model does, or not",
        help="Divide vectors by their length.",
    ),
    click.option(
        "--projection/--no-projection",
        default=True,
        show_default=True,
        help="Apply the linear layer that some models have after pooling.",
    ),
)
@option_group(
    "Performance",
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=BATCH_TOKENS,
        show_default=True,
        help="Maximum number of padded tokens in a batch.",
    ),
    memory_option,
    dtype_option,
    overflow_option,
)
@click.pass_context
def command(
    context: click.Context,
    texts: tuple[str, ...],
    source: str | None,
    output: str | None,
    output_format: str | None,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    dtype: str | None,
    allow_overflow: bool,
    **options: Any,
) -> None:
    """Compute a vector for each TEXT, or for each line of --input or standard input.

    Vectors are pooled hidden states of the encoder's last layer, in float32. Of a blank line its special tokens are
    embedded. JSON results are

    \b
    {"id": ..., "embedding": [...], "truncated": ...}

    With --input-format json an input line is as for generate; a TEXT argument is plain. Without a vector, a line has an
    "error" in JSON, and a row of NaN in a NumPy array.
    """  # noqa: D301 (click needs the backspace)
    from mlx_transformer.inference.embedding import choose_pooling, vector_dims

    if texts and source is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    if str(output).endswith(".npz"):
        raise click.UsageError(
            f"--output must end in .npy for a NumPy array, or in another way for JSON, not {output}."
        )
    as_npy = output_format == "npy" or (output_format is None and str(output).endswith(".npy"))
    if as_npy and output is None and sys.stdout.isatty():
        raise click.UsageError("A NumPy array is binary: give --output FILE.npy, or redirect standard output.")
    check_paths(output, *([] if texts else [source]))
    warn_file_names(texts, "to read the file, give --input {file}")
    windows = [[os.fsencode(text) for text in texts]] if texts else read_input(source, context)
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter, needs_decoder=False)
    lines = parse_input(windows, tokenizer, options, is_argument=bool(texts))
    failed = FailedLines(in_results=not as_npy)
    pooling = choose_pooling(network.config, *(options[name] for name in ("pooling", "normalize", "projection")))
    embeddings = embed_windows(lines, network, tokenizer, pooling, options)
    vectors = with_progress(failed.watch(embeddings), source, output)
    dims = vector_dims(network.config, pooling)
    write_results(output, npy_file(vectors, dims) if as_npy else map(format_json, vectors), context)
    failed.check()


def parse_input(
    windows: Iterable[list[bytes]],
    tokenizer: mt.Tokenizer,
    options: dict[str, Any],
    is_argument: bool,
) -> Iterator[list[InputLine]]:
    """Parse lines, or TEXT arguments, which are always plain text; check the languages that all lines share."""
    languages = options["source_language"], options["target_language"]
    as_json = options["input_format"] == "json" and not is_argument
    if not as_json:
        check_source_languages(tokenizer, *languages)
    defaults = dict(zip(("source_language", "target_language"), languages, strict=True))
    lines = parse_lines(windows, as_json, "TEXT" if is_argument else "Line", defaults)
    return activity.during(lines, describe_first_batch("Embedding"))


def embed_windows(
    windows: Iterable[list[InputLine]],
    model: mt.Transformer,
    tokenizer: mt.Tokenizer,
    pooling: PoolingConfig,
    options: dict[str, Any],
) -> Iterator[LineVector]:
    """Embed lines, with warnings for truncated ones; errors have the names of their lines."""
    from mlx_transformer.inference.embedding import embed_lines

    settings = {name: options[name] for name in ("source_prefix", "batch_tokens")}
    for window in windows:
        embeddings = embed_lines(model, tokenizer, [line.source for line in window], pooling, **settings)
        for line, result in zip(window, embeddings, strict=True):
            if result.truncated:
                warn_truncated(line.name)
            error = line.error or (f"{line.name}: {result.error}" if result.error else None)
            yield LineVector(line, result.vector * float("nan") if error else result.vector, result.truncated, error)


def format_json(result: LineVector) -> bytes:
    """Format a vector as one JSON line, with as many digits as float32 needs."""
    if result.error:
        return to_json_line(result.line.fields | {"error": result.error})
    vector = [float(str(value)) for value in result.vector]
    return to_json_line(result.line.fields | {"embedding": vector, "truncated": result.truncated})


def npy_file(results: Iterable[LineVector], dims: int) -> Iterator[bytes]:
    """Yield the parts of a NumPy file with one row for each line; its header has their number."""
    import numpy as np

    rows = [result.vector for result in results]
    header = io.BytesIO()
    shape = (len(rows), dims)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    yield from chain([header.getvalue()], (row.tobytes() for row in rows))
