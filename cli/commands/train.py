"""`train`: every field of TrainingConfig as an option, its progress as a bar, as lines or as JSON."""

import dataclasses
import inspect
import json
import re
import shlex
import sys
from typing import Any, get_args, get_origin

import click
from click.core import ParameterSource

import mlx_transformer as mt
from mlx_transformer.config.training import PRESETS, TrainingConfig


class CommaSeparated(click.ParamType[tuple[str, ...]]):
    """Names separated by commas."""

    name = "parts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """See `click.ParamType`."""
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(",") if part.strip())


def option_descriptions() -> dict[str, str]:
    """The help of each option: the Attributes section of TrainingConfig's docstring."""
    _, _, section = inspect.cleandoc(TrainingConfig.__doc__ or "").partition("Attributes:\n")
    return dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE))


def train_option(field: dataclasses.Field[Any], text: str) -> Any:
    """The click option of one field; its default stands in the dataclass only."""
    flag = "--" + field.name.replace("_", "-")
    if field.name in ("train", "valid"):
        return click.option(flag, metavar="SPEC", multiple=True, help=text)
    if field.name == "output":
        return click.option(flag, metavar="RUN", help=text)
    if isinstance(field.default, bool):
        flag = f"{flag}/--no-{flag[2:]}" if field.default else flag
        return click.option(flag, is_flag=True, default=field.default, show_default=True, help=text)
    if field.name == "freeze":
        return click.option(flag, type=CommaSeparated(), default=(), help=text)
    if field.name == "betas":
        return click.option(flag, type=float, nargs=2, default=field.default, show_default=True, help=text)
    return click.option(flag, type=option_type(field), default=field.default, show_default=True, help=text)


def option_type(field: dataclasses.Field[Any]) -> Any:
    """What click makes of an option's text."""
    if field.name == "preset":
        return click.Choice(list(PRESETS))
    if get_origin(field.type) is None or type(None) not in (kinds := get_args(field.type)):
        choices = list(get_args(field.type))
        return click.Choice(choices) if choices else field.type
    return next(kind for kind in kinds if kind is not type(None))


def train_options(function: Any) -> Any:
    """Add an option for each field, in the order of the dataclass."""
    texts = option_descriptions()
    for field in reversed(dataclasses.fields(TrainingConfig)):
        function = train_option(field, texts.get(field.name, ""))(function)
    return function


@click.command("train", short_help="Parallel text to a model folder.")
@train_options
@click.option("--config", "file", type=click.Path(), help="A TOML file of options, `name = value` lines.")
@click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines on standard output.")
@click.pass_context
def command(context: click.Context, file: str | None, as_json: bool, **fields: Any) -> None:
    """Train a tokenizer and a model on parallel text, or --init MODEL further.

    SPEC is a file of SOURCE<tab>TARGET lines, SOURCE_FILE::TARGET_FILE (line by line), or `dates`, the built-in task
    (written-out dates to ISO). Files may be gzipped (.gz). --train and --valid may be repeated. `en:fr=SPEC` tells the
    languages, of which one model may learn several.

    The best model is RUN/best, the newest RUN/last: use them with `generate --model RUN/best`.

    Options may stand in a file (--config; RUN/options.toml is one): those of the command line come first. --resume
    goes on with the run in RUN and its own options: all but --output may be left out. Ctrl-C and SIGTERM end a run
    with a checkpoint to resume from.
    """
    given = {name: value for name, value in fields.items() if is_given(context, name)}
    config = make_training_config(given, file)
    progress: Any = JsonLines() if as_json else Progress(config)
    try:
        best = mt.train(config, report=progress)
    finally:
        progress.close()
    if not as_json:
        click.echo(f"Best model: {best}")


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def make_training_config(given: dict[str, Any], file: str | None = None) -> TrainingConfig:
    """A new run of the options given and of those in a file, or a former one with these changed."""
    from mlx_transformer.config.serialization import from_dict
    from mlx_transformer.training.run_directory import load_run_options, read_options_file

    merged = (read_options_file(file) if file is not None else {}) | given
    resume = merged.get("resume", False)
    needed = ["output"] if resume else ["train", "valid", "output"]
    if not isinstance(merged.get("output", ""), str):
        raise ValueError(f"{file}: output must be a text, the folder of the run, not {merged['output']!r}.")
    if missing := [f"--{name}" for name in needed if not merged.get(name)]:
        raise click.UsageError(f"Missing {', '.join(missing)}: only --resume goes without --train and --valid.")
    former = dataclasses.asdict(load_run_options(merged["output"])) if resume else {}
    return from_dict(TrainingConfig, former | merged, file) if file else TrainingConfig(**former | merged)


