"""What tables of families apply to tensors and settings: packed rows, position rows, names of activations."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.model.positions import sinusoidal_positions

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}


def slice_rows(part: int, parts: int = 3) -> Callable[[mx.array], mx.array]:
    """One of the equal parts of a tensor's rows: packed projections hold the query's, the key's and the value's."""

    def cut(array: mx.array) -> mx.array:
        size = array.shape[0] // parts
        # A slice would keep the whole tensor in memory.
        return mx.take(array, mx.arange(part * size, (part + 1) * size), axis=0)

    return cut


def skip_rows(count: int) -> Callable[[mx.array], mx.array]:
    """Without the first rows: tables of positions that begin after some rows that nothing reads."""
    return lambda array: array[count:]


def flatten_bias(array: mx.array) -> mx.array:
    """A vector: biases of shape (1, vocab)."""
    return array.flatten()


def position_table(array: mx.array) -> mx.array:
    """Without sides of 1: buffers of position rows of shape (1, length, dims) or (length, 1, dims)."""
    return array.reshape(max(array.shape[:-1], default=1), array.shape[-1])


def sinusoidal_interleaved(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Sines in even columns, cosines in odd ones."""
    return sinusoidal_positions(stack.max_length, config.dims)


def sinusoidal_halves(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Sines in the left half, cosines in the right one, of the same frequencies as interleaved."""
    angles = np.arange(stack.max_length)[:, None] / 10000.0 ** (np.arange(0, config.dims, 2) / config.dims)
    return mx.array(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : config.dims].astype(np.float32))


def sinusoidal_spread(config: ModelConfig, stack: StackConfig, first: int = 0) -> mx.array:
    """Halves whose last frequency is 1/10000 itself, as in tensor2tensor; computed in float32, as their tables are."""
    half = config.dims // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / max(half - 1, 1)))
    angles = np.arange(first, first + stack.max_length, dtype=np.float32)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return mx.array(np.pad(table, [(0, 0), (0, config.dims - 2 * half)]))


def spread_after_padding(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Spread rows that begin after the padding token's: with padding on the right, positions are a plain range."""
    return sinusoidal_spread(config, stack, first=config.pad_id + 1)


def activation(name: str) -> str:
    """Our name of an activation."""
    return ACTIVATIONS.get(name, name)


def gate_activation(name: str) -> str:
    """Our name of the activation in "relu" or "gated-gelu"."""
    return "gelu_tanh" if name == "gated-gelu" else activation(name.removeprefix("gated-"))


def exact_gate_activation(name: str) -> str:
    """The same where a gated gelu is the exact one."""
    return activation(name.removeprefix("gated-"))


def require_equal(one: str, other: str, default: str) -> Callable[[dict[str, Any]], str]:
    """Our name of an activation that both stacks must have."""

    def find(settings: dict[str, Any]) -> str:
        names = {settings.get(key) or default for key in (one, other)}
        if len(names) > 1:
            raise ValueError(f"Activations must be one, not {', '.join(sorted(names))}.")
        return activation(names.pop())

    return find


def first_value(key: str, default: int | None = None) -> Callable[[dict[str, Any]], Any]:
    """A setting that may be a list, of which the first counts."""

    def find(settings: dict[str, Any]) -> Any:
        value = settings.get(key)
        value = value[0] if isinstance(value, list) else value
        return default if value is None else value

    return find


def vocabulary_id(settings: dict[str, Any], text: str, usual: int) -> int:
    """The id of a token of the target vocabulary, where the settings hold it as a list."""
    vocabulary = settings.get("vocab")
    tokens = vocabulary.get("tgt") if isinstance(vocabulary, dict) else None
    return tokens.index(text) if isinstance(tokens, list) and text in tokens else usual


def is_gated(name: str) -> bool:
    """Whether the feed-forward network has a gate."""
    return name.startswith("gated-")


def scale_if_tied(settings: dict[str, Any]) -> float:
    """What the last hidden state is multiplied by, where the output layer was tied when the model was trained."""
    scaled = settings.get("scale_decoder_outputs")
    if scaled is None:
        scaled = settings.get("tie_word_embeddings") is not False
    return float(settings["d_model"]) ** -0.5 if scaled else 1.0
