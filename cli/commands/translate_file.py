"""The command `translate-file`: a document in, the same document in another language out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.options import (
    SEARCH_OPTIONS,
    adapter_option,
    batch_option,
    check_languages,
    dtype_option,
    load_with_tokenizer,
    model_option,
    overflow_option,
    prefix_option,
    revision_option,
    sampling_options,
    search_config,
    select_task,
    sentence_language_option,
    shortlist_option,
    single_search_options,
    source_language_option,
    split_option,
    target_language_option,
    task_option,
)
from mlx_transformer.cli.progress import Bar, activity
from mlx_transformer.cli.run_stats import memory_option
from mlx_transformer.cli.terms import choose_terms, glossary_option, protect_option

# Counts of a report, with what they say.
COUNTS = {
    "unplaced_tags": "tags without an aligned word, at the end of their text",
    "appended_copies": "placeholders or pieces of code that translations lacked, at the end of their text",
    "missing_terms": "missing terms of the glossary",
    "truncated": "texts longer than the model can read, cut",
    "untouched": "texts left as they are, because their markup cannot be written again",
    "long_cues": "subtitles with more than two lines of 42 characters",
}


@click.command("translate-file", cls=GroupedCommand, short_help="Translate a document; its markup stays.")
@click.argument("source", metavar="IN", type=click.Path(dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False))
@option_group("Model", model_option, adapter_option, task_option, revision_option)
@option_group("Languages and prefixes", source_language_option, target_language_option, prefix_option)
@option_group("Output", click.option("--force", is_flag=True, help="Replace an existing file."))
@option_group("Long text", split_option, sentence_language_option)
@option_group("Terms", glossary_option, protect_option)
@single_search_options
@sampling_options
@option_group("Performance", shortlist_option, batch_option, memory_option, dtype_option, overflow_option)
def command(
    source: str,
    target: str,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    dtype: str | None,
    allow_overflow: bool,
    source_prefix: str | None,
    task: str | None,
    shortlist: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Translate the document IN and write OUT, which has the same ending.

    Only text changes: tags, code, times of subtitles, targets of links and the like stay. Inline markup is put around
    the words that are aligned with the words that it was around. What cannot be placed stands at the end of its text,
    and is counted.

    \b
    mlx-transformer translate-file page.html page.fr.html
    """  # noqa: D301 (click needs the backspace)
    from mlx_transformer.documents.translation import check_files

    check_files(Path(source), Path(target), force)
    tokens = mt.read_shortlist(shortlist) if shortlist is not None else None
    options = choose_terms(options | {"num_hypotheses": None, "stream": False})
    network, tokenizer = load_with_tokenizer(model, dtype, revision, allow_overflow, adapter)
    languages = options["source_language"], options["target_language"]
    check_languages(tokenizer, *languages)
    defaults, prefix = select_task(network, task, source_prefix)
    activity.show(f"Translating {source}")
    with ExitStack() as stack:
        report = mt.translate_file(
            network,
            tokenizer,
            source,
            target,
            search=search_config(defaults, {name: options.get(name) for name in SEARCH_OPTIONS}),
            source_language=languages[0],
            target_language=languages[1],
            source_prefix=prefix,
            split_sentences=options["split_sentences"],
            sentence_language=options["sentence_language"],
            glossary=options["glossary"],
            protect=options["protect"],
            batch_tokens=options["batch_tokens"],
            shortlist=tokens,
            overwrite=force,
            progress=progress_bar(stack),
        )
    activity.clear()
    click.echo(f"Texts translated: {report.texts}")
    for name, meaning in COUNTS.items():
        if count := vars(report)[name]:
            click.echo(f"{meaning[0].upper()}{meaning[1:]}: {count}")
    click.echo(f"Document: {target}")


def progress_bar(stack: ExitStack) -> Callable[[int, int], None]:
    """Return a callback that draws a bar of texts on a terminal, from the first text to the end of the stack."""
    bars: list[Bar] = []

    def report(done: int, known: int) -> None:
        if not bars:
            bars.append(stack.enter_context(activity.bar(known, "texts")))
        bars[0].total = known
        bars[0].update(done)

    return report
