"""Counts that predict speed on a GPU without running on one: kernels of a step, host synchronisations, traces.

A kernel is a primitive of the lazily built graph that is not a view. The GPU may launch a few more: a slice update
takes two kernels, and a view of a non-contiguous array may copy it.
"""

import functools
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from graphlib import TopologicalSorter
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_transformer as mt
from mlx_transformer.decoding import running_search
from mlx_transformer.model import exponential, reductions
from mlx_transformer.model.reductions import CHUNK_SIZE

VIEW_PRIMITIVES = {"AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice"}
VIEW_PRIMITIVES |= {"Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View"}
COUNTED_STEP = 3  # by then everything that a search computes only once is done
NODE = re.compile(r'(\d+) \[label ?= ?"([^"]+)", shape=rectangle')
EDGE = re.compile(r'^"?(\w+)"? -> "?(\w+)"?$', re.MULTILINE)


def dot_graph(outputs: Any) -> str:
    """Return the graph of lazy arrays in the DOT language; its nodes are primitives and arrays."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *(array for _, array in tree_flatten(outputs) if isinstance(array, mx.array)))
    return graph.getvalue()


def count_kernels(outputs: Any) -> Counter[str]:
    """Count the kernels that evaluating lazy arrays would launch, by the name of the primitive."""
    return Counter(name for _, name in NODE.findall(dot_graph(outputs)) if name not in VIEW_PRIMITIVES)


def longest_chain(outputs: Any) -> int:
    """Return the number of kernels on the longest path to lazy arrays: each of them waits for the one before it."""
    graph, inputs = dot_graph(outputs), defaultdict(set)
    kernels = {node for node, name in NODE.findall(graph) if name not in VIEW_PRIMITIVES}
    for start, end in EDGE.findall(graph):
        inputs[end].add(start)
    lengths: dict[str, int] = {}
    for node in TopologicalSorter(inputs).static_order():
        lengths[node] = (node in kernels) + max((lengths[start] for start in inputs.get(node, ())), default=0)
    return max(lengths.values(), default=0)


@contextmanager
def simulate_gpu_kernels() -> Iterator[None]:
    """Build normalisation and attention as one kernel each, as on a GPU; the computed values are meaningless.

    The stand-in is a cumulative sum, which is one kernel and is never fused with others. It waits for the other inputs,
    which adds no kernel.
    """

    def one_kernel(x: mx.array, *others: Any, **options: Any) -> mx.array:
        inputs = [other for other in (*others, *options.values()) if isinstance(other, mx.array)]
        return mx.cumsum(mx.depends(x, inputs) if inputs else x, axis=-1)

    with ExitStack() as stack:
        for name in ("rms_norm", "layer_norm", "scaled_dot_product_attention"):
            stack.enter_context(patch.object(mx.fast, name, one_kernel))
        stack.enter_context(patch.object(exponential, "is_exp_scalar", lambda: False))
        stack.enter_context(patch.object(reductions, "chunk_sizes", lambda: [CHUNK_SIZE]))
        yield


def count_step_kernels(
    model: mt.Transformer,
    source: np.ndarray,
    beams: int,
    suppress_ids: tuple[int, ...],
    count: Callable[[Any], Any] = count_kernels,
) -> Any:
    """Count the kernels of one decode step of a search.

    Args:
        model: A model that has not generated yet, because compiled functions are not traced again.
        source: Token ids, int32 (batch, length).
        beams: Beam size.
        suppress_ids: Tokens to suppress, so that the search does not end early.
        count: What to count in the lazy arrays of the step: `count_kernels` or `longest_chain`.

    Raises:
        RuntimeError: If the search does not call `mx.async_eval` at each step.
    """
    issued = 0

    def watch(*arrays: Any) -> None:
        nonlocal issued
        issued += 1
        if issued == COUNTED_STEP:
            raise StepCounted(count(arrays))
        mx.eval(*arrays)

    search = mt.SearchConfig(beam_size=beams, max_tokens=2 * COUNTED_STEP, suppress_ids=suppress_ids)
    try:
        with patch.object(mx, "async_eval", watch):
            mt.generate_ids(model, mx.array(source), search)
    except StepCounted as counted:
        return counted.result
    raise RuntimeError("The search must call mx.async_eval at each step for kernels to be counted: it does not.")


class StepCounted(Exception):
    """Ends a search once the kernels of a step are counted."""

    def __init__(self, result: Any) -> None:
        super().__init__(result)
        self.result = result


def count_mlx_examples_step_kernels(model: Any, source: np.ndarray) -> Counter[str]:
    """Count the kernels of one greedy decode step of the T5 of mlx-examples."""
    memory, cache, last_token = model.encode(mx.array(source)), None, mx.array([0])
    for step in range(1, COUNTED_STEP + 1):
        logits, cache = model.decode(last_token[None], memory, cache=cache)
        last_token = mx.argmax(logits[:, -1, :], axis=-1)
        if step < COUNTED_STEP:
            mx.eval(last_token, cache)
    return count_kernels([last_token, *cache])


def split_by_layer(
    count: Callable[[int], Counter[str]], layers: int
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the kernels of a step, of one decoder layer, and outside the layers, by counting with one layer fewer."""
    total, one_layer_fewer = count(layers), count(layers - 1)
    layer = total.copy()
    layer.subtract(one_layer_fewer)
    outside = total.copy()
    outside.subtract({name: number * layers for name, number in layer.items()})
    return total, +layer, +outside


@contextmanager
def count_host_reads() -> Iterator[Counter[str] | None]:
    """Count the "reads" from the device and the "steps" of a search; yield None if it has no `to_host`."""
    if "to_host" not in vars(running_search):
        yield None
        return
    counts: Counter[str] = Counter()
    read, issue = running_search.to_host, mx.async_eval

    def counted_read(*arguments: Any, **options: Any) -> Any:
        counts["reads"] += 1
        return read(*arguments, **options)

    def counted_step(*arrays: Any) -> None:
        counts["steps"] += 1
        issue(*arrays)

    with patch.object(running_search, "to_host", counted_read), patch.object(mx, "async_eval", counted_step):
        yield counts


@contextmanager
def count_traces() -> Iterator[Counter[str]]:
    """Count how often functions passed to `mx.compile` are traced, by the function's name."""
    counts: Counter[str] = Counter()
    original = mx.compile

    def compile(function: Callable, *arguments: Any, **options: Any) -> Callable:
        def traced(*inputs: Any, **named: Any) -> Any:
            counts[function_name(function)] += 1
            return function(*inputs, **named)

        return original(traced, *arguments, **options)

    with patch.object(mx, "compile", compile):
        yield counts


def function_name(function: Any) -> str:
    """Return the name of a function or of the function that a partial calls."""
    return function_name(function.func) if isinstance(function, functools.partial) else function.__name__
