"""Counts that stand for speed on a GPU and can be had without one: kernels of a step, reads by the host, traces.

A kernel is a primitive of the lazily built graph that is no view. A few more may be launched: an update of a slice is
two, and a view of an array that is not contiguous may be a copy.
"""

import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_transformer as mt
from mlx_transformer.decoding import beam_search

VIEWS = {"AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"}
VIEWS |= {"Squeeze", "StopGradient", "Transpose", "Unflatten", "View"}
COUNTED_STEP = 3  # by then all that is made once for a search is there
NODE = re.compile(r'label ?= ?"([^"]+)", shape=rectangle')


def kernels(outputs: Any) -> Counter[str]:
    """The kernels that evaluating arrays would launch, by the name of the primitive; they must not be evaluated yet."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *(array for _, array in tree_flatten(outputs) if isinstance(array, mx.array)))
    return Counter(name for name in NODE.findall(graph.getvalue()) if name not in VIEWS)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Build normalisation and attention as one kernel each, as a GPU has them; the numbers are meaningless.

    The stand-in is a cumulative sum, which is one kernel and never merged with others; that it depends on the other
    inputs launches nothing.
    """

    def one_kernel(x: mx.array, *others: Any, **options: Any) -> mx.array:
        inputs = [other for other in (*others, *options.values()) if isinstance(other, mx.array)]
        result = mx.cumsum(x, axis=-1)
        return mx.depends(result, inputs) if inputs else result

    with ExitStack() as stack:
        for name in ("rms_norm", "layer_norm", "scaled_dot_product_attention"):
            stack.enter_context(patch.object(mx.fast, name, one_kernel))
        yield


def step_kernels(model: mt.Transformer, source: np.ndarray, beams: int, forbidden: tuple[int, ...]) -> Counter[str]:
    """The kernels of one decode step of a search, as the search builds it.

    Args:
        model: A model that has not searched yet, for what was traced before stays as it was.
        source: Token ids, int32 (batch, length).
        beams: Beam size.
        forbidden: Tokens that are suppressed, to keep the search alive.
    """
    issued = 0

    def watch(*arrays: Any) -> None:
        nonlocal issued
        issued += 1
        if issued == COUNTED_STEP:
            raise Counted(kernels(arrays))
        mx.eval(*arrays)

    search = mt.SearchConfig(beam_size=beams, max_tokens=2 * COUNTED_STEP, suppress_ids=forbidden)
    try:
        with patch.object(mx, "async_eval", watch):
            mt.generate_ids(model, mx.array(source), search)
    except Counted as counted:
        return counted.kernels
    raise RuntimeError("Kernels are counted where a search calls mx.async_eval at each step: it does not.")


class Counted(Exception):
    """Ends a search: what it would say is not needed, and means nothing with stand-ins."""

    def __init__(self, kernels: Counter[str]) -> None:
        super().__init__(kernels)
        self.kernels = kernels


def example_step_kernels(model: Any, source: np.ndarray) -> Counter[str]:
    """The same for the T5 of mlx-examples, with greedy search."""
    memory, cache, newest = model.encode(mx.array(source)), None, mx.array([0])
    for step in range(1, COUNTED_STEP + 1):
        logits, cache = model.decode(newest[None], memory, cache=cache)
        newest = mx.argmax(logits[:, -1, :], axis=-1)
        if step < COUNTED_STEP:
            mx.eval(newest, cache)
    return kernels([newest, *cache])


def by_layer(count: Callable[[int], Counter[str]], layers: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Kernels of a whole step, of one decoder layer, and outside the layers, by counting with a layer less too."""
    whole, less = count(layers), count(layers - 1)
    layer = whole.copy()
    layer.subtract(less)
    outside = whole.copy()
    outside.subtract({name: number * layers for name, number in layer.items()})
    return whole, +layer, +outside


@contextmanager
def counted_reads() -> Iterator[Counter[str] | None]:
    """Counts where the host reads from the device in a search ("reads") and steps ("steps"); None where it cannot."""
    if "to_host" not in vars(beam_search):
        yield None
        return
    found: Counter[str] = Counter()
    read, issue = beam_search.to_host, mx.async_eval

    def counted_read(*arguments: Any, **options: Any) -> Any:
        found["reads"] += 1
        return read(*arguments, **options)

    def counted_step(*arrays: Any) -> None:
        found["steps"] += 1
        issue(*arrays)

    with patch.object(beam_search, "to_host", counted_read), patch.object(mx, "async_eval", counted_step):
        yield found


@contextmanager
def counted_traces() -> Iterator[Counter[str]]:
    """Counts how often what is compiled from here on runs its Python body, by the function's name."""
    found: Counter[str] = Counter()
    original = mx.compile

    def compile(function: Callable, *arguments: Any, **options: Any) -> Callable:
        def traced(*inputs: Any, **named: Any) -> Any:
            found[name_of(function)] += 1
            return function(*inputs, **named)

        return original(traced, *arguments, **options)

    with patch.object(mx, "compile", compile):
        yield found


def name_of(function: Any) -> str:
    """A function's name; that of what a partial calls."""
    return name_of(function.func) if isinstance(function, functools.partial) else function.__name__
