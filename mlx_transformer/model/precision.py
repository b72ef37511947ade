"""Data types: which one a model computes in on which device."""

import re

import mlx.core as mx

from mlx_transformer.config.model import DTYPE_NAMES, ModelConfig
from mlx_transformer.model.quantization import dequantize
from mlx_transformer.model.transformer import Transformer

DTYPES: dict[str, mx.Dtype] = {name: vars(mx)[name] for name in DTYPE_NAMES}

FIRST_NATIVE_BFLOAT16 = 15  # of Apple's GPU generations: M1 is 13, M2 is 14, M3 is 15


def parse_dtype(dtype: mx.Dtype | str) -> mx.Dtype:
    """A type of numbers by its name."""
    if isinstance(dtype, mx.Dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return DTYPES[dtype]


def choose_dtype(stored: mx.Dtype, config: ModelConfig, on_cpu: bool, architecture: str) -> mx.Dtype:
    """What to compute in where nobody says it.

    The CPU gets float32, for it is slow in low precision; a GPU what is stored, but float16 for bfloat16 where the
    chip has no bfloat16 of its own. A model that leaves the range of float16 never gets that.

    Args:
        stored: The type of the stored numbers.
        config: The model.
        on_cpu: Whether the device is the CPU.
        architecture: What MLX calls the GPU, such as "applegpu_g13s".
    """
    if on_cpu:
        return mx.float32
    apple = re.match(r"applegpu_g(\d+)", architecture)
    emulated = apple is not None and int(apple[1]) < FIRST_NATIVE_BFLOAT16
    if config.overflows_float16 and stored != mx.float32:
        return mx.float32 if emulated else mx.bfloat16
    return mx.float16 if emulated and stored == mx.bfloat16 else stored


def check_dtype(dtype: mx.Dtype, config: ModelConfig, allow_overflow: bool) -> None:
    """Refuse float16 for a model that leaves its range, unless it is asked for twice."""
    if dtype == mx.float16 and config.overflows_float16 and not allow_overflow:
        raise ValueError(
            "This model's feed-forward networks overflow float16: use bfloat16 or float32, or insist with "
            "--allow-overflow (allow_overflow=True)."
        )


def prepare_for_inference(
    model: Transformer,
    dtype: mx.Dtype | str | None = None,
    *,
    stored: mx.Dtype | None = None,
    allow_overflow: bool = False,
) -> None:
    """Set a model up to generate; the CPU gets plain weights.

    Args:
        model: The model.
        dtype: What to compute in; if None, what `choose_dtype` finds.
        stored: The type of the stored numbers; if None, that of the model.
        allow_overflow: Compute in float16 even if the model leaves its range.

    Raises:
        ValueError: If it would overflow and nobody insists.
    """
    on_cpu = mx.default_device() == mx.cpu
    if on_cpu:
        dequantize(model)
    architecture = "" if on_cpu else str(mx.device_info()["architecture"])
    usual = choose_dtype(stored or model.dtype, model.config, on_cpu, architecture)
    wanted = usual if dtype is None else parse_dtype(dtype)
    check_dtype(wanted, model.config, allow_overflow)
    model.set_dtype(wanted)
    model.eval()
    mx.eval(model.parameters())  # arrays not yet read could be read by this thread alone
