"""Options that several commands share, and the loading and configuration of models that they select."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.progress import activity
from mlx_transformer.config.model import DTYPE_NAMES
from mlx_transformer.config.search import BATCH_TOKENS

EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}

model_option = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    help="Model folder, torch checkpoint, or owner/name on the hub. Default: the bundled English-French model.",
)
revision_option = click.option("--revision", help="Branch, tag or commit of a model on the hub. Default: main.")
beam_option = click.option("--beam-size", type=int, help="Number of beams; 1 is greedy search. Default: the model's.")
penalty_option = click.option(
    "--length-penalty", type=float, help="Exponent of the length by which scores are divided. Default: the model's."
)
source_language_option = click.option(
    "--source-language", metavar="CODE", help="Language of the sources, for multilingual models; see info."
)
target_language_option = click.option(
    "--target-language", metavar="CODE", help="Language to generate, for multilingual models; see info."
)
prefix_option = click.option(
    "--source-prefix", metavar="TEXT", help='Text before every source ("summarize: "). Default: the model\'s.'
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
    help="Decoder layer, from 0, whose attention aligns words; repeatable. Default: the last two.",
)
heads_option = click.option(
    "--alignment-head",
    "alignment_heads",
    type=int,
    multiple=True,
    help="Head, from 0, of these layers; repeatable. Default: all.",
)
dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPE_NAMES), help="Data type to compute in. Default: the best for the device."
)
overflow_option = click.option(
    "--allow-overflow", is_flag=True, help="Allow --dtype float16 for models whose activations overflow it (T5)."
)


# Fields of a SearchConfig that `generate` has options for.
SEARCH_OPTIONS = (
    *("beam_size", "num_hypotheses", "length_penalty", "max_tokens", "min_tokens", "max_length_ratio"),
    *("min_length_ratio", "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "temperature", "top_k"),
    *("top_p", "min_p", "seed", "alternatives"),
)


def search_options(command: Any) -> Any:
    """Add the options of `generate` that are fields of SearchConfig, except those that `evaluate` shares."""
    options = [
        click.option("--max-tokens", type=int, help="Maximum number of tokens to generate. Default: the model's."),
        click.option("--min-tokens", type=int, help="Minimum number of tokens to generate, including the end token."),
        click.option("--max-length-ratio", type=float, help="Maximum number of tokens per source token."),
        click.option("--min-length-ratio", type=float, help="Minimum number of tokens per source token."),
        click.option(
            "--early-stopping",
            type=click.Choice(list(EARLY_STOPPING)),
            help="When beam search stops before all beams have finished.",
        ),
        click.option("--no-repeat-ngram-size", type=int, help="Never generate an n-gram of this size twice."),
        click.option(
            "--repetition-penalty",
            type=float,
            help="Values above 1 make tokens that were generated before less likely.",
        ),
        click.option(
            "--temperature",
            type=float,
            help="Sample at this temperature if above 0; 1 keeps the model's probabilities.",
        ),
        click.option("--top-k", type=int, help="Sample from the k most probable tokens."),
        click.option(
            "--top-p", type=float, help="Sample from the most probable tokens whose probabilities sum to this."
        ),
        click.option(
            "--min-p", type=float, help="Sample from tokens with at least this share of the highest probability."
        ),
        click.option("--seed", type=int, help="Random seed; samples depend on it and on the line only. Default: 0."),
        click.option(
            "--alternatives",
            is_flag=True,
            default=None,
            help="Write --num-hypotheses continuations of the prefix, each with another first token.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def search_config(defaults: mt.SearchConfig, given: dict[str, Any]) -> mt.SearchConfig:
    """Return the model's search settings, changed by the options of the command line."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "early_stopping" in changes:
        changes["early_stopping"] = EARLY_STOPPING[changes["early_stopping"]]
    if (changes.get("temperature") or "alternatives" in changes) and "beam_size" not in changes:
        changes["num_hypotheses"] = changes.get("num_hypotheses", 1)
        changes["beam_size"] = changes["num_hypotheses"]  # draw exactly this many samples
    if "num_hypotheses" in changes and "beam_size" not in changes:
        changes["beam_size"] = max(defaults.beam_size, changes["num_hypotheses"])
    elif "beam_size" in changes and "num_hypotheses" not in changes:
        changes["num_hypotheses"] = min(defaults.num_hypotheses, max(1, changes["beam_size"]))
    if "max_tokens" in changes and "min_tokens" not in changes:
        changes["min_tokens"] = min(defaults.min_tokens, changes["max_tokens"])
    return dataclasses.replace(defaults, **changes)


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
    model: str | None, dtype: str | None, revision: str | None = None, allow_overflow: bool = False
) -> tuple[mt.Transformer, mt.Tokenizer]:
    """Load a model with its tokenizer; ValueError if it has none."""
    activity.show(f"Loading {model or 'the bundled model'}")
    network, tokenizer = mt.load(model, dtype=dtype, revision=revision, allow_overflow=allow_overflow)
    activity.clear()
    if tokenizer is None:
        raise ValueError(
            f"The model must have a tokenizer, but {model or 'the bundled model'} has none: convert the "
            "checkpoint by convert --tokenizer FILE, or use a folder with tokenizer files."
        )
    return network, tokenizer


def check_languages(tokenizer: mt.Tokenizer, source_language: str | None, target_language: str | None) -> None:
    """Raise ValueError if a language that all lines share is missing or unknown."""
    has_tags = (
        tokenizer.config.target_language == "source" and target_language is None
    )  # lines may begin with ">>fra<<"
    if not has_tags:
        tokenizer.encode("", source_language, target_language)
    tokenizer.decoder_starts(1, [target_language])


def warn_truncated(name: str) -> None:
    """Warn on standard error, above a progress bar, that a source was truncated."""
    from tqdm import tqdm

    tqdm.write(f"Warning: {name} is longer than the model can read and was cut.", file=sys.stderr)