class JsonLines:
    """Writes what training reports as it is, a JSON object a line."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one report, at once."""
        click.echo(json.dumps(event, ensure_ascii=False))
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing is left to be put in order."""


class Progress:
    """Shows what training reports: validations as lines, steps in a bar on a terminal, as lines elsewhere."""

    def __init__(self, config: TrainingConfig) -> None:
        """Prepare a bar that appears with the first step."""
        from tqdm import tqdm

        self.tqdm = tqdm
        self.config = config
        self.bar: Any = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one report."""
        shown = {"start": self.start, "step": self.step, "validation": self.validation}
        shown |= {"stopped": self.stopped, "end": self.end}
        if event["event"] in shown:
            shown[event["event"]](event)

    def close(self) -> None:
        """Leave the terminal in order, however training ended."""
        if self.bar is not None:
            self.bar.close()

    def line(self, text: str) -> None:
        """A line above the bar, at once."""
        self.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def start(self, event: dict[str, Any]) -> None:
        """Sizes of model and corpus."""
        left_out = f", {event['too_long']:,} too long and left out" if event.get("too_long") else ""
        resumed = f", from step {event['step']:,} on" if event["step"] else ""
        self.line(f"{event['parameters']:,} parameters to train, {event['pairs']:,} pairs{left_out}{resumed}")

    def step(self, event: dict[str, Any]) -> None:
        """Loss, speed, learning rate, memory and time left."""
        figures = {
            "loss": f"{event['loss']:.3f}",
            "perplexity": f"{event['perplexity']:,.1f}",
            "tokens/s": f"{event['tokens_per_second']:,.0f}",
            "rate": f"{event['learning_rate']:.2e}",
            "gradient": "overflow" if event["gradient_norm"] is None else f"{event['gradient_norm']:.2f}",
            "memory": f"{event['memory'] / 1e9:.2f}GB",
        }
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = self.tqdm(total=event["steps"], initial=event["step"], unit=" steps", file=sys.stderr)
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(event["step"] - self.bar.n)
            return
        text = " ".join(f"{name} {value}" for name, value in figures.items())
        self.line(f"step {event['step']}/{event['steps']} {text} left {duration(event['seconds_left'])}")

    def validation(self, event: dict[str, Any]) -> None:
        """The figures of one validation, whether it is the best so far, and a few translations."""
        names = {"loss": ".4f", "token_accuracy": ".4f", "exact_match": ".4f", "bleu": ".2f", "chrf": ".2f"}
        figures = [f"{name} {event[name]:{form}}" for name, form in names.items() if event.get(name) is not None]
        self.line(" ".join([f"validation at step {event['step']}:", *figures, *["(best)"] * bool(event["best"])]))
        for sample in event.get("samples", []):
            for mark, side in (("  ", "source"), ("= ", "reference"), ("> ", "hypothesis")):
                self.line(f"    {mark}{sample[side]}")

    def stopped(self, event: dict[str, Any]) -> None:
        """Where a run that somebody ended can go on."""
        again = f"mlx-transformer train --output {shlex.quote(self.config.output)} --resume"
        self.line(f"Stopped after step {event['step']}, and saved: go on with {again}")

    def end(self, event: dict[str, Any]) -> None:
        """Why a run ended before its last step."""
        if event["reason"] == "patience":
            self.line(f"Ended at step {event['step']}: no better validation among the last {self.config.patience}.")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
