"""Shell completion of model folders, models of the hub that are known or in the cache, and training runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mlx_transformer.pretrained.cache import cached_models
from mlx_transformer.pretrained.known_models import BUNDLED, known_models

DEPTH = 3  # levels of folders below what was typed
MAX_FOLDERS = 2000  # that are looked at


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the model folders and cached models that begin with a text; without any, files."""
    names = [*find_folders(incomplete, is_model)]
    names += [name for name in (BUNDLED, *cached_names()) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def complete_adapter(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the adapter folders that begin with a text; without any, folders."""
    adapters = [CompletionItem(name) for name in find_folders(incomplete, is_adapter)]
    return adapters or [CompletionItem(incomplete, type="dir")]


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the training runs that begin with a text; without any, folders."""
    runs = [CompletionItem(name) for name in find_folders(incomplete, is_run)]
    return runs or [CompletionItem(incomplete, type="dir")]


def complete_cached(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models of the hub in the cache that begin with a text."""
    return [CompletionItem(name) for name in cached_names() if name.startswith(incomplete)]


def complete_known(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models that are known to convert whose names begin with a text."""
    return [CompletionItem(model.name) for model in known_models() if model.name.startswith(incomplete)]


def is_adapter(folder: Path) -> bool:
    """Whether a folder looks like an adapter folder."""
    return (folder / "adapter_config.json").is_file()


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model folder or a checkpoint of the hub."""
    return (folder / "config.json").is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a training run."""
    return (folder / "options.toml").is_file()


def cached_names() -> list[str]:
    """Return the repositories with a model in the cache."""
    with suppress(OSError, ValueError):
        return sorted({model.repository for model in cached_models()})
    return []


def find_folders(incomplete: str, is_wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Yield the folders below the one that was typed that fit a test; hidden ones only if their dot was typed."""
    start, beginning = os.path.split(incomplete)
    root = os.path.expanduser(start) or "."
    count = 0
    for path, folders, _ in os.walk(root):
        below = Path(path).relative_to(root).parts
        begin = "" if below else beginning
        folders[:] = sorted(
            name for name in folders if name.startswith(begin) and (begin.startswith(".") or not name.startswith("."))
        )
        yield from (os.path.join(start, *below, name) for name in folders if is_wanted(Path(path, name)))
        count += len(folders)
        if len(below) + 1 >= DEPTH or count > MAX_FOLDERS:
            folders.clear()
