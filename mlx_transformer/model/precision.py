"""Data types: which one a model computes in, by device, range of its activations and stored type."""

import re

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_transformer.config.model import DTYPE_NAMES, ModelConfig
from mlx_transformer.model.quantization import dequantize
from mlx_transformer.model.transformer import Transformer

DTYPES: dict[str, mx.Dtype] = {name: vars(mx)[name] for name in DTYPE_NAMES}

# The first generation of GPUs with native bfloat16, by the beginning of MLX's name: M3 (M1 is 13) and Ampere.
FIRST_NATIVE_BFLOAT16 = {"applegpu_g": 15, "sm_": 80}


def parse_dtype(dtype: mx.Dtype | str) -> mx.Dtype:
    """Return the MLX data type of a name; ValueError for an unknown name."""
    if isinstance(dtype, mx.Dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return DTYPES[dtype]


def gpu_architecture() -> str | None:
    """Return MLX's name of the GPU that is the default device, such as "applegpu_g13s" or "sm_90"; None on the CPU."""
    return None if mx.default_device() == mx.cpu else str(mx.device_info()["architecture"])


def has_native_bfloat16(architecture: str) -> bool:
    """Whether a GPU computes in bfloat16 without emulation; unknown GPUs are taken to do so."""
    generation = re.match(r"(applegpu_g|sm_)(\d+)", architecture)
    return generation is None or int(generation[2]) >= FIRST_NATIVE_BFLOAT16[generation[1]]


def choose_dtype(stored: mx.Dtype, config: ModelConfig, architecture: str | None) -> mx.Dtype:
    """Choose the default data type to compute in.

    The CPU computes in float32, because low precision is slow there. A GPU computes in 16 bits: they halve the bytes
    that each step reads, and some of Metal's kernels have no float32. A model that overflows float16 gets bfloat16, or
    float32 on a GPU without native bfloat16.

    Args:
        stored: The data type of the stored weights.
        config: The model's configuration.
        architecture: See `gpu_architecture`.
    """
    if architecture is None:
        return mx.float32
    is_native = has_native_bfloat16(architecture)
    if config.overflows_float16:
        return mx.bfloat16 if is_native else mx.float32
    return mx.bfloat16 if is_native and stored == mx.bfloat16 else mx.float16


def default_dtype(stored: mx.Dtype, config: ModelConfig) -> mx.Dtype:
    """Return the data type that a model computes in on the default device, if no other one is asked for."""
    return choose_dtype(stored, config, gpu_architecture())


def explain_default(dtype: mx.Dtype, config: ModelConfig) -> str:
    """Return a line about the data type that `default_dtype` returned for a model, with the reason."""
    name = str(dtype).removeprefix("mlx.core.")
    if gpu_architecture() is None:
        return f"{name} on the CPU: lower precision is slow here"
    reasons = {
        mx.float16: "half the bytes of float32, and the model stays in its range",
        mx.bfloat16: "the model overflows float16" if config.overflows_float16 else "the model is stored in it",
        mx.float32: "the model overflows float16, and this GPU has no native bfloat16",
    }
    return f"{name} on this GPU: {reasons[dtype]}"


def check_dtype(dtype: mx.Dtype, config: ModelConfig, allow_overflow: bool | None) -> None:
    """Raise ValueError for float16 with a model that overflows it, unless overflow is allowed (None: cannot be)."""
    if dtype == mx.float16 and config.overflows_float16 and not allow_overflow:
        insist = "" if allow_overflow is None else ", or insist with --allow-overflow (allow_overflow=True)"
        raise ValueError(f"This model's feed-forward networks overflow float16: use bfloat16 or float32{insist}.")


def compute_dtype(
    dtype: mx.Dtype | str | None, stored: mx.Dtype, config: ModelConfig, allow_overflow: bool
) -> mx.Dtype:
    """Return the data type to compute in, the default if None; ValueError if the model overflows it."""
    chosen = default_dtype(stored, config) if dtype is None else parse_dtype(dtype)
    check_dtype(chosen, config, allow_overflow)
    return chosen


def evaluate_weights(model: Transformer) -> None:
    """Evaluate a model's weights one by one: then little more memory is needed than theirs to read or convert them."""
    for array in dict(tree_flatten(model.parameters())).values():
        mx.eval(array)
        mx.clear_cache()


def prepare_for_inference(
    model: Transformer,
    dtype: mx.Dtype | str | None = None,
    *,
    stored: mx.Dtype | None = None,
    allow_overflow: bool = False,
) -> None:
    """Prepare a model for inference in place: data type, evaluation mode, and on the CPU dequantised weights.

    Args:
        model: The model.
        dtype: The data type to compute in; if None, see `default_dtype`.
        stored: The data type of the stored weights; if None, the model's.
        allow_overflow: Allow float16 even if the model overflows it.

    Raises:
        ValueError: If the model overflows `dtype` and `allow_overflow` is false.
    """
    model.set_dtype(compute_dtype(dtype, stored or model.dtype, model.config, allow_overflow))
    if mx.default_device() == mx.cpu:
        dequantize(model)  # after the change of the scales' data type, because float32 is five times as fast as float16
    model.eval()
    evaluate_weights(model)  # lazy arrays can be evaluated by the thread that created them only
