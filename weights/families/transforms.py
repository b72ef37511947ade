"""Functions that families apply to tensors and settings: packed projections, positions, names of activations."""

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.messages import short_names
from mlx_transformer.model.positions import sinusoidal_positions

logger = logging.getLogger(__name__)

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}


def slice_rows(part: int, parts: int = 3) -> Callable[[mx.array], mx.array]:
    """Return a function that takes one of equal parts of a tensor's rows, such as the key of a packed projection."""

    def take_part(array: mx.array) -> mx.array:
        size = array.shape[0] // parts
        # A slice would keep the whole tensor in memory.
        return mx.take(array, mx.arange(part * size, (part + 1) * size), axis=0)

    return take_part


def skip_rows(count: int) -> Callable[[mx.array], mx.array]:
    """Return a function that drops the first rows, which the model never reads, of a table of positions."""
    return lambda array: array[count:]


def flatten_bias(array: mx.array) -> mx.array:
    """Reshape a bias (1, vocab) to (vocab,)."""
    return array.flatten()


def squeeze_kernel(array: mx.array) -> mx.array:
    """Reshape the weight of a convolution of width 1 to that of a linear layer; others and biases stay as they are."""
    return array.reshape(array.shape[:2])


def position_table(array: mx.array) -> mx.array:
    """Reshape a buffer of positions, (1, length, dims) or (length, 1, dims), to (length, dims)."""
    return array.reshape(max(array.shape[:-1], default=1), array.shape[-1])


def sinusoidal_interleaved(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Compute positions with sines in even columns and cosines in odd ones, (max_length, dims)."""
    return sinusoidal_positions(stack.max_length, config.dims)


def sinusoidal_halves(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Compute positions with sines in the left half and cosines in the right one; frequencies as if interleaved."""
    angles = np.arange(stack.max_length)[:, None] / 10000.0 ** (np.arange(0, config.dims, 2) / config.dims)
    return mx.array(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : config.dims].astype(np.float32))


def sinusoidal_after_padding(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Compute positions as fairseq does: tensor2tensor's sinusoids, numbered from pad_id + 1."""
    return _tensor2tensor(config, stack, first=config.pad_id + 1)


def sinusoidal_tensor2tensor(config: ModelConfig, stack: StackConfig) -> mx.array:
    """Compute positions as tensor2tensor and Marian do, numbered from 0."""
    return _tensor2tensor(config, stack, first=0)


def _tensor2tensor(config: ModelConfig, stack: StackConfig, first: int) -> mx.array:
    """Compute tensor2tensor's sinusoids, numbered from `first`.

    Sines fill the left half and cosines the right one; the last frequency is 1/10000. All is computed in float32.
    """
    half = config.dims // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / max(half - 1, 1)))
    angles = np.arange(first, first + stack.max_length, dtype=np.float32)[:, None] * frequencies
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return mx.array(np.pad(table, [(0, 0), (0, config.dims - 2 * half)]))


def activation(name: str) -> str:
    """Return the name that StackConfig has for an activation."""
    return ACTIVATIONS.get(name, name)


def gate_activation(name: str) -> str:
    """Return the activation of a name such as "relu" or "gated-gelu", where a gated gelu is the tanh approximation."""
    return "gelu_tanh" if name == "gated-gelu" else activation(name.removeprefix("gated-"))


def exact_gate_activation(name: str) -> str:
    """Return the activation of a name such as "relu" or "gated-gelu", where a gated gelu is exact."""
    return activation(name.removeprefix("gated-"))


def same_activation(encoder_key: str, decoder_key: str, default: str) -> Callable[[dict[str, Any]], str]:
    """Return a function from settings to the activation, which must be the same in both stacks."""

    def read(settings: dict[str, Any]) -> str:
        names = {settings.get(key) or default for key in (encoder_key, decoder_key)}
        if len(names) > 1:
            raise ValueError(f"Both stacks must have the same activation, not {short_names(sorted(names))}.")
        return activation(names.pop())

    return read


def end_ids(settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return the end tokens of a config.json, without its padding token unless that is the only one."""
    value = settings.get("eos_token_id")
    values = list(dict.fromkeys(value)) if isinstance(value, list) else [value]
    padding = settings.get("pad_token_id")
    return tuple(token for token in values if token != padding or len(values) == 1)


def first_end_id(default: int | None = None) -> Callable[[dict[str, Any]], Any]:
    """Return a function from settings to the end token, the first if there are several."""

    def read(settings: dict[str, Any]) -> Any:
        token = next(iter(end_ids(settings)), None)
        return default if token is None else token

    return read


def extra_end_ids(settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return the end tokens after the first; warn about padding among them, which the search never generates."""
    ids, configured = end_ids(settings), settings.get("eos_token_id")
    if isinstance(configured, list) and set(configured) - set(ids):
        logger.warning("The end token %s is ignored: it is the padding token.", settings["pad_token_id"])
    return ids[1:]


def vocabulary_id(settings: dict[str, Any], token: str, default: int) -> int:
    """Return the id of a token in the target vocabulary, if the settings hold that as a list."""
    vocabulary = settings.get("vocab")
    tokens = vocabulary.get("tgt") if isinstance(vocabulary, dict) else None
    return tokens.index(token) if isinstance(tokens, list) and token in tokens else default


def is_gated(name: str) -> bool:
    """Return whether an activation such as "gated-gelu" has a gate."""
    return name.startswith("gated-")


def scale_if_tied(settings: dict[str, Any]) -> float:
    """Return the factor of the last hidden states: dims**-0.5 if the output layer was tied in training, else 1."""
    scaled = settings.get("scale_decoder_outputs")
    if scaled is None:
        scaled = settings.get("tie_word_embeddings") is not False
    return settings["d_model"] ** -0.5 if scaled else 1.0
