"""Options that several commands share, and the loading and configuration of models that they select."""

from __future__ import annotations

from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.completion import complete_adapter, complete_model
from mlx_transformer.cli.help import option_group
from mlx_transformer.cli.progress import activity
from mlx_transformer.config.model import DTYPE_NAMES
from mlx_transformer.config.search import BATCH_TOKENS, change_search
from mlx_transformer.config.tokenizer import AUTO

OF_MODEL = "the model's"  # a default
EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}

model_option = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    shell_complete=complete_model,
    show_default="the bundled English-French model",
    help="Model folder, torch checkpoint, or owner/name on the hub.",
)
adapter_option = click.option(
    "--adapter",
    metavar="ADAPTER",
    shell_complete=complete_adapter,
    help="Adapter of the model, of train --lora-rank or PEFT: a folder, or owner/name on the hub.",
)
revision_option = click.option("--revision", show_default="main", help="Branch, tag or commit of a model on the hub.")
beam_option = click.option("--beam-size", type=int, show_default=OF_MODEL, help="Number of beams; 1 is greedy search.")
penalty_option = click.option(
    "--length-penalty", type=float, show_default=OF_MODEL, help="Exponent of the length by which scores are divided."
)
source_language_option = click.option(
    "--source-language",
    metavar="CODE",
    help="Language of the sources, for multilingual models, or auto to detect that of each line; see info.",
)
target_language_option = click.option(
    "--target-language", metavar="CODE", help="Language to generate, for multilingual models; see info."
)
prefix_option = click.option(
    "--source-prefix", metavar="TEXT", show_default=OF_MODEL, help='Text before every source ("summarize: ").'
)
task_option = click.option("--task", help="Use the prefix and search settings of one of the model's tasks; see info.")
batch_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=BATCH_TOKENS,
    show_default=True,
    help="Maximum number of padded source tokens x beams in a batch.",
)
alignments_option = click.option(
    "--alignments", is_flag=True, help="Also write word alignments, as in 0-0 1-2, counted from 0."
)
layers_option = click.option(
    "--alignment-layer",
    "alignment_layers",
    type=int,
    multiple=True,
    show_default="the last two",
    help="Decoder layer, from 0, whose attention aligns words; repeatable.",
)
heads_option = click.option(
    "--alignment-head",
    "alignment_heads",
    type=int,
    multiple=True,
    show_default="all",
    help="Head, from 0, of these layers; repeatable.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    show_default="the best for the device",
    help="Data type to compute in.",
)
shortlist_option = click.option(
    "--shortlist",
    metavar="FILE",
    help="Marian's binary lexical shortlist (lex.*.bin): generate only tokens that are likely for a batch.",
)
overflow_option = click.option(
    "--allow-overflow", is_flag=True, help="Allow --dtype float16 for models whose activations overflow it (T5)."
)

split_option = click.option(
    "--split-sentences/--no-split-sentences",
    default=None,
    show_default="lines longer than what the model was trained on",
    help="Split lines into sentences, or never.",
)
sentence_language_option = click.option(
    "--sentence-language",
    metavar="CODE",
    show_default="the source language, or en",
    help="Language whose rules split sentences.",
)


