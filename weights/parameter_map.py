"""Maps model parameters to checkpoint tensor names."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mlx.core as mx

from mlx_transformer.weights.families.spec import Family, Source
from mlx_transformer.weights.families.transforms import position_table
from mlx_transformer.weights.formats.checkpoint import Checkpoint

MAX_LAYERS = 1000


class ConversionError(ValueError):
    """A checkpoint whose tensors do not fit its family.

    Attributes:
        missing: Parameters of the model for which the checkpoint has no tensor.
        unexpected: Tensors of the checkpoint that the model does not use.
        details: A line for each of these tensors, with what was looked for and what may be meant.
    """

    def __init__(
        self,
        message: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        details: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)
        self.details = list(details)


class TensorSource(NamedTuple):
    """A tensor that holds a parameter.

    Attributes:
        name: Its name.
        function: The function to apply to it; None for none.
        factor: The name of a tensor of one value to multiply it by; None for none.
    """

    name: str
    function: Callable | None = None
    factor: str | None = None


class ParameterMap:
    """The tensors of a checkpoint, found and read by the names of the model's parameters.

    Attributes:
        checkpoint: The open checkpoint.
        tensor_names: Tensor name without prefixes -> its name in the checkpoint.
        sources: Parameter -> the tensors that may hold it, the best first.
        aliases: Tensor -> an earlier tensor that shares its data.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, tensor_names: dict[str, str]) -> None:
        self.checkpoint = checkpoint
        self.tensor_names = tensor_names
        numbers = [int(number) for name in self.tensor_names for number in re.findall(r"\d+", name)]
        self.sources = expand_layers(family.names, layers=min(max(numbers, default=0) + 1, MAX_LAYERS))
        self.aliases = checkpoint.aliases()

    def find(self, parameter: str) -> TensorSource | None:
        """Return the tensor that holds a parameter, by its name in the checkpoint; None if there is none.

        A tensor with the parameter's own name, as after renaming, is preferred to the family's.
        """
        if parameter in self.tensor_names:
            function = position_table if parameter.endswith(".positions.weight") else None
            return TensorSource(self.tensor_names[parameter], function)
        for name, function, factor in self.sources.get(parameter, []):
            if name in self.tensor_names:
                return TensorSource(self.tensor_names[name], function, self.tensor_names.get(factor or ""))
        return None

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Return the shape of a parameter without reading it; None if there is no tensor for it."""
        if (source := self.find(parameter)) is None:
            return None
        name, function, _ = source
        shape = tuple(self.checkpoint.tensors[name].shape)
        try:
            return shape if function is None else tuple(function(mx.zeros(shape)).shape)
        except (IndexError, ValueError):
            return shape

    def read(self, parameter: str, shape: tuple[int, ...] | None = None) -> mx.array:
        """Read a parameter; one value, as torch broadcasts it, becomes a vector of this shape."""
        source = self.find(parameter)
        if source is None:
            raise ConversionError(f"The checkpoint has no tensor for {parameter}.", missing=[parameter])
        name, function, factor = source
        array = self.checkpoint.load(name)
        array = array if function is None else function(array)
        if shape is not None and is_broadcast(array.shape, shape):
            array = mx.broadcast_to(array, shape)
        if factor is None:
            return array
        scale = self.checkpoint.load(factor)
        if scale.size != 1:
            raise ConversionError(f"{factor} must have one value, not the shape {scale.shape}: check the checkpoint.")
        return array * scale.item()

    def is_same(self, first: str, second: str) -> bool:
        """Return whether two tensors of the checkpoint have equal values."""
        if self.aliases.get(first, first) == self.aliases.get(second, second):
            return True
        one, other = (self.checkpoint.tensors[name] for name in (first, second))
        return one.shape == other.shape and all(
            mx.array_equal(self.checkpoint.load(piece), self.checkpoint.load(match)).item()
            for piece, match in zip(one.pieces(), other.pieces(), strict=True)
        )

    def candidates(self, parameter: str) -> list[str]:
        """Return all tensors of the checkpoint that may hold a parameter, the best first."""
        names = [parameter, *(source.name for source in self.sources.get(parameter, []))]
        return [self.tensor_names[name] for name in names if name in self.tensor_names]


def is_broadcast(shape: tuple[int, ...] | None, expected: tuple[int, ...]) -> bool:
    """Return whether a tensor of this shape is one value for all of an expected vector."""
    return shape in ((), (1,)) and len(expected) == 1


def expand_layers(names: dict[str, Source], layers: int) -> dict[str, list[TensorSource]]:
    """Expand a family's table of names to one entry per parameter: each layer, weight and bias.

    Returns:
        Parameter -> the tensors that may hold it, the best first.
    """

    def expand(source: Source, layer: int, leaf: str) -> list[TensorSource]:
        if isinstance(source, list):
            return [name for item in source for name in expand(item, layer, leaf)]
        name, *rest = source if isinstance(source, tuple) else (source,)
        if leaf and "{leaf}" not in name:
            name += f".{leaf}"
        return [TensorSource(name.format(i=layer, number=layer + 1, leaf=leaf), *rest)]

    sources: dict[str, list[TensorSource]] = {}
    for template, source in names.items():
        is_parameter = template.endswith((".weight", ".bias"))
        for layer in range(layers if "{i}" in template else 1):
            for leaf in ("",) if is_parameter else ("weight", "bias"):
                parameter = template.format(i=layer) + (f".{leaf}" if leaf else "")
                sources[parameter] = expand(source, layer, leaf)
    if "output.bias" in sources:
        sources["output_bias"] = sources["output.bias"]
    return sources
