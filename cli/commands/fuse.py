"""The command `fuse`: a model and its adapter become one model folder."""

from __future__ import annotations

from pathlib import Path

import click

import mlx_transformer as mt
from mlx_transformer.cli.completion import complete_adapter, complete_model
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.options import revision_option
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.tables import print_written_model
from mlx_transformer.config.model import DTYPE_NAMES


@click.command("fuse", cls=GroupedCommand, short_help="Merge an adapter into its model.")
@click.argument("model", shell_complete=complete_model)
@click.argument("adapter", metavar="ADAPTER", shell_complete=complete_adapter)
@click.argument("destination", type=click.Path())
@option_group(
    "Options",
    click.option(
        "--quantize",
        type=click.Choice(["8", "4"]),
        show_default="as MODEL is",
        help="Bits per weight of linear layers and embeddings.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPE_NAMES),
        show_default="MODEL's",
        help="Data type to store; of a checkpoint float32.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing model folder."),
    revision_option,
)
def command(
    model: str,
    adapter: str,
    destination: str,
    quantize: str | None,
    dtype: str | None,
    force: bool,
    revision: str | None,
) -> None:
    """Merge the adapter folder ADAPTER into MODEL, its base, and write the model folder DESTINATION.

    The result computes the same without the adapter, as fast as MODEL. A quantised MODEL is quantised again, which
    rounds the merged weights.

    \b
    mlx-transformer fuse facebook/nllb-200-distilled-600M runs/nllb/best nllb-mine
    """  # noqa: D301 (click needs the backspace)
    from mlx_transformer.checkpoints.replacement import check_destination, is_adapter_folder
    from mlx_transformer.model.quantization import dequantize
    from mlx_transformer.model.weights_source import record_source, unchanged_source
    from mlx_transformer.pretrained.loading import find_adapter, load_as_stored

    if is_adapter_folder(Path(model)):
        raise ValueError(f"MODEL must be the base of the adapter, but {model} is an adapter: give it as the second.")
    adapter_folder = find_adapter(adapter)
    for path in (Path(model), adapter_folder):
        check_destination(Path(destination), path, overwrite=force)
    activity.show(f"Loading {model}")
    network, tokenizer = load_as_stored(model, revision)
    if quantize is not None:
        source = unchanged_source(network)
        dequantize(network)  # so that merged weights are rounded once, to the bits to store
        record_source(network, source)
    mt.load_adapter(network, adapter_folder, tokenizer)
    activity.show("Merging the adapter")
    mt.fuse_adapter(network)
    mt.save(destination, network, tokenizer, dtype=dtype, quantize=int(quantize) if quantize else None)
    activity.clear()
    print_written_model(destination)
