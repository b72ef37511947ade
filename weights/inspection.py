"""Describes what is in a checkpoint, also in one that cannot be converted."""

from pathlib import Path
from typing import Any

from mlx_transformer.weights.convert import ConversionReport, open_checkpoint, prepare_checkpoint, read_settings
from mlx_transformer.weights.formats.checkpoint import Checkpoint, Tensor, read_checkpoint
from mlx_transformer.weights.formats.model_archive import unpacked
from mlx_transformer.weights.recognition import LAYER_NUMBER, fit_families, rename_tensors
from mlx_transformer.weights.source_config import read_config

MAX_FAMILIES = 5


def inspect_checkpoint(source: str | Path) -> tuple[list[str], ConversionReport]:
    """Return the dtypes of a checkpoint's tensors and what a conversion would assume, without reading their values."""
    with open_checkpoint(source) as (checkpoint, path):
        report = prepare_checkpoint(checkpoint, path).report()
        return sorted({tensor.dtype for tensor in checkpoint.tensors.values()}), report


def inspect_tensors(source: str | Path) -> dict[str, Any]:
    """Return a checkpoint's tensors, its settings and how it fits each family, as plain data.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it cannot be read.
    """
    with unpacked(Path(source)) as path, read_checkpoint(path) as checkpoint:
        return {
            "files": [str(file).replace(str(path), str(source)) for file in checkpoint.files],
            "tensors": group_tensors(checkpoint.tensors),
            "other_weights": checkpoint.other_weights,
            "settings": read_config(path) or unique_settings(read_settings(path, checkpoint)),
            "families": family_facts(checkpoint),
        }


def unique_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the second keys that those in sections have, such as model.heads beside model_heads."""
    return {key: value for key, value in settings.items() if "." not in key or key.replace(".", "_") not in settings}


def group_tensors(tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Describe tensors; those that differ only in the numbers of layers are described together, as layers.{0-5}."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((LAYER_NUMBER.sub("{}", name), tensor.shape, tensor.dtype), []).append(name)
    return [
        {
            "name": name_of_group(names),
            "tensors": len(names),
            "shape": list(shape),
            "dtype": dtype,
            "bytes": sum(tensors[name].nbytes for name in names),
        }
        for (_, shape, dtype), names in groups.items()
    ]


def name_of_group(names: list[str]) -> str:
    """Return the name of tensors that differ only in numbers, with the numbers' ranges."""
    columns = zip(*(map(int, LAYER_NUMBER.findall(name)) for name in names), strict=True)
    ranges = [(min(column), max(column)) for column in columns]
    texts = iter([f"{low}" if low == high else f"{{{low}-{high}}}" for low, high in ranges])
    return LAYER_NUMBER.sub(lambda match: next(texts), names[0])


def family_facts(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the families that most tensors fit, the best first, each with the tensors that do not fit."""
    fits = fit_families(rename_tensors(checkpoint.tensors, {}), checkpoint.tensors)
    return [
        {
            "family": fit.family,
            "prefixes": list(fit.prefixes),
            "fitting": len(fit.fitting),
            "not_fitting": sorted(original for short, original in fit.names.items() if short not in fit.fitting),
            "left_out": list(fit.left_out),
        }
        for fit in fits[:MAX_FAMILIES]
    ]
