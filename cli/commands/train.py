"""The command `train`: every field of TrainingConfig is an option; progress is a bar, lines or JSON."""

import dataclasses
import inspect
import json
import re
import shlex
import sys
from contextlib import ExitStack
from typing import Any, get_args, get_origin

import click
from click.core import ParameterSource

import mlx_transformer as mt
from mlx_transformer.cli.completion import complete_model, complete_run
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.progress import Bar, activity, can_draw, format_duration
from mlx_transformer.cli.tables import fit_to_terminal, print_table
from mlx_transformer.config.training import ADAPTER_OPTIONS, AUGMENTATIONS, PRESETS, TrainingConfig

# Titles in the help -> the fields below them.
GROUPS = {
    "Data": ("train", "valid", "source_prefix", "max_length", "skip_bad_lines"),
    "Run": ("output", "steps", "resume", "seed", "log_every", "keep"),
    "Model": (
        *("init", "freeze", "preset", "num_layers", "decoder_layers", "dims", "mlp_dims", "mlp_layers", "num_heads"),
        *("norm_first", "activation", "decoder_self_attention", "vocab_size", "shared_vocabulary"),
    ),
    "Adapter (LoRA)": ("lora_rank", *ADAPTER_OPTIONS),
    "Optimisation": (
        *("batch_tokens", "accumulate", "learning_rate", "warmup_steps", "schedule", "optimizer", "betas"),
        *("weight_decay", "clip_norm", "ema_decay", "average_checkpoints"),
    ),
    "Regularisation": ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"),
    "Augmentation": (*AUGMENTATIONS, "recase"),
    "Validation": ("valid_every", "bleu_sentences", "best_by", "patience", "samples"),
    "Performance": ("compute_dtype", "recompute"),
}


class CommaSeparated(click.ParamType):
    """Names separated by commas."""

    name = "parts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """See `click.ParamType`."""
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(",") if part.strip())


def option_descriptions() -> dict[str, str]:
    """Return the help of each option, from the Attributes section of TrainingConfig's docstring."""
    _, _, section = inspect.cleandoc(TrainingConfig.__doc__ or "").partition("Attributes:\n")
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE))
    names = "|".join(name for name in texts if "_" in name)
    return {name: re.sub(rf"\b({names})\b", lambda match: flag(match[0]), text) for name, text in texts.items()}


def flag(name: str) -> str:
    """Return the option of a field."""
    return "--" + name.replace("_", "-")


def train_option(field: dataclasses.Field[Any], text: str) -> Any:
    """Create the click option of a field, with the default of the dataclass or, for None, what the text says of it."""
    name = flag(field.name)
    text, _, default = " ".join(text.split()).partition("; by default ")
    options: dict[str, Any] = {"default": field.default, "show_default": default.rstrip(".") or True}
    if field.name in ("train", "valid"):
        options = {"metavar": "SPEC", "multiple": True}
    elif field.name == "output":
        options = {"metavar": "RUN", "shell_complete": complete_run}
    elif field.name == "init":
        options |= {"metavar": "MODEL", "shell_complete": complete_model}
    elif isinstance(field.default, bool):
        options["is_flag"] = True
        name = f"{name}/--no-{name[2:]}" if field.default else name
    elif field.name in ("freeze", "lora_targets", "lora_modules_to_save"):
        options |= {"type": CommaSeparated(), "show_default": ",".join(options["default"]) or False}
    elif field.name == "betas":
        options |= {"type": float, "nargs": 2}
    else:
        options |= {
            "type": option_type(field),
            "show_default": options["show_default"] if field.default != "" else False,
        }
    return click.option(name, help=f"{text.rstrip('.')}.", **options)


def option_type(field: dataclasses.Field[Any]) -> Any:
    """Return the click type of a field."""
    if field.name == "preset":
        return click.Choice(list(PRESETS))
    if get_origin(field.type) is None or type(None) not in (kinds := get_args(field.type)):
        choices = list(get_args(field.type))
        return click.Choice(choices) if choices else field.type
    return next(kind for kind in kinds if kind is not type(None))


