"""One move in the tile rooms: what it touches decides whether it happens and what it changes.

    touches                                          then the move
    a wall, a closed door, the frame                 does not happen
    a one-way door, against its arrow                does not happen
    a pit                                            ends in the middle of the first one
    the key's tile                                   ends in its middle, and the key is held
    one closed door, with the key                    happens, the door is open, the key is gone

A move that does not happen changes nothing: it drops nobody into a pit and touches neither key nor door.
Touching both closed doors with the key opens one and is stopped by the other.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.envs.segments import crosses_rectangle, entry_fraction
from jepaplan.envs.tile_rooms_layouts import HIGH, KEY, LOW, Rectangles, TileLayouts

TOUCH = 1e-11  # pixels; wider than float64 rounding, so that a move is never free by a rounding error
Segment = tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]  # start and end, float64


def move(
    layouts: TileLayouts, number: Int[Tensor, " B"], mode: Int[Tensor, " B"], segment: Segment
) -> tuple[Float[Tensor, "B 2"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """Where each segment ends, the mode after it, and whether it happens at all."""
    start, end = segment
    after = pass_gates(layouts, number, mode, segment)
    stopped = ~in_box(start) | ~in_box(end) | _backwards(layouts, number, segment)
    stopped |= touched(layouts.solids, (number, after), segment).any(-1)
    stopped |= touched(layouts.pits, number, (start, start)).any(-1)
    if layouts.passages:
        taken = (mode == 0) & (after == 1)
        end = torch.where(taken[:, None], layouts.gates.centre[number, KEY], end)
    pit, falls = first_pit(layouts, number, segment)
    return torch.where(falls[:, None], pit, end), after, ~stopped


def is_free(
    layouts: TileLayouts, number: Int[Tensor, " B"], mode: Int[Tensor, " B"], place: Float[Tensor, "B 2"]
) -> Bool[Tensor, " B"]:
    """True where a dot can be: not in a wall, not on an untouched key, in a pit only in its middle."""
    here = (place, place)
    free = in_box(place) & ~touched(layouts.solids, (number, mode), here).any(-1)
    free &= pass_gates(layouts, number, mode, here) == mode
    pit, falls = first_pit(layouts, number, here)
    return free & (~falls | (pit == place).all(-1))


def pass_gates(
    layouts: TileLayouts, number: Int[Tensor, " B"], mode: Int[Tensor, " B"], segment: Segment
) -> Int[Tensor, " B"]:
    """The mode after touching what the segment touches."""
    met = touched(layouts.gates, number, segment)
    after = mode
    for gate, (earlier, later) in enumerate(layouts.passages):
        after = torch.where(met[:, gate] & (mode == earlier), later, after)
    return after


def first_pit(
    layouts: TileLayouts, number: Int[Tensor, " B"], segment: Segment
) -> tuple[Float[Tensor, "B 2"], Bool[Tensor, " B"]]:
    """The middle of the first pit on the segment, and whether there is one."""
    start, end = segment
    centre, half = layouts.pits.centre[number], layouts.pits.half[number]
    met = touched(layouts.pits, number, segment)
    if not met.shape[1]:
        return end, torch.zeros_like(end[:, 0], dtype=torch.bool)
    entry, _ = entry_fraction(start[:, None], end[:, None], centre, half)
    first = torch.where(met, entry.clamp(max=1), 2).argmin(1)
    return centre[torch.arange(len(first), device=first.device), first], met.any(-1)


def in_box(place: Float[Tensor, "B 2"]) -> Bool[Tensor, " B"]:
    """True strictly inside the frame; false for what is not a number."""
    return ((place > LOW) & (place < HIGH)).all(-1)


def touched(
    rectangles: Rectangles,
    index: Shaped[Tensor, " B"] | tuple[Shaped[Tensor, " B"], ...],
    segment: Segment,
) -> Bool[Tensor, "B R"]:
    """Which of the rectangles at `index` (layout, or layout and mode) the segments touch."""
    start, end = segment
    centre, half = rectangles.centre[index], rectangles.half[index]
    return crosses_rectangle(start[:, None], end[:, None], centre, half, TOUCH)


def _backwards(layouts: TileLayouts, number: Int[Tensor, " B"], segment: Segment) -> Bool[Tensor, " B"]:
    """True where a one-way door is touched by a move against its arrow."""
    along = ((segment[1] - segment[0])[:, None] * layouts.directions[number]).sum(-1)
    return (touched(layouts.one_ways, number, segment) & (along < 0)).any(-1)
