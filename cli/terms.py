"""Options for terms that generated text must contain: a glossary, and what is copied."""

from __future__ import annotations

import click

from mlx_transformer.config.terminology import DEFAULT_PROTECTED, PROTECTED_PATTERNS


def read_glossary(context: click.Context, parameter: click.Parameter, path: str | None) -> dict[str, str]:
    """Read the terms of a glossary; ValueError for a line that is no pair."""
    from mlx_transformer.data.parallel_corpus import read_pairs

    return {} if path is None else dict(read_pairs(path).pairs)


def kinds_to_protect(context: click.Context, parameter: click.Parameter, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is copied; nothing for `none`."""
    return () if kinds == ("none",) else kinds


glossary_option = click.option(
    "--glossary",
    metavar="FILE",
    callback=read_glossary,
    help="Terms as SOURCE<tab>TARGET lines: where a source has SOURCE, its text has TARGET. "
    "Not for streams or several hypotheses.",
)
protect_option = click.option(
    "--protect",
    metavar="KIND",
    multiple=True,
    default=DEFAULT_PROTECTED,
    callback=kinds_to_protect,
    help=f"What is copied: {', '.join(PROTECTED_PATTERNS)} or a regular expression; repeatable. none: nothing. "
    "For streams and several hypotheses nothing is.",
)
