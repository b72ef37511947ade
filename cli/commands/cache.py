"""The command `cache`: converted models of the hub on this machine, and their removal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click

from mlx_transformer.cli.completion import complete_cached
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.tables import format_size, print_table


@click.command("cache", cls=GroupedCommand, short_help="List or delete the converted models of the hub.")
@option_group(
    "Options",
    click.option("--prune", is_flag=True, help="Delete models that newer commits or conversions have superseded."),
    click.option(
        "--remove",
        metavar="OWNER/NAME",
        shell_complete=complete_cached,
        help="Delete all converted models of a repository.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Write one JSON object."),
)
def command(prune: bool, remove: str | None, as_json: bool) -> None:
    """List the converted hub models in the cache, or delete some.

    Models of the hub are converted once; the cache is ~/.cache/mlx_transformer, or MLX_TRANSFORMER_CACHE. Downloads are
    in the cache of huggingface_hub: `hf cache` manages those. A deleted model is converted again when it is loaded.
    """
    from mlx_transformer.pretrained.cache import prune_cache, remove_cached

    if not prune and remove is None:
        print_cache(as_json)
        return
    deleted = remove_cached(remove) if remove is not None else []
    deleted += prune_cache() if prune else []
    click.echo(json.dumps(cache_facts(deleted)) if as_json else f"Deleted {format_total(deleted)}.")


def print_cache(as_json: bool) -> None:
    """Write the models in the cache."""
    from mlx_transformer.pretrained.cache import cache_folder, cached_models

    models = cached_models()
    if as_json:
        click.echo(json.dumps(cache_facts(models)))
        return
    rows = [("last used", "model", "commit", "revisions", "precision", "size")]
    for model in models:
        used = datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d %H:%M")
        old = "" if model.is_current else ", by an earlier conversion"
        type_of = ", in the type of the GPU" if model.device else ""
        state, size = (", ".join(model.revisions) or "superseded") + type_of + old, format_size(model.size)
        rows.append((used, model.repository, model.commit[:8], state, model.precision, size))
    if models and sys.stdout.isatty():
        print_table(rows, indent="")
    else:
        for used, name, commit, state, precision, size in rows[1:]:
            click.echo(f"{size:>9}  last used {used}  {name} {commit} ({state}) {precision}".rstrip())
    click.echo(f"{format_total(models)} in {cache_folder()}")


def cache_facts(models: Iterable[Any]) -> dict[str, Any]:
    """Return models of the cache as plain data."""
    return {"models": [{**vars(model), "precision": model.precision, "folder": str(model.folder)} for model in models]}


def format_total(models: list[Any]) -> str:
    """Return the number of models and their size."""
    noun = "1 model" if len(models) == 1 else f"{len(models)} models"
    return f"{noun}, {format_size(sum(model.size for model in models))}"
