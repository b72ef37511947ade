"""Explains why a checkpoint's tensors do not fit a family: what was looked for, and which tensors may be meant."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping

from mlx_transformer.messages import short_names, shorten
from mlx_transformer.weights.parameter_map import ConversionError, ParameterMap
from mlx_transformer.weights.recognition import LAYER_NUMBER, Fit, renaming_steps

MAX_CANDIDATES = 3
MAX_NAMES = 400  # characters of the tensors looked for in a line of the details
MAX_SUMMARY = 170  # characters of tensors in the message; the details have them all
REMEDY = "use convert --rename or convert --ignore; info --tensors lists them"

Shape = tuple[int, ...]


def mismatch_error(
    fit: Fit,
    names: ParameterMap,
    missing: Mapping[str, Shape | None],
    unexpected: list[str],
    misshapen: dict[str, Shape],
    rename: dict[str, str],
) -> ConversionError:
    """Return the error for tensors that do not fit a family, with a line for each of them.

    Args:
        fit: How they fit it.
        names: The checkpoint's tensors by the names of parameters.
        missing: Parameter without a tensor -> its shape, None if that is unknown.
        unexpected: Tensors in the model's module that it does not use.
        misshapen: Parameter whose tensor has another shape -> its shape.
        rename: Regular expressions -> their replacements, as applied to the tensors' names.
    """
    unused = [*unexpected, *fit.left_out]
    wrong_shapes = [describe_misshapen(parameter, shape, names) for parameter, shape in misshapen.items()]
    counts = {"missing": list(missing), "unexpected": unexpected, "of another shape": wrong_shapes}
    kinds = {kind: items for kind, items in counts.items() if items}
    shown, length = max(2 // len(kinds), 1), MAX_SUMMARY // len(kinds) - len("12 of another shape")
    summary = "; ".join(f"{len(items)} {kind} ({short_names(items, shown, length)})" for kind, items in kinds.items())
    details = [
        *describe_missing(missing, names, unused),
        *wrong_shapes,
        *(
            f"unexpected {shorten(name, 200)} {names.checkpoint.tensors[name].shape}{_like_it(count)}"
            for name, count in _group_layers(unexpected)
        ),
        *(describe_rename(*step) for step in renaming_steps(names.checkpoint.tensors, rename)),
    ]
    message = f"The tensors do not fit the family {fit.family}: {summary}; {REMEDY}."
    return ConversionError(message, missing, unexpected, details)


def describe_missing(missing: Mapping[str, Shape | None], names: ParameterMap, unused: list[str]) -> Iterator[str]:
    """Yield lines that say which tensors were looked for, and which unused ones may be meant, one for like layers."""
    for parameter, count in _group_layers(missing):
        shape = missing[parameter]
        looked_for = short_names((source.name for source in names.sources.get(parameter, [])), 2, MAX_NAMES)
        candidates = similar_tensors(parameter, shape, names, unused)
        yield (
            f"missing {parameter}{f' {shape}' if shape else ''}{_like_it(count)}: "
            f"looked for {looked_for}; "
            + (f"unused and like it: {', '.join(candidates)}" if candidates else "no unused tensor is like it")
        )


def _group_layers(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return the first of names that differ in the layer only, with the number of the others."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(LAYER_NUMBER.sub("N", name), []).append(name)
    return [(first, len(others)) for first, *others in groups.values()]


def _like_it(count: int) -> str:
    return f" and {count} like it" if count else ""


def describe_misshapen(parameter: str, shape: Shape, names: ParameterMap) -> str:
    """Return a line with the tensor of a parameter and both shapes."""
    source = names.find(parameter)
    return f"{shorten(source.name if source else parameter, 200)} {names.shape(parameter)} instead of {shape}"


def similar_tensors(parameter: str, shape: Shape | None, names: ParameterMap, unused: Iterable[str]) -> list[str]:
    """Return unused tensors that may hold a parameter: of its shape, the most similar names first."""
    tensors = names.checkpoint.tensors
    if shape is not None:
        packed = (3 * shape[0], *shape[1:])  # query, key and value in one tensor
        shapes = {_without_ones(shape), _without_ones(packed)}
        candidates = [name for name in unused if _without_ones(tensors[name].shape) in shapes]
    else:  # of unknown size: a table, or a matrix in a layer
        candidates = [name for name in unused if len(tensors[name].shape) == 2]
        if "embedding" in parameter:
            candidates = [name for name in candidates if not LAYER_NUMBER.search(name)] or candidates
    layer = re.findall(r"\d+", parameter)
    return sorted(
        candidates,
        key=lambda name: (
            re.findall(r"\d+", name)[: len(layer)] != layer,
            -difflib.SequenceMatcher(None, parameter, name).ratio() if len(candidates) < 100 else 0,
            -math.prod(tensors[name].shape),
        ),
    )[:MAX_CANDIDATES]


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def describe_rename(pattern: str, changed: dict[str, str]) -> str:
    """Return a line that says what a step of a renaming did."""
    if not changed:
        return f"convert --rename {pattern!r} matches no tensor"
    name, new = next(iter(changed.items()))
    return f"convert --rename {pattern!r}: {len(changed)} tensors, such as {shorten(name, 200)} to {shorten(new, 200)}"