def train_options(function: Any) -> Any:
    """Add an option for each field, in groups."""
    texts = option_descriptions()
    fields = {field.name: field for field in dataclasses.fields(TrainingConfig)}
    for title, names in reversed(GROUPS.items()):
        function = option_group(title, *(train_option(fields[name], texts[name]) for name in names))(function)
    return function


@click.command("train", cls=GroupedCommand, short_help="Train a model on your own pairs of texts, or fine-tune one.")
@train_options
@option_group(
    "Other",
    click.option("--config", "file", type=click.Path(), help="TOML file with options, as `name = value` lines."),
    click.option("--json", "as_json", is_flag=True, help="Write progress as JSON lines to standard output."),
)
@click.pass_context
def command(context: click.Context, file: str | None, as_json: bool, **fields: Any) -> None:
    """Train a tokenizer and a model on parallel text, or fine-tune the model of --init.

    SPEC is a file of SOURCE<tab>TARGET lines, SOURCE_FILE::TARGET_FILE (line by line), or `dates`, the built-in task
    (written-out dates to ISO format). Files may be gzipped (.gz). --train and --valid may be repeated. `FILE:3,1` reads
    sources from column 3 and targets from column 1. `en:fr=SPEC` sets the languages of a corpus; one model may learn
    several.

    The best model is RUN/best, the newest RUN/last: use them with `generate --model RUN/best`. With --lora-rank they
    are adapters of the model of --init: use them with that model and `generate --adapter RUN/best`.

    Options may be read from a file (--config; RUN/options.toml is one); the command line takes precedence. --resume
    continues the run in RUN with its own options, so all options but --output may be left out. Ctrl-C and SIGTERM stop
    a run with a checkpoint from which it can resume.
    """
    options = {name: value for name, value in fields.items() if is_given(context, name)}
    config = make_training_config(options, file)
    progress: Any = JsonLines() if as_json else Progress(config)
    activity.plain = True
    if not can_draw():
        activity.clear()  # the library says what it starts with
    try:
        best = mt.train(config, report=progress)
    finally:
        progress.close()
    if not as_json:
        click.echo(f"Best {'model' if config.adapter is None else 'adapter'}: {best}")


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def make_training_config(options: dict[str, Any], file: str | None = None) -> TrainingConfig:
    """Merge options with those of a file and, when resuming, of the earlier run."""
    from mlx_transformer.config.serialization import check_field_names, from_dict
    from mlx_transformer.training.run_directory import load_run_options, read_options_file

    from_file = {} if file is None else read_options_file(file)
    check_field_names([field.name for field in dataclasses.fields(TrainingConfig)], from_file, str(file))
    merged = from_file | options
    resume = merged.get("resume", False)
    required = ["output"] if resume else ["train", "valid", "output"]
    if not isinstance(merged.get("output", ""), str):
        raise ValueError(f"{file}: output must be a string, the folder of the run, not {merged['output']!r}.")
    if missing := [f"--{name}" for name in required if not merged.get(name)]:
        raise click.UsageError(f"Missing {', '.join(missing)}: only --resume works without --train and --valid.")
    earlier = dataclasses.asdict(load_run_options(merged["output"])) if resume else {}
    return from_dict(TrainingConfig, earlier | merged, file) if file else TrainingConfig(**earlier | merged)


class JsonLines:
    """Writes every log entry of training as one JSON line."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one log entry and flush."""
        activity.clear()
        click.echo(json.dumps(event, ensure_ascii=False))
        sys.stdout.flush()

    def close(self) -> None:
        """Do nothing: there is no bar to close."""


