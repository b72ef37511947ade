"""Types of numbers: what a model computes in on which device, and weights stored in few bits."""

import re

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_transformer.config import DTYPE_NAMES, ModelConfig, QuantizationConfig
from mlx_transformer.model import Transformer

DTYPES: dict[str, mx.Dtype] = {name: vars(mx)[name] for name in DTYPE_NAMES}
FIRST_WITH_BFLOAT16 = 15  # of Apple's GPU generations: M1 is 13, M2 is 14, M3 is 15


def find_dtype(dtype: mx.Dtype | str) -> mx.Dtype:
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
    emulated = apple is not None and int(apple[1]) < FIRST_WITH_BFLOAT16
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


def make_ready(
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
    wanted = usual if dtype is None else find_dtype(dtype)
    check_dtype(wanted, model.config, allow_overflow)
    model.set_dtype(wanted)
    model.eval()
    mx.eval(model.parameters())  # arrays not yet read could be read by this thread alone


def quantize_weights(model: Transformer, config: QuantizationConfig) -> None:
    """Quantise linear layers and token embeddings in place; positions, relative biases and norms stay as they are.

    Raises:
        ValueError: If a width is no multiple of the group size.
    """

    def chosen(path: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear | nn.Embedding) or path.endswith(("positions", "relative_bias")):
            return False
        width = module.weight.shape[-1]
        if width % config.group_size:
            raise ValueError(f"Widths to quantise must be multiples of {config.group_size}: {path} has {width}.")
        return True

    nn.quantize(model, config.group_size, config.bits, class_predicate=chosen)


def quantization(model: nn.Module) -> QuantizationConfig | None:
    """How a model is quantised, None if it is not."""
    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return QuantizationConfig(module.bits, module.group_size)
    return None


def dequantize(model: nn.Module) -> None:
    """Give quantised layers plain weights again, in place."""
    leaves = []
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            layer = nn.Linear(1, 1) if isinstance(module, nn.QuantizedLinear) else nn.Embedding(1, 1)
            layer.weight = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
            layer.pop("bias", None)
            if "bias" in module:
                layer.bias = module.bias
            leaves.append((path, layer))
    model.update_modules(tree_unflatten(leaves))
