"""The commands `models`: known models of the hub by language and task, their download and removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

import mlx_transformer as mt
from mlx_transformer.cli.commands.cache import format_total, print_cache
from mlx_transformer.cli.completion import complete_cached, complete_known
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.options import revision_option
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.tables import format_size, print_fields, print_table
from mlx_transformer.messages import short_names, short_repr, similar_names
from mlx_transformer.pretrained.known_models import BUNDLED, TASKS, pivot_models

MAX_WIDTH = 100  # characters of a line of notes in a file or pipe
json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")


class ModelsGroup(click.Group):
    """A group of commands that searches if none of them is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; those that begin with an option are arguments of the search."""
        is_option = bool(args) and args[0].startswith("-") and args[0] not in ctx.help_option_names
        is_empty = not args and not ctx.resilient_parsing  # shell completion lists the commands
        return super().parse_args(ctx, ["search", *args] if is_option or is_empty else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they are used."""
        return list(self.commands)


@click.group("models", cls=ModelsGroup, short_help="Search, download, list or remove models of the hub.")
def command() -> None:
    """Search models that are known to convert, download them, and list or remove those on this machine.

    Without a command, models lists all that are known; options are those of search.

    \b
    mlx-transformer models search --from fr --to de
    mlx-transformer models download Helsinki-NLP/opus-mt-fr-de
    mlx-transformer models remove Helsinki-NLP/opus-mt-fr-de
    """  # noqa: D301 (click needs the backspace)


@command.command("search", cls=GroupedCommand, short_help="Search known models by language and task.")
@click.argument("words", nargs=-1)
@option_group(
    "Options",
    click.option("--from", "source_language", metavar="LANGUAGE", help="Language to read: fr, fra_Latn or French."),
    click.option("--to", "target_language", metavar="LANGUAGE", help="Language to write."),
    click.option("--task", type=click.Choice(TASKS), help="What the model was trained for."),
    json_option,
)
def search(words: tuple[str, ...], as_json: bool, **conditions: str | None) -> None:
    """List known models that have all WORDS in their names or notes, or as names of their languages.

    The size is that of the download in float32. Many more models of the same families can be used by their names.

    \b
    mlx-transformer models search --from fr --to de
    mlx-transformer models search --task summarisation
    mlx-transformer models search nllb
    """  # noqa: D301 (click needs the backspace)
    models = mt.known_models(*words, **conditions)
    pivot = find_pivot(models, **conditions)
    if as_json:
        facts = {"models": [vars(model) for model in models], "pivot": [model.name for model in pivot]}
        click.echo(json.dumps(facts))
        return
    if not models:
        raise ValueError(describe_no_models(words, conditions))
    sizes = [f"{model.megabytes:,}" for model in models]
    rows = [
        (model.name, model.task, describe_languages(model), size.rjust(max(map(len, sizes))), model.licence)
        for model, size in zip(models, sizes, strict=True)
    ]
    print_table([("model", "task", "languages", "MB", "licence"), *rows], indent="")
    if notes := [(model.name, model.note) for model in models if model.note]:
        click.echo()
        print_fields(notes, width=max(len(name) for name, _ in notes) + 2, wrap=MAX_WIDTH)
    if pivot:
        click.echo(f"\nThrough English: {pivot[0].name}, then {pivot[1].name}.")


def find_pivot(
    models: list[mt.KnownModel], source_language: str | None, target_language: str | None, task: str | None
) -> tuple[mt.KnownModel, ...]:
    """Return two models that translate through English, unless a model of only this pair of languages was found."""
    is_pair = any(len(model.sources) == len(model.targets) == 1 for model in models)
    if is_pair or source_language is None or target_language is None or task not in (None, "translation"):
        return ()
    return pivot_models(source_language, target_language) or ()


def describe_languages(model: mt.KnownModel) -> str:
    """Return the languages of a model, or their number."""
    sources, targets = (side[0] if len(side) == 1 else str(len(side)) for side in (model.sources, model.targets))
    if model.sources != model.targets:
        return f"{sources} to {targets}"
    return sources if len(model.sources) == 1 else f"any of {sources}"


def describe_no_models(words: tuple[str, ...], conditions: dict[str, str | None]) -> str:
    """Return the error of a search without results: what was asked for, and what comes near."""
    names = {"source_language": "--from", "target_language": "--to", "task": "--task"}
    asked = [*words, *(f"{option} {conditions[key]}" for key, option in names.items() if conditions[key] is not None)]
    near = list(describe_near_models(words, conditions, names))
    remedy = "; ".join(near) or "search with fewer words"
    return f"No known model fits {short_repr(' '.join(asked))}: {remedy}. Other models of the hub can be used by name."


