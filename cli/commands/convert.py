"""The command `convert`: a torch checkpoint to a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.completion import complete_model
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import escape_control_characters
from mlx_transformer.cli.options import overflow_option, revision_option
from mlx_transformer.cli.progress import Bar, activity
from mlx_transformer.cli.tables import print_fields, print_table, print_written_model

MAX_DETAILS = 20
VOCABULARY_OPTIONS = ("tokenizer", "source_vocab", "target_vocab", "level", "lowercase", "source_specials")
LARGE = 1 << 28  # bytes; smaller models need no progress bar
ONLY_ADAPTERS = "--base converts an adapter: it takes no other options than --revision and, for one of PEFT, --force."


@click.command("convert", cls=GroupedCommand, short_help="Convert a torch checkpoint to a model folder.")
@click.argument("source", type=click.Path(), shell_complete=complete_model)
@click.argument("destination", type=click.Path(), required=False)
@option_group(
    "Output",
    click.option("--quantize", type=click.Choice(["8", "4"]), help="Bits per weight of linear layers and embeddings."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        show_default="the checkpoint's",
        help="Data type to store.",
    ),
    overflow_option,
    click.option("--force", is_flag=True, help="Replace an existing model folder."),
    click.option("--dry-run", is_flag=True, help="Check everything and report, but write nothing."),
    click.option("--verbose", is_flag=True, help="List all tensors that do not fit, and all that are left out."),
)
@option_group(
    "Checkpoint",
    revision_option,
    click.option("--family", show_default="recognised", help="Family of the checkpoint."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Setting that the checkpoint lacks or has wrong; repeatable.",
    ),
    click.option(
        "--rename",
        multiple=True,
        metavar="REGEX=TEXT",
        help="Rename tensors to the family's or the model's own names; repeatable.",
    ),
    click.option("--ignore", multiple=True, metavar="REGEX", help="Leave out tensors; repeatable."),
    click.option("--weights", metavar="NAME", help="Which of several state dicts in the file, such as ema."),
    click.option("--base", metavar="MODEL", help="SOURCE is an adapter of MODEL: of PEFT, or to write for PEFT."),
)
@option_group(
    "Vocabulary of a checkpoint without a tokenizer",
    click.option("--tokenizer", metavar="FILE", help="Vocabulary of both sides."),
    click.option("--source-vocab", metavar="FILE", help="Vocabulary of the sources, with --target-vocab."),
    click.option("--target-vocab", metavar="FILE", help="Vocabulary of the targets."),
    click.option(
        "--level",
        type=click.Choice(["pieces", "words", "characters"]),
        show_default="recognised",
        help="What the tokens of a vocabulary are.",
    ),
    click.option("--lowercase", is_flag=True, help="Lower-case texts."),
    click.option(
        "--source-specials",
        type=click.Choice(["both", "start", "end", "none"]),
        show_default="the family's",
        help="Special tokens around sources.",
    ),
)
def command(
    source: str,
    destination: str | None,
    revision: str | None,
    settings: tuple[str, ...],
    rename: tuple[str, ...],
    quantize: str | None,
    dry_run: bool,
    verbose: bool,
    base: str | None,
    **options: Any,
) -> None:
    """Convert the torch checkpoint SOURCE to the model folder DESTINATION. Torch is not needed.

    SOURCE is a folder, a file, or owner/name on the hub. Model configuration, generation settings and tokenizer are
    read from the files next to the weights.

    A file of weights alone does not show everything, such as the number of heads: what is assumed is printed, and
    --set changes it; --set encoder.num_heads=4 sets one side only. An unknown NAME lists all names. info --tensors
    lists what is in a file.

    The tokenizer of such a checkpoint is given by --tokenizer, or by --source-vocab and --target-vocab. FILE is a
    tokenizer.json, a sentencepiece model, a list of tokens (text, JSON or pickle) or a torchtext vocabulary.

    An adapter of PEFT becomes an adapter folder, and an adapter folder one of PEFT: --base names the model that it
    belongs to.

    \b
    mlx-transformer convert facebook/nllb-200-distilled-600M nllb --quantize 8
    """  # noqa: D301 (click needs the backspace)
    from mlx_transformer.pretrained.loading import find_torch_checkpoint

    if destination is None and not dry_run:
        raise click.UsageError("Missing argument 'DESTINATION'.")
    if base is not None:
        overwrite = options.pop("force")
        if destination is None or dry_run or quantize or settings or rename or any(options.values()):
            raise click.UsageError(ONLY_ADAPTERS)
        convert_adapter(source, destination, base, revision, overwrite)
        return
    tokenizer = parse_tokenizer(**{name: options.pop(name) for name in VOCABULARY_OPTIONS})
    path = find_torch_checkpoint(source, revision)
    activity.show(f"Converting {source}")
    with ExitStack() as stack, print_details(None if verbose else MAX_DETAILS):
        report = mt.convert(
            path,
            destination,
            settings={name: parse_value(value) for name, value in map(parse_pair, settings)},
            rename=dict(map(parse_pair, rename)),
            tokenizer=tokenizer,
            quantize=int(quantize) if quantize else None,
            report=progress_bar(stack),
            dry_run=dry_run,
            **options,
        )
    activity.clear()
    if report is not None and (dry_run or report.assumptions or report.other_weights or report.left_out):
        print_report(report, None if verbose else MAX_DETAILS)
    if destination is not None and not dry_run:
        print_written_model(destination)


def convert_adapter(source: str, destination: str, base: str, revision: str | None, overwrite: bool) -> None:
    """Write an adapter of PEFT as an adapter folder, or an adapter folder as one of PEFT."""
    from mlx_transformer.checkpoints.replacement import check_destination, is_adapter_folder
    from mlx_transformer.pretrained.loading import find_adapter

    path = find_adapter(source)
    is_ours = is_adapter_folder(path)
    if is_ours and overwrite:
        raise click.UsageError("--force replaces adapter folders only, not those of PEFT: choose another DESTINATION.")
    if not is_ours:
        check_destination(Path(destination), path, overwrite=overwrite, kind="adapter")
    activity.show(f"Converting {source}")
    model = mt.load_model(base, "float32", revision)
    mt.load_adapter(model, path)
    if is_ours:
        mt.save_peft_adapter(destination, model, base_model=base)
    else:
        mt.save_adapter(destination, model)
    activity.clear()


@contextmanager
def print_details(limit: int | None) -> Iterator[None]:
    """Print the details of an error about tensors on standard error before the error itself."""
    from mlx_transformer.weights.parameter_map import ConversionError

    try:
        yield
    except ConversionError as error:
        activity.clear()
        for line in error.details[:limit]:
            click.echo(escape_control_characters(line), err=True)
        if limit and len(error.details) > limit:
            click.echo(f"and {len(error.details) - limit} more; --verbose lists them", err=True)
        raise


def print_report(report: mt.ConversionReport, limit: int | None) -> None:
    """Print what a conversion found and assumed, with at most `limit` of the tensors that it left out."""
    print_fields(format_report(report, limit), width=18)
    if report.assumptions:
        click.echo("Assumed, because the file does not show it:")
        rows = [("setting", "value", "why", "to change it")]
        for setting, value, reason, change in report.assumptions:
            rows.append((setting, json.dumps(value) if isinstance(value, bool) else str(value), reason, change))
        print_table(rows)


def format_report(report: mt.ConversionReport, limit: int | None) -> Iterator[tuple[str, str]]:
    """Format what a conversion found as names and values."""
    below = f", below {' and '.join(filter(None, report.prefixes))}" if any(report.prefixes) else ""
    yield "family", f"{report.family}: {report.num_tensors} tensors fit{below}"
    if report.left_out:
        more = f" and {len(report.left_out) - limit} more" if limit and len(report.left_out) > limit else ""
        yield "left out", f"{', '.join(report.left_out[:limit])}{more}"
    if report.other_weights:
        yield "other weights", f"{', '.join(report.other_weights)}: choose with --weights"
    if report.settings_read:
        yield "settings read", ", ".join(f"{name} {value}" for name, value in report.settings_read.items())


def progress_bar(stack: ExitStack) -> Callable[[int, int], None]:
    """Return a callback that shows a progress bar for large models on a terminal."""
    bars: list[Bar] = []

    def report(done: int, total: int) -> None:
        if total < LARGE:
            return
        if not bars:
            activity.clear()
            bars.append(stack.enter_context(activity.bar(total, "")))
        bars[0].update(done)

    return report


def parse_tokenizer(
    tokenizer: str | None, source_vocab: str | None, target_vocab: str | None, **options: Any
) -> mt.TokenizerOptions | None:
    """Return the options of a tokenizer; None if no vocabulary is given."""
    if bool(source_vocab) != bool(target_vocab):
        raise click.UsageError("--source-vocab and --target-vocab must be given together; one FILE is a --tokenizer.")
    if tokenizer and source_vocab:
        raise click.UsageError("--tokenizer is the vocabulary of both sides: leave out --source-vocab, --target-vocab.")
    if source := tokenizer or source_vocab:
        return mt.TokenizerOptions(source, target_vocab, **options)
    if names := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise click.UsageError(f"{names[0]} needs a vocabulary: add --tokenizer FILE.")
    return None


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
