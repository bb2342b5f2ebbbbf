"""The loops of `int8`, compiled: what lies between two products of 8-bit integers, one pass over the rows.

    quantisation                 here
    q = round(x / s), s per row  `latents_to_integers`: q in [-127, 127]; after a ReLU, where nothing is
                                 negative, q in [0, 254] is kept as q - 127, so no level is wasted
    zero-point correction        `offset`: 127 times the sum of each output's weights, added to the product
    dequantisation               (product + offset) * scale of the row * scale of the output + bias
    LayerNorm                    x / sqrt(mean of x^2 + epsilon) * weight + bias, for x whose mean is zero

Floats are told apart and rounded by their bits, which is what makes these loops fast: bits of floats that are
not negative are ordered as the floats are, with infinity and then what is no number at the end, and a float
plus 1.5 * 2^23 ends in the bits of the nearest integer. A row with a number that is none, or infinite, or
whose squares add up to infinity, gets the scale NaN, and with it all that follows.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8, Int32

from jepaplan.compiled import compiled

# The order of additions is left to the compiler; rounding by bits is not touched by it, as nothing is
# subtracted again.
_FREEDOM = {"reassoc", "contract", "nsz"}
_compiled = compiled(fastmath=_FREEDOM)
# a part of other loops: called for every row, its arguments would be counted each time
_part = compiled(fastmath=_FREEDOM, inline="always")
_ZERO, _LEVELS, _MIDDLE = np.float32(0), np.float32(254), np.float32(127)
_ROUNDS = np.float32(1.5 * 2**23)
_INFINITE, _MAGNITUDE = np.int32(0x7F800000), np.int32(0x7FFFFFFF)


class Rows(NamedTuple):
    """Rows of 8-bit integers, and what a one of them is worth in each row."""

    numbers: Int8[np.ndarray, "B I"]
    scale: Float[np.ndarray, " B"]


class Sums(NamedTuple):
    """Products of rows and weights, and the scale of those rows."""

    numbers: Int32[np.ndarray, "B O"]
    scale: Float[np.ndarray, " B"]


class Layer(NamedTuple):
    """How the product of one layer is read; its weights are in the product already."""

    scale: Float[np.ndarray, " O"]  # of each output's weights
    offset: Float[np.ndarray, " O"]  # whole numbers; zeros where rows were not moved by 127
    bias: Float[np.ndarray, " O"]


class Norm(NamedTuple):
    """LayerNorm's; not `active`: there is none."""

    active: bool
    weight: Float[np.ndarray, " O"]
    bias: Float[np.ndarray, " O"]
    epsilon: float


@_compiled
def latents_to_integers(latents: Float[np.ndarray, "B D"], rows: Rows) -> None:
    """Fill `rows`."""
    width = latents.shape[1]
    values = np.empty(width, np.float32)
    bits = values.view(np.int32)
    for number in range(len(latents)):
        largest = np.int32(0)
        for place in range(width):
            values[place] = latents[number, place]
            largest = max(largest, np.int32(bits[place] & _MAGNITUDE))
        _to_integers(values, largest, _MIDDLE, _ROUNDS, rows, number)


@_compiled
def hidden_to_integers(
    sums: Sums,
    layer: Layer,
    action: Float[np.ndarray, "B A"],
    of_action: Float[np.ndarray, "A O"],
    norm: Norm,
    rows: Rows,
) -> None:
    """Fill `rows`; `action` has no columns but in the first layer.

    What is normed has a mean of zero already, up to the rounding of the weights, out of which `Int8Predictor`
    takes it.
    """
    width = sums.numbers.shape[1]
    values = np.empty(width, np.float32)
    bits = values.view(np.int32)
    for number in range(len(sums.numbers)):
        squares = _read(sums.numbers[number], sums.scale[number], layer, values)
        for index in range(action.shape[1]):
            amount, squares = action[number, index], _ZERO
            for place in range(width):
                values[place] += amount * of_action[index, place]
                squares += values[place] * values[place]
        # what is no number may have a sign, and what is infinite may be below zero: a ReLU would lose both
        largest = np.int32(0) if squares < np.float32(math.inf) else _INFINITE
        if norm.active:
            stretch = np.float32(1 / math.sqrt(squares / np.float32(width) + norm.epsilon))
            for place in range(width):
                values[place] = max(values[place] * stretch * norm.weight[place] + norm.bias[place], _ZERO)
                largest = max(largest, bits[place])
        else:
            for place in range(width):
                values[place] = max(values[place], _ZERO)
                largest = max(largest, bits[place])
        _to_integers(values, largest, _LEVELS, _ROUNDS - _MIDDLE, rows, number)


@_compiled
def to_latents(
    sums: Sums,
    layer: Layer,
    before: Float[np.ndarray, "B D"],
    residual: bool,
    latents: Float[np.ndarray, "B D"],
) -> None:
    """Fill `latents`: the last O numbers are new or have moved, those in front stay."""
    held = before.shape[1] - sums.numbers.shape[1]
    for number in range(len(sums.numbers)):
        for place in range(held):
            latents[number, place] = before[number, place]
        old, new = before[number, held:], latents[number, held:]
        _read(sums.numbers[number], sums.scale[number], layer, new)
        if residual:
            for place in range(len(new)):
                new[place] += old[place]


@_part
def _read(
    product: Int32[np.ndarray, " O"], scale: float, layer: Layer, values: Float[np.ndarray, " O"]
) -> Any:
    """Fill `values`; the sum of their squares."""
    squares = _ZERO
    for place in range(len(values)):
        whole = np.float32(product[place]) + layer.offset[place]
        value = whole * scale * layer.scale[place] + layer.bias[place]
        values[place] = value
        squares += value * value
    return squares


@_part
def _to_integers(
    values: Float[np.ndarray, " I"],
    largest: int,
    levels: float,
    rounds: float,
    rows: Rows,
    number: int,
) -> None:
    """Row `number`, from `values`, which are overwritten, and the largest of their bits."""
    # a view made here is seen to be the same memory, without which this is not vectorised
    bits, out = values.view(np.int32), rows.numbers[number]
    if largest >= _INFINITE:
        rows.scale[number] = np.float32(math.nan)
        for place in range(len(out)):
            out[place] = 0
        return
    first, bits[0] = bits[0], largest
    most, bits[0] = values[0], first
    rows.scale[number] = most / levels
    per_level = levels / most if most > _ZERO else _ZERO
    for place in range(len(values)):
        values[place] = values[place] * per_level + rounds
        out[place] = np.int8(bits[place])
