"""Whose name is whose: the tensors of a checkpoint by the parameters of ours that they may be."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from mlx_transformer.weights.families.spec import Family, Source
from mlx_transformer.weights.formats.checkpoint import Checkpoint

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "transformer.")
MAX_LAYERS = 1000


class ConversionError(ValueError):
    """A checkpoint whose tensors are not those of its family.

    Attributes:
        missing: Tensors that the model needs and the checkpoint lacks, by our names.
        unexpected: Tensors of the checkpoint that have no place in the model.
    """

    def __init__(self, message: str, missing: Iterable[str] = (), unexpected: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)


class ParameterMap:
    """Our parameters and the tensors of a checkpoint that may hold them."""

    def __init__(self, checkpoint: Checkpoint, family: Family, rename: dict[str, str]) -> None:
        self.checkpoint = checkpoint
        self.plain = strip_wrappers(checkpoint.tensors, rename)
        numbers = [int(number) for name in self.plain for number in re.findall(r"\d+", name)]
        self.sources = expand_layers(family.names, layers=min(max(numbers, default=0) + 1, MAX_LAYERS))
        self.aliases = checkpoint.aliases()

    def find(self, ours: str) -> tuple[str, Callable | None] | None:
        """Their tensor for a parameter of ours, and the function that it needs; None if the file has none."""
        for source in self.sources.get(ours, []):
            name, function = source if isinstance(source, tuple) else (source, None)
            if name in self.plain:
                return self.plain[name], function
        return None

    def shape(self, ours: str) -> tuple[int, ...] | None:
        """The shape that a parameter of ours would have; nothing is read for it."""
        if (found := self.find(ours)) is None:
            return None
        name, function = found
        shape = tuple(self.checkpoint.tensors[name].shape)
        try:
            return shape if function is None else tuple(function(mx.zeros(shape)).shape)
        except (IndexError, ValueError):
            return shape

    def read(self, ours: str) -> mx.array:
        """The parameter of ours."""
        found = self.find(ours)
        if found is None:
            raise ConversionError(f"The checkpoint has no tensor for {ours}.", missing=[ours])
        name, function = found
        array = self.checkpoint.load(name)
        return array if function is None else function(array)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors of the file hold the same numbers."""
        if self.aliases.get(one, one) == self.aliases.get(other, other):
            return True
        first, second = (self.checkpoint.tensors[name] for name in (one, other))
        return first.shape == second.shape and all(
            mx.array_equal(self.checkpoint.load(piece), self.checkpoint.load(match)).item()
            for piece, match in zip(first.pieces(), second.pieces(), strict=True)
        )

    def candidates(self, ours: str) -> list[str]:
        """All tensors of the file that may stand for a parameter of ours."""
        names = [source[0] if isinstance(source, tuple) else source for source in self.sources.get(ours, [])]
        return [self.plain[name] for name in names if name in self.plain]


def strip_wrappers(names: Iterable[str], rename: dict[str, str]) -> dict[str, str]:
    """Names without the wrappers that a model was saved in -> the names as they are."""
    plain: dict[str, str] = {}
    for name in names:
        short = name
        for pattern, replacement in rename.items():
            try:
                short = re.sub(pattern, replacement, short)
            except (re.error, IndexError) as error:
                raise ValueError(f"rename must hold regular expressions: {pattern!r} is none, {error}.") from None
        while wrapper := next((wrapper for wrapper in WRAPPER_PREFIXES if short.startswith(wrapper)), None):
            short = short[len(wrapper) :]
        if short in plain:
            raise ConversionError(f"Names must be distinct: {plain[short]} and {name} both mean {short}.")
        plain[short] = name
    return plain


def expand_layers(names: dict[str, Source], layers: int) -> dict[str, list[Any]]:
    """Every parameter that a model may have -> the tensors, best first, that may hold it."""

    def spell(source: Source, layer: int, leaf: str) -> list[Any]:
        if isinstance(source, list):
            return [name for item in source for name in spell(item, layer, leaf)]
        name, function = source if isinstance(source, tuple) else (source, None)
        if leaf and "{leaf}" not in name:
            name += f".{leaf}"
        name = name.format(i=layer, leaf=leaf)
        return [name if function is None else (name, function)]

    found: dict[str, list[Any]] = {}
    for ours, theirs in names.items():
        exact = ours.endswith((".weight", ".bias"))
        for layer in range(layers if "{i}" in ours else 1):
            for leaf in ("",) if exact else ("weight", "bias"):
                name = ours.format(i=layer) + (f".{leaf}" if leaf else "")
                found[name] = spell(theirs, layer, leaf)
    if "output.bias" in found:
        found["output_bias"] = found["output.bias"]
    return found
