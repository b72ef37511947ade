"""Functions of exp by arithmetic that C++ compilers vectorise, for x86 CPUs.

MLX computes exp, erf and tanh one number at a time there, and four at a time or more on Apple silicon, on other ARM
CPUs and on GPUs, where this module calls MLX's own. Arguments are finite, or -inf where a function says so.
"""

import math
import platform
from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_transformer.model.reductions import reduce_rows

LOWEST = -44.0  # exp of this and less is zero
DEGREE = 6  # of the polynomial for exp between -ln(2) / 2 and ln(2) / 2; the relative errors of exp are below 2e-7
LOG2_E = 1 / math.log(2)
LN2_HIGH = 0.693359375  # its products with whole numbers below 2**14 are exact
LN2_LOW = math.log(2) - LN2_HIGH
ROUNDING = 1.5 * 2**23  # a float32 plus this is rounded to a whole number, which its last bits then hold
EXPONENT_OF_ONE = 127 << 23  # the bits of 1.0
# erf(x) = 1 - t (c1 + c2 t + ... + c5 t^4) exp(-x^2), t = 1 / (1 + p x), for x >= 0, with an error below 1.5e-7
# (Abramowitz and Stegun 1964, 7.1.26).
ERF_P = 0.3275911
ERF_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _fit_polynomial() -> list[float]:
    """Return coefficients that approximate exp with the least relative error on [-ln(2) / 2, ln(2) / 2]."""
    points = np.cos(np.pi * (np.arange(200) + 0.5) / 200) * math.log(2) / 2
    powers = np.vander(points, DEGREE + 1, increasing=True) / np.exp(points)[:, None]
    return np.linalg.lstsq(powers, np.ones_like(points), rcond=None)[0].tolist()


COEFFICIENTS = _fit_polynomial()


def is_exp_scalar() -> bool:
    """Whether MLX computes exp one number at a time on the current device."""
    return mx.default_device() == mx.cpu and platform.machine() in ("x86_64", "AMD64")


def _is_vectorisable(x: mx.array) -> bool:
    return x.dtype == mx.float32 and is_exp_scalar()


def exp_of_negative(x: mx.array) -> mx.array:
    """Return exp(x) of numbers from -inf to 0: 2**n * exp(x - n * ln(2)), n = x / ln(2) rounded to a whole number."""
    return cast(mx.array, _exp_of_negative(x)) if _is_vectorisable(x) else mx.exp(x)


@mx.custom_function
def _exp_of_negative(x: mx.array) -> mx.array:
    x = _end_kernel(mx.maximum(x, LOWEST))
    shifted = _end_kernel(x * LOG2_E + ROUNDING)
    power = ((shifted.view(mx.int32) << 23) + EXPONENT_OF_ONE).view(mx.float32)
    n = shifted - ROUNDING
    fraction = _end_kernel((x - n * LN2_HIGH) - n * LN2_LOW)
    return _end_kernel(
        mx.maximum(_end_kernel(_polynomial(fraction, COEFFICIENTS)) * power - 1.01 * math.exp(LOWEST), 0)
    )


@_exp_of_negative.vjp
def _exp_of_negative_vjp(x: mx.array, cotangent: mx.array, exponential: mx.array) -> mx.array:
    return cotangent * exponential


def _end_kernel(x: mx.array) -> mx.array:
    """Return x through a view, across which `mx.compile` does not fuse.

    MLX fuses at most 11 operations in a row. If the next one involves a constant, the kernel gets it as an array, and
    the compiler does not vectorise the kernel. Counted from a view, the eleventh operation here has no constant.
    """
    return x[None].squeeze(0)


def _polynomial(x: mx.array, coefficients: Sequence[float]) -> mx.array:
    """Return the polynomial with these coefficients, the constant first, by pairs of terms (Estrin 1960)."""
    square = x * x
    *pairs, result = [
        pair[0] + pair[1] * x if len(pair) == 2 else mx.array(pair[0], x.dtype)
        for pair in (coefficients[i : i + 2] for i in range(0, len(coefficients), 2))
    ]
    for pair in reversed(pairs):
        result = result * square + pair
    return result


def logsumexp(x: mx.array) -> mx.array:
    """Return log(sum(exp(x))) over the last axis, which is kept, in float32; x may be -inf."""
    if not _is_vectorisable(x):
        return mx.logsumexp(x.astype(mx.float32), axis=-1, keepdims=True)
    largest, _, sums = exponentials_and_sums(x)
    return largest + mx.log(sums)


def exponentials_and_sums(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return the largest value of each row, exp of the differences from it, and their sums, the last axis kept."""
    largest = mx.maximum(reduce_rows(x, mx.max), mx.finfo(mx.float32).min)
    exponentials = exp_of_negative(x - largest)
    return largest, exponentials, reduce_rows(exponentials, mx.sum)


def softmax(x: mx.array) -> mx.array:
    """Return the softmax over the last axis, which has at least one finite value."""
    return cast(mx.array, _softmax(x)) if _is_vectorisable(x) else mx.softmax(x, axis=-1)


@mx.custom_function
def _softmax(x: mx.array) -> mx.array:
    _, exponentials, sums = exponentials_and_sums(x)
    return exponentials / sums


@_softmax.vjp
def _softmax_vjp(x: mx.array, cotangent: mx.array, probabilities: mx.array) -> mx.array:
    products = probabilities * cotangent
    return products - probabilities * reduce_rows(products, mx.sum)


def silu(x: mx.array) -> mx.array:
    """Return x * sigmoid(x) (Elfwing et al. 2018), elementwise."""
    return _gate(x, x) if _is_vectorisable(x) else nn.silu(x)


def quick_gelu(x: mx.array) -> mx.array:
    """Return x * sigmoid(1.702 * x), an approximation of GELU (Hendrycks and Gimpel 2016), elementwise."""
    return _gate(x, 1.702 * x) if _is_vectorisable(x) else nn.gelu_fast_approx(x)


def gelu_tanh(x: mx.array) -> mx.array:
    """Return x * (1 + tanh(y)) / 2, y = sqrt(2 / pi) * (x + 0.044715 * x**3) (Hendrycks and Gimpel 2016)."""
    if not _is_vectorisable(x):
        return nn.gelu_approx(x)
    return _gate(x, math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))


def gelu(x: mx.array) -> mx.array:
    """Return x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016), elementwise."""
    if not _is_vectorisable(x):
        return nn.gelu(x)
    magnitude = mx.abs(x)
    t = _end_kernel(1 / (1 + ERF_P / math.sqrt(2) * magnitude))
    difference = magnitude * t * _end_kernel(_polynomial(t, ERF_COEFFICIENTS)) * exp_of_negative(-x * x / 2)
    return 0.5 * x + 0.5 * magnitude - 0.5 * difference


def _gate(x: mx.array, logits: mx.array) -> mx.array:
    """Return x * sigmoid(logits) for logits with the signs of x."""
    exponential, half, half_magnitude = exp_of_negative(-mx.abs(logits)), 0.5 * x, 0.5 * mx.abs(x)
    # The maximum and the minimum of x and 0; mx.maximum and mx.minimum would have no gradient at 0.
    positive, negative = half + half_magnitude, half - half_magnitude
    return (positive + negative * exponential) / (1 + exponential)
