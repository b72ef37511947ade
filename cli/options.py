"""What `generate`, `evaluate` and `score` share: their options, and how a model is loaded and searched as these ask."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

import mlx_transformer as mt
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
beam_option = click.option("--beam-size", type=int, help="Beams of the search; 1 is greedy. Default: the model's.")
penalty_option = click.option(
    "--length-penalty", type=float, help="Exponent of the length that divides a score. Default: the model's."
)
source_language_option = click.option(
    "--source-language", metavar="CODE", help="Language of the sources, for a model that knows several; see info."
)
target_language_option = click.option(
    "--target-language", metavar="CODE", help="Language to generate, for a model that knows several; see info."
)
prefix_option = click.option(
    "--source-prefix", metavar="TEXT", help='What sources begin with ("summarize: "). Default: the model\'s.'
)
task_option = click.option("--task", help="One of the model's tasks, with its prefix and search; see info.")
batch_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=BATCH_TOKENS,
    show_default=True,
    help="Padded source tokens x beams in one batch.",
)
alignments_option = click.option(
    "--alignments", is_flag=True, help="Also tell which source words the target words come from, as 0-0 1-2, from 0."
)
layers_option = click.option(
    "--alignment-layer",
    "alignment_layers",
    type=int,
    multiple=True,
    help="Decoder layer, from 0, whose attention aligns words; may be repeated. Default: the last two.",
)
heads_option = click.option(
    "--alignment-head",
    "alignment_heads",
    type=int,
    multiple=True,
    help="Head, from 0, of these layers; may be repeated. Default: all.",
)
dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPE_NAMES), help="Numbers to compute in. Default: the best for the device."
)
overflow_option = click.option(
    "--allow-overflow", is_flag=True, help="Take --dtype float16 for a model whose activations leave its range (T5)."
)


# Fields of a SearchConfig that `generate` has options for.
SEARCH_OPTIONS = (
    *("beam_size", "num_hypotheses", "length_penalty", "max_tokens", "min_tokens", "max_length_ratio"),
    *("min_length_ratio", "early_stopping", "no_repeat_ngram_size", "repetition_penalty", "temperature", "top_k"),
    *("top_p", "min_p", "seed", "alternatives"),
)


def search_options(command: Any) -> Any:
    """The options of `generate` that are fields of a SearchConfig, but for those that `evaluate` has as well."""
    options = [
        click.option("--max-tokens", type=int, help="Most tokens to generate. Default: the model's."),
        click.option("--min-tokens", type=int, help="Fewest tokens to generate. The end token counts."),
        click.option("--max-length-ratio", type=float, help="Most tokens for each token of the source."),
        click.option("--min-length-ratio", type=float, help="Fewest tokens for each token of the source."),
        click.option(
            "--early-stopping", type=click.Choice(list(EARLY_STOPPING)), help="When a beam search may end early."
        ),
        click.option("--no-repeat-ngram-size", type=int, help="No sequence of so many tokens comes twice."),
        click.option(
            "--repetition-penalty", type=float, help="Above 1, tokens that are there already are less likely."
        ),
        click.option("--temperature", type=float, help="Above 0, draw at random; 1 is the model's own probability."),
        click.option("--top-k", type=int, help="Draw from the k most probable tokens."),
        click.option("--top-p", type=float, help="Draw from the most probable tokens that together reach this."),
        click.option("--min-p", type=float, help="Draw from tokens of this share of the highest probability, or more."),
        click.option("--seed", type=int, help="Draws depend on it and on the line, and on nothing else. Default: 0."),
        click.option(
            "--alternatives",
            is_flag=True,
            default=None,
            help="--num-hypotheses ways to go on after the target prefix, each with another token.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def search_config(defaults: mt.SearchConfig, given: dict[str, Any]) -> mt.SearchConfig:
    """The model's own search settings, with what the command line asks for."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "early_stopping" in changes:
        changes["early_stopping"] = EARLY_STOPPING[changes["early_stopping"]]
    if (changes.get("temperature") or "alternatives" in changes) and "beam_size" not in changes:
        changes["num_hypotheses"] = changes.get("num_hypotheses", 1)
        changes["beam_size"] = changes["num_hypotheses"]  # as many as are asked for, not the best of more
    if "num_hypotheses" in changes and "beam_size" not in changes:
        changes["beam_size"] = max(defaults.beam_size, changes["num_hypotheses"])
    elif "beam_size" in changes and "num_hypotheses" not in changes:
        changes["num_hypotheses"] = min(defaults.num_hypotheses, max(1, changes["beam_size"]))
    if "max_tokens" in changes and "min_tokens" not in changes:
        changes["min_tokens"] = min(defaults.min_tokens, changes["max_tokens"])
    return dataclasses.replace(defaults, **changes)


def select_task(model: mt.Transformer, name: str | None, prefix: str | None) -> tuple[mt.SearchConfig, str | None]:
    """The search of a task and what its sources begin with; without a task, the model's own search."""
    if name is None:
        return model.search_defaults, prefix
    if name not in model.tasks:
        known = f"one of {', '.join(sorted(model.tasks))}" if model.tasks else "left out, this model names no tasks"
        raise ValueError(f"--task must be {known}, not {name!r}; or give --source-prefix.")
    task = model.tasks[name]
    return task.search, task.source_prefix if prefix is None else prefix


def load_with_tokenizer(
    model: str | None, dtype: str | None, revision: str | None = None, allow_overflow: bool = False
) -> tuple[mt.Transformer, mt.Tokenizer]:
    """A model that reads and writes text; ValueError if it has no tokenizer."""
    network, tokenizer = mt.load(model, dtype=dtype, revision=revision, allow_overflow=allow_overflow)
    if tokenizer is None:
        raise ValueError(f"A model folder with a tokenizer is needed: {model or 'the bundled model'} has none.")
    return network, tokenizer


def warn_truncated(name: str) -> None:
    """Say on standard error, above a progress bar, that the model did not see the whole of a source."""
    from tqdm import tqdm

    tqdm.write(f"Warning: {name} is longer than the model can read and was cut.", file=sys.stderr)
