"""Options for terms that generated text must contain: a glossary, and what is copied."""

from __future__ import annotations

from typing import Any

import click

from mlx_transformer.cli.input_lines import decode_lines
from mlx_transformer.config.terminology import DEFAULT_PROTECTED, PROTECTED_PATTERNS, TRANSLATION_PROTECTED
from mlx_transformer.tokenization.normalization import is_blank


def read_glossary(context: click.Context, parameter: click.Parameter, path: str | None) -> dict[str, str]:
    """Read the terms of a glossary, without comments, which begin with "# ".

    Raises:
        ValueError: If a line is no term, a term has two targets, or there is none.
    """
    terms: dict[str, str] = {}
    for number, line in enumerate(decode_lines(path) if path is not None else (), start=1):
        if is_blank(line) or line.startswith("# "):
            continue
        source, _, target = (part.strip() for part in line.partition("\t"))
        if is_blank(source) or is_blank(target) or "\t" in target:
            raise ValueError(f"{path}, line {number} must be a term, a tab and its target, not {line!r:.60}.")
        if terms.setdefault(source, target) != target:
            raise ValueError(f"{path}, line {number} has another target for {source!r:.60}: leave out one of them.")
    if path is not None and not terms:
        raise ValueError(f"{path} must have a term on one of its lines: SOURCE, a tab and TARGET.")
    return terms


def choose_terms(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with what is copied: what is asked for, or by default what single texts have copied.

    Raises:
        UsageError: If terms are asked for, and several texts for a line, or a text as it is generated.
    """
    given = [f"--{name}" for name in ("glossary", "protect") if options[name] and options[name] != ("none",)]
    if given and (options["num_hypotheses"] or 1) > 1:
        raise click.UsageError(f"{given[0]} gives one text per line: leave out --num-hypotheses.")
    if given and options["stream"]:
        raise click.UsageError(f"--stream writes plain text as it is generated: leave out {given[0]}.")
    protect = {(): None, ("none",): ()}.get(options["protect"], options["protect"])
    return options | {"protect": protect} | ({"num_hypotheses": 1} if given else {})


glossary_option = click.option(
    "--glossary",
    metavar="FILE",
    callback=read_glossary,
    help="Terms as SOURCE<tab>TARGET lines: where a source has SOURCE as whole words, its text has TARGET. SOURCE in "
    'capitals, such as US, matches only capitals. Lines that begin with "# " are comments. Not for streams or several '
    "hypotheses.",
)
protect_option = click.option(
    "--protect",
    metavar="KIND",
    multiple=True,
    show_default=f"{', '.join(DEFAULT_PROTECTED)}; for models that translate also "
    + ", ".join(TRANSLATION_PROTECTED[len(DEFAULT_PROTECTED) :]),
    help=f"What is copied: {', '.join(PROTECTED_PATTERNS)} or a regular expression; repeatable. none: nothing. "
    "For streams and several hypotheses nothing is.",
)