class Progress:
    """Shows the log of training: validations as tables or lines, steps as a bar or as lines."""

    def __init__(self, config: TrainingConfig) -> None:
        """Prepare to show the log of a run."""
        self.config = config
        self.bar: Bar | None = None
        self.is_first_entry = True
        self.stack = ExitStack()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one log entry."""
        activity.clear()
        shown = {"start": self.start, "step": self.step, "validation": self.validation}
        shown |= {"stopped": self.stopped, "end": self.end}
        if event["event"] in shown:
            shown[event["event"]](event)

    def close(self) -> None:
        """Close the progress bar."""
        self.stack.close()

    def start(self, event: dict[str, Any]) -> None:
        """Print the sizes of model and corpus, and draw the bar, which waits for the first entry about steps."""
        left_out = f", {event['too_long']:,} skipped because they are too long" if event.get("too_long") else ""
        resumed = f", resumed at step {event['step']:,}" if event["step"] else ""
        text = f"{event['parameters']:,} parameters to train, {event['pairs']:,} pairs{left_out}{resumed}"
        activity.print_line(text)
        if self.config.bleu_sentences and "search" in event:
            beams = event["search"]["beam_size"]
            search = "greedy search" if beams == 1 else f"{beams} beams"
            activity.print_line(
                f"validation translates up to {self.config.bleu_sentences:,} sentences with the model's {search}"
            )
        if can_draw() and event["step"] < event["steps"]:
            self.bar = self.stack.enter_context(activity.bar(event["steps"], "steps", done=event["step"]))

    def step(self, event: dict[str, Any]) -> None:
        """Show loss, speed, learning rate, memory and time left."""
        figures = {
            "loss": f"{event['loss']:.3f}",
            "perplexity": f"{event['perplexity']:,.1f}",
            "tokens/s": f"{event['tokens_per_second']:,.0f}",
            "rate": f"{event['learning_rate']:.2e}",
            "gradient": "overflow" if event["gradient_norm"] is None else f"{event['gradient_norm']:.2f}",
            "memory": f"{event['memory'] / 1e9:.2f}GB",
        }
        texts = [f"{name} {value}" for name, value in figures.items()]
        if self.bar is not None:
            self.bar.update(event["step"], texts)
            if self.is_first_entry:
                self.bar.start_clock()
            self.is_first_entry = False
        else:
            left = format_duration(event["seconds_left"])
            activity.print_line(f"step {event['step']}/{event['steps']} {' '.join(texts)} left {left}")

    def validation(self, event: dict[str, Any]) -> None:
        """Print the metrics of a validation, whether it is the best so far, and a few translations."""
        forms = {"loss": ".4f", "token_accuracy": ".4f", "exact_match": ".4f", "bleu": ".2f", "chrf": ".2f"}
        figures = {name: f"{event[name]:{form}}" for name, form in forms.items() if event.get(name) is not None}
        title, best = f"validation at step {event['step']}:", ["(best)"] * bool(event["best"])
        if sys.stdout.isatty():
            activity.print_line(" ".join([title, *best]))
            print_table([[name.replace("_", " ") for name in figures], list(figures.values())], indent="    ")
        else:
            activity.print_line(" ".join([title, *(f"{name} {value}" for name, value in figures.items()), *best]))
        for sample in event.get("samples", []):
            for mark, side in (("  ", "source"), ("= ", "reference"), ("> ", "hypothesis")):
                activity.print_line(fit_to_terminal(f"    {mark}{sample[side]}"))

    def stopped(self, event: dict[str, Any]) -> None:
        """Print how an interrupted run can be resumed."""
        again = f"mlx-transformer train --output {shlex.quote(str(self.config.output))} --resume"
        activity.print_line(f"Stopped and saved after step {event['step']}: resume with {again}")

    def end(self, event: dict[str, Any]) -> None:
        """Print why a run ended before its last step."""
        if event["reason"] == "patience":
            patience = self.config.patience
            activity.print_line(f"Ended at step {event['step']}: no better validation among the last {patience}.")
