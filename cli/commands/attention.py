"""The command `attention`: a picture of the attention weights of a text and its target."""

from __future__ import annotations

import click

from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.options import (
    adapter_option,
    dtype_option,
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
from mlx_transformer.cli.streams import check_paths, warn_file_names
from mlx_transformer.tokenization.normalization import is_blank


@click.command("attention", cls=GroupedCommand, short_help="Draw which words a model attends to.")
@click.argument("text")
@option_group("Model", model_option, adapter_option, task_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option)
@option_group(
    "Input and output",
    click.option(
        "--output",
        "-o",
        type=click.Path(dir_okay=False, writable=True),
        required=True,
        help="Picture to write: .png, .svg or .pdf.",
    ),
    click.option("--target", metavar="TEXT", show_default="as generated, nothing copied", help="Target text."),
)
@option_group(
    "What is drawn",
    click.option(
        "--kind",
        "kinds",
        type=click.Choice(("encoder", "decoder", "cross")),
        multiple=True,
        show_default="all",
        help="Encoder self-attention, decoder self-attention or cross-attention; repeatable.",
    ),
    click.option(
        "--layer",
        "layers",
        type=int,
        multiple=True,
        show_default="the last",
        help="Layer, from 0; repeatable.",
    ),
    click.option(
        "--head",
        "heads",
        type=int,
        multiple=True,
        show_default="the mean over heads",
        help="Head, from 0; repeatable.",
    ),
)
@option_group("Performance", dtype_option, overflow_option)
def command(
    text: str,
    output: str,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    target: str | None,
    kinds: tuple[str, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    source_language: str | None,
    target_language: str | None,
    source_prefix: str | None,
    task: str | None,
    dtype: str | None,
    allow_overflow: bool,
) -> None:
    """Draw the attention weights of TEXT and its target, one panel per kind, layer and head.

    A row shows the attention weights of one token, from white (0) to dark blue. Target rows are the tokens that the
    decoder predicts, target columns the tokens that it has read.
    """
    from mlx_transformer.inference.text_attention import encode_pair
    from mlx_transformer.plotting.attention_maps import attention_figure
    from mlx_transformer.plotting.figures import check_format, save

    check_format(output)
    check_paths(output)
    warn_file_names([text], "give the text itself")
    if is_blank(text):
        raise ValueError("TEXT must not be blank.")
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter)
    search, prefix = select_task(network, task, source_prefix)
    options = {"source_language": source_language, "target_language": target_language, "source_prefix": prefix}
    activity.show(describe_first_batch("Computing attention weights"))
    pair = encode_pair(network, tokenizer, text, target, search, **options)
    if pair.truncated:
        warn_truncated("TEXT" if target is None else "TEXT or --target")
    figure = attention_figure(network, tokenizer, pair.source, pair.target, kinds, layers, heads, recased=pair.recased)
    activity.show("Drawing")
    save(figure, output)
    activity.clear()
    click.echo(f"Picture: {output}")
