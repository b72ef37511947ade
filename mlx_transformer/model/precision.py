"""Data types: which one a model computes in, by device and stored type."""

import re

import mlx.core as mx

from mlx_transformer.config.model import DTYPE_NAMES, ModelConfig
from mlx_transformer.model.quantization import dequantize
from mlx_transformer.model.transformer import Transformer

DTYPES: dict[str, mx.Dtype] = {name: vars(mx)[name] for name in DTYPE_NAMES}

FIRST_NATIVE_BFLOAT16 = 15  # of Apple's GPU generations: M1 is 13, M2 is 14, M3 is 15


def parse_dtype(dtype: mx.Dtype | str) -> mx.Dtype:
    """Return the MLX data type of a name; ValueError for an unknown name."""
    if isinstance(dtype, mx.Dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return DTYPES[dtype]


def choose_dtype(stored: mx.Dtype, config: ModelConfig, on_cpu: bool, architecture: str) -> mx.Dtype:
    """Choose the default data type.

    The CPU computes in float32, because low precision is slow there. A GPU computes in the stored type; chips without
    native bfloat16 (M1, M2) use float16 instead. A model that overflows float16 never gets float16.

    Args:
        stored: The data type of the stored weights.
        config: The model's configuration.
        on_cpu: Whether the device is the CPU.
        architecture: MLX's name of the GPU, such as "applegpu_g13s".
    """
    if on_cpu:
        return mx.float32
    apple = re.match(r"applegpu_g(\d+)", architecture)
    emulated = apple is not None and int(apple[1]) < FIRST_NATIVE_BFLOAT16
    if config.overflows_float16 and stored != mx.float32:
        return mx.float32 if emulated else mx.bfloat16
    return mx.float16 if emulated and stored == mx.bfloat16 else stored


def check_dtype(dtype: mx.Dtype, config: ModelConfig, allow_overflow: bool | None) -> None:
    """Raise ValueError for float16 with a model that overflows it, unless overflow is allowed (None: cannot be)."""
    if dtype == mx.float16 and config.overflows_float16 and not allow_overflow:
        insist = "" if allow_overflow is None else ", or insist with --allow-overflow (allow_overflow=True)"
        raise ValueError(f"This model's feed-forward networks overflow float16: use bfloat16 or float32{insist}.")


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
        dtype: The data type to compute in; if None, see `choose_dtype`.
        stored: The data type of the stored weights; if None, the model's.
        allow_overflow: Allow float16 even if the model overflows it.

    Raises:
        ValueError: If the model overflows `dtype` and `allow_overflow` is false.
    """
    on_cpu = mx.default_device() == mx.cpu
    architecture = "" if on_cpu else str(mx.device_info()["architecture"])
    default = choose_dtype(stored or model.dtype, model.config, on_cpu, architecture)
    compute_dtype = default if dtype is None else parse_dtype(dtype)
    check_dtype(compute_dtype, model.config, allow_overflow)
    model.set_dtype(compute_dtype)
    if on_cpu:
        dequantize(model)  # after the change of the scales' data type, because float32 is five times as fast as float16
    model.eval()
    mx.eval(model.parameters())  # lazy arrays can be evaluated by the thread that created them only
