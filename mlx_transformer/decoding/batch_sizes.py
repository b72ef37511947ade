"""How many sentences a batch should have: few sizes, so that few shapes are compiled, and those that a device likes.

Metal has kernels that multiply few rows (sentences x beams) by a matrix about as fast as one. With more rows it pads
them to 64, so that 16 cost as much as 64. The limits are those of MLX's sources (matmul.cpp, quantized.cpp); we have
not measured them, but `benchmarks.mac` does, on any chip.
"""

import re
from collections.abc import Sequence

import mlx.core as mx

from mlx_transformer.model.precision import gpu_architecture
from mlx_transformer.model.quantization import quantization_of
from mlx_transformer.model.transformer import Transformer

POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
HALVES = (24, 48, 96, 192, 384)  # a batch that sentences join and leave is rarely full

# First generation of Apple's GPUs (M1 is 13, M3 is 15) -> the most rows that kernels for few rows take.
HALF_PRECISION_ROWS = {13: 1, 15: 15}
QUANTIZED_ROWS = {13: 9, 15: 12}


def vector_batch_size(model: Transformer, beams: int) -> int:
    """Return the largest batch whose rows kernels for few rows take; 0 on devices other than Apple's GPUs."""
    generation = re.match(r"applegpu_g(\d+)", gpu_architecture() or "")
    if generation is None or (quantization_of(model) is None and model.dtype == mx.float32):
        return 0
    limits = HALF_PRECISION_ROWS if quantization_of(model) is None else QUANTIZED_ROWS
    return max((rows for first, rows in limits.items() if first <= int(generation[1])), default=0) // beams


def batch_sizes(model: Transformer, beams: int, joinable: bool = False) -> tuple[int, ...]:
    """Return the sizes that batches are padded to, increasing: powers of two, and the `vector_batch_size`.

    There are more of them for batches that sentences join while they are decoded.
    """
    sizes = {*POWERS, *(HALVES if joinable else ()), vector_batch_size(model, beams)}
    return tuple(sorted(sizes - {0}))


def padded_batch_size(count: int, sizes: Sequence[int] = POWERS) -> int:
    """Round a batch size up to one of few, so that few shapes are compiled; one beyond the largest stays."""
    return next((size for size in sizes if size >= count), count)