def describe_near_models(
    words: tuple[str, ...], conditions: dict[str, str | None], names: dict[str, str]
) -> Iterator[str]:
    """Yield the models that fit all conditions but one."""
    for key, option in names.items():
        if conditions[key] is not None and (models := mt.known_models(*words, **{**conditions, key: None})):
            yield f"without {option} there are {short_names(model.name for model in models)}"
    if words and (models := mt.known_models(**conditions)):
        yield f"without {' '.join(words)} there are {short_names(model.name for model in models)}"


@command.command("download", cls=GroupedCommand, short_help="Download and convert a model of the hub.")
@click.argument("name", metavar="OWNER/NAME", shell_complete=complete_known)
@option_group("Options", revision_option)
def download(name: str, revision: str | None) -> None:
    """Download and convert a model of the hub, as the first generate --model does, so that it works offline.

    Any model of a family that converts can be downloaded, not only those that search lists.
    """
    from mlx_transformer.pretrained.loading import find_model, is_on_hub

    if not is_on_hub(name, revision):
        if name == BUNDLED and not Path(name).exists():
            click.echo("The bundled model is part of the package.")
            return
        if Path(name).exists():
            raise ValueError(f"A model to download must be owner/name on the hub, not a path: use {name} as it is.")
        known = similar_names(name, [model.name for model in mt.known_models()])
        raise ValueError(f"A model to download must be owner/name on the hub, not {short_repr(name)}. {known}")
    activity.plain = True
    activity.show(f"Loading {name}")
    folder = find_model(name, revision, as_stored=False)
    activity.clear()
    size = sum(model.size for model in mt.cached_models(name) if model.folder == folder)
    click.echo(f"{name} is in {folder} ({format_size(size)}).")


@command.command("list", cls=GroupedCommand, short_help="List the converted models on this machine.")
@option_group("Options", json_option)
def list_models(as_json: bool) -> None:
    """List the converted models of the hub in the cache, the last used first."""
    print_cache(as_json)


@command.command("remove", cls=GroupedCommand, short_help="Remove a model of the hub from this machine.")
@click.argument("name", metavar="OWNER/NAME", shell_complete=complete_cached)
@option_group(
    "Options",
    click.option("--downloads", is_flag=True, help="Also delete its files in the cache of huggingface_hub."),
    click.option("--yes", "-y", is_flag=True, help="Delete without asking."),
)
def remove(name: str, downloads: bool, yes: bool) -> None:
    """Delete the converted models of a repository, after showing what that frees.

    What was downloaded stays in the cache of huggingface_hub, which other programs share: a later load converts it
    again. --downloads deletes that too.
    """
    from mlx_transformer.pretrained.cache import remove_cached, repository_folder
    from mlx_transformer.pretrained.hub import downloads_folder, downloads_size, remove_downloads

    models, downloaded = mt.cached_models(name), downloads_size(name)
    if not models and not downloaded:
        raise FileNotFoundError(
            f"There is no model {name} on this machine: mlx-transformer models list shows those that there are."
        )
    if not models and not downloads:
        raise FileNotFoundError(f"Only downloads of {name} are on this machine: add --downloads to delete them.")
    freed = [(format_total(models), repository_folder(name))] if models else []
    kept = [(f"downloads, {format_size(downloaded)}", downloads_folder(name))] if downloaded else []
    freed += kept if downloads else []
    if not yes:
        lines = [f"Frees {text} in {folder}" for text, folder in freed]
        lines += [] if downloads else [f"Keeps {text} in {folder}; --downloads deletes them" for text, folder in kept]
        confirm("\n".join(lines))
    if models:
        remove_cached(name)
    if downloads:
        remove_downloads(name)
    click.echo(f"Deleted {' and '.join(text for text, _ in freed)}.")


def confirm(consequences: str) -> None:
    """Show what a deletion does, and ask whether to go on; ValueError without a yes."""
    click.echo(consequences, err=True)
    activity.clear()
    try:
        confirmed = click.confirm("Delete?", err=True)
    except click.Abort as abort:
        click.echo(err=True)
        if isinstance(abort.__context__, KeyboardInterrupt):  # otherwise it is the end of the input
            raise KeyboardInterrupt from None
        raise ValueError("Nothing was deleted: answer y, or add --yes.") from None
    if not confirmed:
        raise ValueError("Nothing was deleted, because the answer was no.")
