"""The command `convert`: a torch checkpoint to a model folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.options import overflow_option, revision_option
from mlx_transformer.cli.progress import activity

LARGE = 1 << 28  # bytes; smaller models need no progress bar


@click.command("convert", short_help="Convert a torch checkpoint to a model folder.")
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@revision_option
@click.option("--family", help="Family of the checkpoint, if it cannot be detected.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Data type to store. Default: the checkpoint's.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting that the checkpoint lacks or has wrong; repeatable.",
)
@click.option(
    "--rename",
    multiple=True,
    metavar="REGEX=TEXT",
    help="Rename tensors before they are matched; repeatable.",
)
@click.option("--quantize", type=click.Choice(["8", "4"]), help="Bits per weight of linear layers and embeddings.")
@overflow_option
@click.option("--force", is_flag=True, help="Replace an existing model folder.")
def command(
    source: str,
    destination: str,
    revision: str | None,
    family: str | None,
    dtype: str | None,
    settings: tuple[str, ...],
    rename: tuple[str, ...],
    quantize: str | None,
    allow_overflow: bool,
    force: bool,
) -> None:
    """Convert the torch checkpoint SOURCE to the model folder DESTINATION. Torch is not needed.

    SOURCE is a folder, a file, or owner/name on the hub. Model configuration, generation settings and tokenizer are
    read from the files next to the weights.

    Checkpoints of torch.nn.Transformer lack settings: add --set num_heads=8 --set pad_id=1 --set start_id=2 --set
    eos_id=3 and, where they apply, norm_first=true and activation=gelu; --set encoder.num_heads=4 sets one side only.
    An unknown NAME lists all names.

    \b
    mlx-transformer convert facebook/nllb-200-distilled-600M nllb --quantize 8
    """  # noqa: D301 (click needs the backspace)
    from mlx_transformer.pretrained.loading import find_torch_checkpoint

    values = {name: parse_value(value) for name, value in map(parse_pair, settings)}
    path = find_torch_checkpoint(source, revision)
    activity.show(f"Converting {source}")
    with ExitStack() as stack:
        mt.convert(
            path,
            destination,
            family=family,
            dtype=dtype,
            settings=values,
            rename=dict(map(parse_pair, rename)),
            quantize=int(quantize) if quantize else None,
            allow_overflow=allow_overflow,
            force=force,
            report=progress_bar(stack),
        )


def progress_bar(stack: ExitStack) -> Callable[[int, int], None]:
    """Return a callback that shows a progress bar on standard error, for large models on a terminal."""
    bars: list[Any] = []

    def report(done: int, total: int) -> None:
        if total < LARGE or not sys.stderr.isatty():
            return
        if not bars:
            activity.clear()
            bars.append(stack.enter_context(click.progressbar(length=total, label="Converting", file=sys.stderr)))
        bars[0].update(done - bars[0].pos)

    return report


def parse_pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE at the last equals sign."""
    name, sign, value = text.rpartition("=")
    if not sign:
        raise click.UsageError(f"--set and --rename take NAME=VALUE, not {text!r}.")
    return name, value


def parse_value(value: str) -> Any:
    """Parse a number, true, false, none, or a word."""
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
