"""Recurrences without a matrix in their loop, for all positions at once: of the SSRU and of average attention."""

import mlx.core as mx


def linear_recurrence(gates: mx.array, state: mx.array | None = None) -> mx.array:
    """Compute c_t = f_t * c_{t-1} + (1 - f_t) * x_t in float32, with f_t = sigmoid(gates) (Kim et al. 2019, section 3).

    Positions are combined in pairs, fours, eights... in log2(length) steps (Hillis and Steele 1986). All factors are
    from 0 to 1, so nothing overflows.

    Args:
        gates: Inputs x_t and the gates' pre-activations, (rows, length, 2, dims).
        state: The preceding c, float32 (rows, dims); zero if None.

    Returns:
        The cell states c_t, float32 (rows, length, dims).
    """
    inputs, forget = (part.squeeze(2) for part in mx.split(gates.astype(mx.float32), 2, axis=2))
    forget = mx.sigmoid(forget)
    cells = (1 - forget) * inputs
    if state is not None:
        cells = mx.concatenate([cells[:, :1] + forget[:, :1] * state[:, None], cells[:, 1:]], axis=1)
    span = 1  # cells[:, t] holds the contributions of the positions t - span + 1 to t, forget[:, t] their product
    while span < cells.shape[1]:
        cells, forget = cells + forget * _shift(cells, span), forget * _shift(forget, span)
        span *= 2
    return cells


def running_sums(x: mx.array, state: mx.array | None = None) -> mx.array:
    """Sum the inputs of all positions so far, and count them.

    Args:
        x: Inputs, (rows, length, dims).
        state: The preceding sums and their count, float32 (rows, dims + 1); zero if None.

    Returns:
        The sums at each position, followed by their count, float32 (rows, length, dims + 1).
    """
    counted = mx.concatenate([x.astype(mx.float32), mx.ones((*x.shape[:2], 1))], axis=2)
    sums = mx.cumsum(counted, axis=1)
    return sums if state is None else sums + state[:, None]


def _shift(x: mx.array, distance: int) -> mx.array:
    """Move positions to the right, with zeros on the left, (rows, length, dims)."""
    return mx.pad(x[:, :-distance], [(0, 0), (distance, 0), (0, 0)])
