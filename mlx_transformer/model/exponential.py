"""Functions of exp by arithmetic that C++ compilers vectorise, for x86 CPUs.

MLX computes exp one number at a time there, and four at a time or more on Apple silicon, on other ARM CPUs and on GPUs,
where these functions are MLX's own.
"""

import platform

import mlx.core as mx
import mlx.nn as nn
import numpy as np

LOWEST = -87.0  # exp of much less is no normal float32
SQUARINGS = 6
DEGREE = 7  # of the polynomial; with the squarings, relative errors are below 1e-5 from -20 on, 4e-5 elsewhere


def _fit_polynomial() -> list[float]:
    """Return coefficients that approximate exp with the least relative error on [LOWEST / 2**SQUARINGS, 0]."""
    points = (np.cos(np.pi * (np.arange(200) + 0.5) / 200) - 1) * -LOWEST / 2 ** (SQUARINGS + 1)
    powers = np.vander(points, DEGREE + 1, increasing=True) / np.exp(points)[:, None]
    return np.linalg.lstsq(powers, np.ones_like(points), rcond=None)[0].tolist()


COEFFICIENTS = _fit_polynomial()


def is_exp_scalar() -> bool:
    """Whether MLX computes exp one number at a time on the current device."""
    return mx.default_device() == mx.cpu and platform.machine() in ("x86_64", "AMD64")


def exp_of_negative(x: mx.array) -> mx.array:
    """Return exp(x) of float32 numbers from -inf to 0: exp(x / 64) by a polynomial, squared six times."""
    x = mx.maximum(x, LOWEST) * (1 / 2**SQUARINGS)
    result = mx.array(COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        result = result * x + coefficient
    for _ in range(SQUARINGS):
        result = result * result
    return result


def logsumexp(x: mx.array) -> mx.array:
    """Return log(sum(exp(x))) over the last axis, which is kept, in float32; NaN for a row with +inf."""
    if x.dtype != mx.float32 or not is_exp_scalar():
        return mx.logsumexp(x.astype(mx.float32), axis=-1, keepdims=True)
    highest = mx.maximum(x.max(axis=-1, keepdims=True), mx.finfo(mx.float32).min)
    return highest + mx.log(exp_of_negative(x - highest).sum(axis=-1, keepdims=True))


def silu(x: mx.array) -> mx.array:
    """Return x * sigmoid(x) (Elfwing et al. 2018), elementwise."""
    if x.dtype != mx.float32 or not is_exp_scalar():
        return nn.silu(x)
    return _silu(x)


@mx.compile
def _silu(x: mx.array) -> mx.array:
    exponential = exp_of_negative(-mx.abs(x))
    return x * mx.where(x >= 0, 1, exponential) / (1 + exponential)