# Fields of a SearchConfig that `generate` has options for.
SEARCH_OPTIONS = (
    *("beam_size", "num_hypotheses", "length_penalty", "max_tokens", "min_tokens", "max_length_ratio"),
    *("min_length_ratio", "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "temperature", "top_k"),
    *("top_p", "min_p", "seed", "alternatives"),
)


hypotheses_option = click.option(
    "--num-hypotheses", type=int, show_default=OF_MODEL, help="Number of hypotheses to write per line."
)
alternatives_option = click.option(
    "--alternatives",
    is_flag=True,
    default=None,
    help="Write --num-hypotheses continuations of the prefix, each with another first token.",
)
limit_options = (
    penalty_option,
    click.option("--max-tokens", type=int, show_default=OF_MODEL, help="Maximum number of tokens to generate."),
    click.option(
        "--min-tokens",
        type=int,
        show_default=OF_MODEL,
        help="Minimum number of tokens to generate, including the end token.",
    ),
    click.option(
        "--max-length-ratio", type=float, show_default=OF_MODEL, help="Maximum number of tokens per source token."
    ),
    click.option(
        "--min-length-ratio", type=float, show_default=OF_MODEL, help="Minimum number of tokens per source token."
    ),
    click.option(
        "--no-repeat-ngram-size", type=int, show_default=OF_MODEL, help="Never generate an n-gram of this size twice."
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        show_default=OF_MODEL,
        help="Values above 1 make tokens that were generated before less likely.",
    ),
    click.option(
        "--early-stopping",
        type=click.Choice(list(EARLY_STOPPING)),
        show_default=OF_MODEL,
        help="When beam search stops before all beams have finished.",
    ),
)
# The options of `generate` that are fields of SearchConfig, and those of commands with one text per source.
search_options = option_group("Search", beam_option, hypotheses_option, alternatives_option, *limit_options)
single_search_options = option_group("Search", beam_option, *limit_options)
sampling_options = option_group(
    "Sampling",
    click.option(
        "--temperature",
        type=float,
        show_default=OF_MODEL,
        help="Sample at this temperature if above 0; 1 keeps the model's probabilities.",
    ),
    click.option("--top-k", type=int, show_default=OF_MODEL, help="Sample from the k most probable tokens."),
    click.option(
        "--top-p",
        type=float,
        show_default=OF_MODEL,
        help="Sample from the most probable tokens whose probabilities sum to this.",
    ),
    click.option(
        "--min-p",
        type=float,
        show_default=OF_MODEL,
        help="Sample from tokens with at least this share of the highest probability.",
    ),
    click.option("--seed", type=int, show_default="0", help="Random seed; samples depend on it and on the line only."),
)


def search_config(defaults: mt.SearchConfig, given: dict[str, Any]) -> mt.SearchConfig:
    """Return the model's search settings, changed by the options of the command line."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "early_stopping" in changes:
        changes["early_stopping"] = EARLY_STOPPING[changes["early_stopping"]]
    return change_search(defaults, **changes)


def select_task(model: mt.Transformer, name: str | None, prefix: str | None) -> tuple[mt.SearchConfig, str | None]:
    """Return the search settings and source prefix of a task; without a task, the model's settings."""
    if name is None:
        return model.search_defaults, prefix
    if name not in model.tasks:
        known = (
            f"one of {', '.join(sorted(model.tasks))}" if model.tasks else "left out, because this model has no tasks"
        )
        raise ValueError(f"--task must be {known}, not {name!r}; or give --source-prefix.")
    task = model.tasks[name]
    return task.search, task.source_prefix if prefix is None else prefix


def load_with_tokenizer(
    model: str | None,
    dtype: str | None,
    revision: str | None = None,
    allow_overflow: bool = False,
    adapter: str | None = None,
    *,
    needs_decoder: bool = True,
) -> tuple[mt.Transformer, mt.Tokenizer]:
    """Load a model with its tokenizer, and an adapter on it; ValueError without a tokenizer or a decoder it needs."""
    activity.show(f"Loading {model or 'the bundled model'}")
    network, tokenizer = mt.load(model, dtype, revision, allow_overflow=allow_overflow, adapter=adapter)
    if needs_decoder:
        network.config.require_decoder()
    activity.clear()
    return network, tokenizer


def check_languages(tokenizer: mt.Tokenizer, source_language: str | None, target_language: str | None) -> None:
    """Raise ValueError if a language that all lines share is missing or unknown."""
    check_source_languages(tokenizer, source_language, target_language)
    tokenizer.decoder_starts(1, [target_language])


def check_source_languages(tokenizer: mt.Tokenizer, source_language: str | None, target_language: str | None) -> None:
    """Raise ValueError if a language that all lines share is unknown, or one that sources need is missing."""
    has_tags = (
        tokenizer.config.target_language == "source" and target_language is None
    )  # lines may begin with ">>fra<<"
    if not has_tags:
        if source_language == AUTO:
            source_language = None if tokenizer.config.source_language == "none" else tokenizer.languages[0]
        tokenizer.encode("", source_language, target_language)


def warn_truncated(name: str, remedy: str = "") -> None:
    """Warn on standard error, above a progress bar, that a source was truncated."""
    activity.print_line(f"Warning: {name} is longer than the model can read and was cut{remedy}.", err=True)
