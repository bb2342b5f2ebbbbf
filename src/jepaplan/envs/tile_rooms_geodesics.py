"""Exact lengths of shortest paths through rooms of tiles, with one-way doors, pits, a key and locked doors.

Between polygons a shortest path is straight except where it turns on their outward corners (Lozano-Perez and
Wesley, "An algorithm for planning collision-free paths among polyhedral obstacles", CACM 1979). Here a corner
is one node per mode (nothing yet, key held, a door open), and a leg from node to node is directed:

    within a mode    a straight line that no obstacle hides and that goes backwards through no one-way door
    to a pit, key    the same to its nearest point: whoever touches it is put into its middle
    through a door   a straight line that touches the closed door and is clear where that door is open

Legs between corners are solved once per world (Floyd and Warshall); a query adds its first and its last leg.
Paths may graze walls and pits, so the length is the infimum over legal paths.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.envs.segments import crosses_rectangle
from jepaplan.envs.tile_rooms_layouts import KEY, TILE, TileLayouts

GRAZE = -1e-9  # a path may slide along a wall or a pit and turn at its corners
TOUCH = 1e-9  # a leg that ends on the edge of a gate touches it
BLOCK = 2048  # queries answered at once: few enough for small intermediate results


def shortest_between_corners(layouts: TileLayouts) -> Float[Tensor, "L MC MC"]:
    """Lengths of the shortest paths from every corner in every mode to every other."""
    corners = layouts.corners
    count, many, _ = corners.shape
    start = corners[:, :, None].expand(-1, -1, many, -1).flatten(1, 2)
    end = corners[:, None].expand(-1, many, -1, -1).flatten(1, 2)
    number = torch.arange(count, device=corners.device)
    lengths = legs(layouts, number, start, end)
    modes = lengths.shape[1]
    lengths = lengths.view(count, modes, modes, many, many).transpose(2, 3)
    if layouts.passages:
        lengths[:, 0, :, 1, KEY] = _to_key(layouts, number, corners)
    lengths = lengths.reshape(count, modes * many, -1)
    lengths.diagonal(dim1=1, dim2=2).zero_()
    for via in range(modes * many):
        lengths = torch.minimum(lengths, lengths[:, :, via, None] + lengths[:, None, via])
    return lengths


def shortest_paths(
    layouts: TileLayouts,
    between: Float[Tensor, "L MC MC"],
    number: Int[Tensor, " B"],
    start: tuple[Float[Tensor, "B 2"], Int[Tensor, " B"]],
    goal: Float[Tensor, "B 2"],
) -> Float[Tensor, " B"]:
    """Length of the shortest path from a `start` (place, mode) to a place in any mode; inf without one."""
    # Greedy descent asks for many starts and few goals: what follows from the goal alone is computed once.
    goals, which = torch.cat([goal, number[:, None].to(goal)], -1).unique(dim=0, return_inverse=True)
    onward = torch.cat(
        [_from_corners(layouts, between, block[:, 2].long(), block[:, :2]) for block in goals.split(BLOCK)]
        or [goal.new_zeros(0, between.shape[1])]
    )
    parts = [
        _from_places(layouts, onward[which[rows]], number[rows], (start[0][rows], start[1][rows]), goal[rows])
        for rows in torch.arange(len(goal), device=goal.device).split(BLOCK)
    ]
    return torch.cat(parts) if parts else goal.new_zeros(0)


def legs(
    layouts: TileLayouts,
    number: Int[Tensor, " B"],
    start: Float[Tensor, "B #P 2"],
    end: Float[Tensor, "B #P 2"],
) -> Float[Tensor, "B M M P"]:
    """Lengths of P straight lines from each mode (second axis) to each mode (third); inf where not legal."""
    clear = _clear(layouts, number, start, end)
    modes = clear.shape[1]
    legal = torch.diag_embed(clear.transpose(1, 2)).permute(0, 2, 3, 1).contiguous()
    gates = layouts.gates
    for gate, (before, after) in enumerate(layouts.passages):
        if gate == KEY:
            continue
        centre, half = gates.centre[number, None, gate], gates.half[number, None, gate]
        touched = crosses_rectangle(start, end, centre, half, TOUCH)
        legal[:, before, after] = touched & clear[:, after]
    lengths = (end - start).norm(dim=-1)[:, None, None].expand(-1, modes, modes, -1)
    return lengths.masked_fill(~legal, torch.inf)


def _clear(
    layouts: TileLayouts,
    number: Int[Tensor, " B"],
    start: Float[Tensor, "B #P 2"],
    end: Float[Tensor, "B #P 2"],
) -> Bool[Tensor, "B M P"]:
    """True where nothing of a mode is in the way of a straight line."""
    solid, doors = layouts.obstacles, layouts.one_ways
    hidden = crosses_rectangle(
        start[:, None, :, None],
        end[:, None, :, None],
        solid.centre[number][:, :, None],
        solid.half[number][:, :, None],
        GRAZE,
    ).any(-1)
    direction = layouts.directions[number][:, None]
    # A one-way door reaches into the walls beside it, so that no line slips through the seam.
    half = doors.half[number][:, None] + TILE / 4 * direction.flip(-1).abs()
    within = crosses_rectangle(start[:, :, None], end[:, :, None], doors.centre[number][:, None], half, GRAZE)
    backwards = ((end - start)[:, :, None] * direction).sum(-1) < 0
    return ~(hidden | (within & backwards).any(-1)[:, None])


def _from_corners(
    layouts: TileLayouts,
    between: Float[Tensor, "L MC MC"],
    number: Int[Tensor, " B"],
    goal: Float[Tensor, "B 2"],
) -> Float[Tensor, "B MC"]:
    """What remains from each corner in each mode to the goal."""
    corners = layouts.corners[number]
    last = legs(layouts, number, corners, _arrivals(layouts, number, corners, goal)).amin(2).flatten(1)
    return (between[number] + last[:, None]).amin(-1)


def _from_places(
    layouts: TileLayouts,
    onward: Float[Tensor, "B MC"],
    number: Int[Tensor, " B"],
    start: tuple[Float[Tensor, "B 2"], Int[Tensor, " B"]],
    goal: Float[Tensor, "B 2"],
) -> Float[Tensor, " B"]:
    """The first leg leads to a corner, or straight to the goal."""
    place, mode = start
    row = torch.arange(len(place), device=place.device)
    first = legs(layouts, number, place[:, None], layouts.corners[number])[row, mode]
    if layouts.passages:
        found = _to_key(layouts, number, place[:, None])[:, 0]
        first[:, 1, KEY] = torch.where(mode == 0, found, first[:, 1, KEY])
    end = _arrivals(layouts, number, place[:, None], goal)
    straight = legs(layouts, number, place[:, None], end)[row, mode, :, 0].amin(1)
    length = torch.minimum((first.flatten(1) + onward).amin(1), straight)
    return torch.where((place == goal).all(-1), torch.zeros_like(length), length)


def _arrivals(
    layouts: TileLayouts,
    number: Int[Tensor, " B"],
    start: Float[Tensor, "B P 2"],
    goal: Float[Tensor, "B 2"],
) -> Float[Tensor, "B P 2"]:
    """Where a last leg ends: at the goal, or, if that is the middle of a pit, at the pit's nearest point."""
    ends = goal[:, None].expand_as(start)
    centre, half = layouts.pits.centre[number], layouts.pits.half[number]
    for pit in range(centre.shape[1]):
        low, high = centre[:, pit] - half[:, pit], centre[:, pit] + half[:, pit]
        inside = (goal == centre[:, pit]).all(-1)[:, None, None]
        ends = torch.where(inside, start.clamp(low[:, None], high[:, None]), ends)
    return ends


def _to_key(
    layouts: TileLayouts, number: Int[Tensor, " B"], start: Float[Tensor, "B P 2"]
) -> Float[Tensor, "B P"]:
    """Lengths of the legs that pick up the key: straight to the nearest point of its tile."""
    centre, half = layouts.gates.centre[number, None, KEY], layouts.gates.half[number, None, KEY]
    nearest = start.clamp(centre - half, centre + half)
    hidden = ~_clear(layouts, number, start, nearest)[:, 0]
    return (nearest - start).norm(dim=-1).masked_fill(hidden, torch.inf)
