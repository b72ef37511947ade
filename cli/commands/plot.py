"""The command `plot`: learning curves of training runs."""

from __future__ import annotations

import click

from mlx_transformer.cli.completion import complete_run
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.streams import check_paths


@click.command("plot", cls=GroupedCommand, short_help="Draw the learning curves of training runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)
@option_group(
    "Options",
    click.option(
        "--output",
        "-o",
        type=click.Path(dir_okay=False, writable=True),
        default="curves.png",
        show_default=True,
        help="Picture to write: .png, .svg or .pdf.",
    ),
)
def command(runs: tuple[str, ...], output: str) -> None:
    """Draw learning curves of one or several runs: loss, BLEU, chrF and learning rate by step.

    RUN is a folder that `train --output` wrote; the run may still be in progress. A star marks the validation whose
    model is RUN/best. The training loss includes label smoothing; the validation loss does not.
    """
    from mlx_transformer.plotting.figures import check_format, save
    from mlx_transformer.plotting.learning_curves import plot_learning_curves

    check_format(output)
    check_paths(output)
    activity.show("Drawing")
    save(plot_learning_curves(runs), output)
    activity.clear()
    click.echo(f"Picture: {output}")
