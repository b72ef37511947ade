"""`train`: every field of TrainingConfig as an option, its progress as a bar or as lines."""

import dataclasses
import inspect
import re
import sys
from typing import Any, get_args

import click
from click.core import ParameterSource

import mlx_transformer as mt
from mlx_transformer.recipe import PRESETS, TrainingConfig


def descriptions() -> dict[str, str]:
    """The help of each option: the Attributes section of TrainingConfig's docstring."""
    _, _, section = inspect.cleandoc(TrainingConfig.__doc__ or "").partition("Attributes:\n")
    return dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE))


def option(field: dataclasses.Field[Any], text: str) -> Any:
    """The click option of one field; its default stands in the dataclass only."""
    flag = "--" + field.name.replace("_", "-")
    if field.name in ("train", "valid"):
        return click.option(flag, metavar="SPEC", multiple=True, help=text)
    if field.default is dataclasses.MISSING:
        return click.option(flag, metavar="RUN", required=True, help=text)
    if isinstance(field.default, bool):
        flag = f"{flag}/--no-{flag[2:]}" if field.default else flag
        return click.option(flag, is_flag=True, default=field.default, help=text)
    choices = list(PRESETS) if field.name == "preset" else list(get_args(field.type))
    kind = click.Choice(choices) if choices else type(field.default)
    return click.option(flag, type=kind, default=field.default, show_default=True, help=text)


def options(function: Any) -> Any:
    """Add an option for each field, in the order of the dataclass."""
    texts = descriptions()
    for field in reversed(dataclasses.fields(TrainingConfig)):
        function = option(field, texts.get(field.name, ""))(function)
    return function


@click.command("train", short_help="Parallel text to a model folder.")
@options
@click.pass_context
def command(context: click.Context, **fields: Any) -> None:
    """Train a tokenizer and a model on parallel text.

    SPEC is a file of SOURCE<tab>TARGET lines, SOURCE_FILE::TARGET_FILE (line by line), or `dates`, the built-in task
    (written-out dates to ISO). Files may be gzipped (.gz). --train and --valid may be repeated.

    The best model is RUN/best, the newest RUN/last: use them with `generate --model RUN/best`.

    --resume goes on with the run in RUN and its own options: all but --output may be left out.
    """
    config = run_config({name: value for name, value in fields.items() if is_given(context, name)})
    progress = Progress(config.steps)
    try:
        best = mt.train(config, report=progress)
    finally:
        progress.close()
    click.echo(f"Best model: {best}")


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def run_config(given: dict[str, Any]) -> TrainingConfig:
    """A new run of the options given, or a former one with these changed."""
    if "resume" in given:
        from mlx_transformer.training import read_options

        return dataclasses.replace(read_options(given["output"]), **given)
    if missing := [f"--{name}" for name in ("train", "valid") if name not in given]:
        raise click.UsageError(f"Missing {' and '.join(missing)}: only --resume goes without.")
    return TrainingConfig(**given)


class Progress:
    """Shows what training reports: validations as lines, steps in a bar on a terminal, as lines elsewhere."""

    def __init__(self, steps: int) -> None:
        """Prepare a bar that appears with the first step."""
        from tqdm import tqdm

        self.tqdm = tqdm
        self.steps = steps
        self.bar: Any = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one report."""
        show = {"start": self.start, "step": self.step, "validation": self.validation}.get(event["event"])
        if show is not None:
            show(event)

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
        self.line(f"{event['parameters']:,} parameters, {event['pairs']:,} pairs{left_out}")

    def step(self, event: dict[str, Any]) -> None:
        """Loss, speed, learning rate and time left."""
        figures = {
            "loss": f"{event['loss']:.3f}",
            "tokens/s": f"{event['tokens_per_second']:,.0f}",
            "rate": f"{event['learning_rate']:.2e}",
        }
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = self.tqdm(total=self.steps, initial=event["step"], unit=" steps", file=sys.stderr)
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(event["step"] - self.bar.n)
            return
        text = " ".join(f"{name} {value}" for name, value in figures.items())
        self.line(f"step {event['step']}/{self.steps} {text} left {duration(event['seconds_left'])}")

    def validation(self, event: dict[str, Any]) -> None:
        """The figures of one validation, and whether it is the best so far."""
        names = {"loss": ".4f", "token_accuracy": ".4f", "exact_match": ".4f", "bleu": ".2f", "chrf": ".2f"}
        figures = [f"{name} {event[name]:{form}}" for name, form in names.items() if event.get(name) is not None]
        self.line(" ".join([f"validation at step {event['step']}:", *figures, *["(best)"] * bool(event["best"])]))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
