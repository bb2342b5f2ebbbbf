"""The loops of `norm_relu`, compiled: each row is normalised, stretched, shifted and cut at zero in place.

    torch                    here
    x, D                     row, its width
    E[x], Var[x]             mean, spread: over the row, divided by D
    gamma, beta, epsilon     weight, bias, epsilon

Only the order of additions is left to the compiler: a NaN stays one.
"""

import math

import numpy as np
from jaxtyping import Float, UInt16

from jepaplan.compiled import compiled

_compiled = compiled(fastmath={"reassoc", "contract", "nsz"})
_HALF, _ONE, _BITS = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)


@_compiled
def norm_relu_float32(
    rows: Float[np.ndarray, "B D"],
    weight: Float[np.ndarray, " D"],
    bias: Float[np.ndarray, " D"],
    epsilon: float,
) -> None:
    """In place."""
    width, zero = rows.shape[1], np.float32(0)
    for number in range(len(rows)):  # of `for row in rows` numba does not know that rows lie without gaps
        row, total = rows[number], zero
        for place in range(width):
            total += row[place]
        mean, total = total / np.float32(width), zero
        for place in range(width):
            total += (row[place] - mean) * (row[place] - mean)
        scale = np.float32(1 / math.sqrt(total / np.float32(width) + epsilon))
        for place in range(width):
            row[place] = max((row[place] - mean) * scale * weight[place] + bias[place], zero)


@_compiled
def norm_relu_bfloat16(
    rows: UInt16[np.ndarray, "B D"],
    weight: Float[np.ndarray, " D"],
    bias: Float[np.ndarray, " D"],
    epsilon: float,
) -> None:
    """In place, bit for bit the upper halves of float32; what is written back is rounded to the nearest."""
    width, zero = rows.shape[1], np.float32(0)
    bits = np.empty(width, np.uint32)
    values = bits.view(np.float32)
    for number in range(len(rows)):
        row, total = rows[number], zero
        for place in range(width):
            bits[place] = np.uint32(row[place]) << _BITS
            total += values[place]
        mean, total = total / np.float32(width), zero
        for place in range(width):
            total += (values[place] - mean) * (values[place] - mean)
        scale = np.float32(1 / math.sqrt(total / np.float32(width) + epsilon))
        for place in range(width):
            values[place] = max((values[place] - mean) * scale * weight[place] + bias[place], zero)
            row[place] = np.uint16((bits[place] + _HALF + ((bits[place] >> _BITS) & _ONE)) >> _BITS)
