"""Exact shortest paths of a disc between unit boxes: straight pieces, and arcs around corners.

The centre of a ball of radius r keeps r away from every wall, so its free space is bounded by straight
lines and by quarter circles around those corners where exactly one of four cells is wall. A shortest path is
made of tangents and arcs (Pocchiola and Vegter, "The visibility complex", 1996): this is their graph, for the
at most nine inner corners of a 4 x 4 grid, each passed in one of two turning senses.

    symbol     here
    r          RADIUS of the ball, `maze_physics`
    o          sense      +1 counter-clockwise, -1 clockwise, of the turn around a corner
    n          angle      of the normal at a tangent point, from the middle of the corner's free quarter

An arc from angle n1 to n2 costs r o (n2 - n1), which splits into a part for arriving and a part for leaving;
both are counted with the tangent, so arcs cost nothing to combine. A negative arc between tangents that join
corners is dearer than the short cut where the tangents cross, so it need not be forbidden; beside a start or
a goal it could be too cheap, and is forbidden.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from jepaplan.envs.maze_layouts import (
    CELLS,
    SIDE,
    cell_centre,
    in_open_cell,
    open_cells,
)
from jepaplan.envs.maze_physics import RADIUS
from jepaplan.envs.segments import crosses_rectangle

GRAZE = 1e-9  # metres; a shortest path touches the corners that it turns around
ROWS_AT_ONCE = 2048  # bounds the memory of comparing all pairs of turns
QUARTER = math.pi / 4 + GRAZE  # how far a tangent point may be from the middle of its free quarter circle
FAR = 1e6  # metres; where corners are that a maze does not have
INNER = SIDE - 1  # inner grid lines each way
MOST_TURNS = 2 * INNER * INNER  # each inner corner in both senses


def shortest_path(
    start: Float[Tensor, "B 2"], goal: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Length in metres; infinite where there is no way, or an end is in a wall.

    An end pressed into a wall, or placed closer to it than the ball is wide, counts from where it would rest.
    """
    lengths = torch.full((len(start),), torch.inf, dtype=torch.float64, device=start.device)
    free = in_open_cell(start, layouts)[0] & in_open_cell(goal, layouts)[0]
    for rows in free.nonzero()[:, 0].split(ROWS_AT_ONCE):
        if len(rows):
            here = layouts[rows]
            ends = pressed_out(start[rows], here), pressed_out(goal[rows], here)
            lengths[rows] = _lengths(*ends, here)
    return lengths.to(start.dtype)


def in_sight(
    start: Float[Tensor, "B *#N 2"], end: Float[Tensor, "B *#N 2"], layouts: Shaped[Tensor, " B"]
) -> Bool[Tensor, "B *N"]:
    """True where the ball passes straight from one free place to the other."""
    cells = open_cells(layouts)
    wall, post = (
        part.view(-1, *[1] * (start.ndim - 2), part.shape[1]) for part in (~cells.flatten(1), _posts(cells))
    )
    boxes = cell_centre(torch.arange(CELLS, device=start.device)).double()
    half = torch.full_like(boxes, 0.5)
    hit = crosses_rectangle(start[..., None, :], end[..., None, :], boxes, half, -GRAZE) & wall
    near = _distance_to_segment(_corners(start.device), start, end) < RADIUS - GRAZE
    return ~(hit.any(-1) | (near & post).any(-1))


def clearance(positions: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Metres from each place to the nearest wall; 0 in a wall."""
    places = positions.double()
    boxes = cell_centre(torch.arange(CELLS, device=places.device)).double()
    gap = ((places[:, None] - boxes).abs() - 0.5).clamp(min=0).norm(dim=-1)
    to_box = gap.masked_fill(open_cells(layouts).flatten(1), torch.inf).amin(-1)
    to_ring = (SIDE / 2 - places.abs()).amin(-1).clamp(min=0)
    return torch.minimum(to_box, to_ring)


def pressed_out(positions: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"]) -> Float[Tensor, "B 2"]:
    """Places in open cells, moved off the walls by as much as the ball's radius demands; in float64."""
    free, cell = in_open_cell(positions, layouts)
    centre = cell_centre(cell).double()
    ringed = torch.nn.functional.pad(open_cells(layouts), (1, 1, 1, 1))
    around = torch.arange(3, device=cell.device)
    row, column = (cell // SIDE)[:, None] + around, (cell % SIDE)[:, None] + around
    batch = torch.arange(len(cell), device=cell.device)[:, None, None]
    near = ringed[batch, row[:, :, None], column[:, None]]  # the cell and its neighbours, the upper row first

    sides = torch.stack([near[:, 1, 2], near[:, 0, 1], near[:, 1, 0], near[:, 2, 1]], dim=-1)
    reach = torch.full(sides.shape, 0.5 - RADIUS, dtype=torch.float64, device=cell.device)
    far = reach.masked_fill(sides, torch.inf)  # to the right, up, to the left, down
    offset = torch.minimum(torch.maximum(positions.double() - centre, -far[:, 2:]), far[:, :2])
    for right in (-1, 1):
        for up in (-1, 1):
            sticks_out = near[:, 1, 1 + right] & near[:, 1 - up, 1] & ~near[:, 1 - up, 1 + right]
            corner = offset.new_tensor([0.5 * right, 0.5 * up])
            away = offset - corner
            distance = away.norm(dim=-1, keepdim=True)
            close = sticks_out[:, None] & (distance < RADIUS)
            offset = torch.where(close, corner + away * (RADIUS / distance.clamp(min=1e-12)), offset)
    return torch.where(free[:, None], centre + offset, positions.double())


@dataclass(frozen=True)
class Turns:
    """The turns of one maze, or of each of a batch; what is missing has an infinite edge and far corners."""

    corner: Float[Tensor, "*batch turns 2"]
    sense: Float[Tensor, "*batch turns"]
    middle: Float[Tensor, "*batch turns"]  # direction of the free quarter circle's middle
    edge: Float[Tensor, "*batch turns turns"]  # length of the tangent from turn to turn, infinite if blocked
    leave: Float[Tensor, "*batch turns turns"]  # angle at its beginning
    arrive: Float[Tensor, "*batch turns turns"]  # angle at its end
    between: Float[Tensor, "*batch turns turns"]  # whole paths from angle zero to angle zero


def _lengths(
    start: Float[Tensor, "B 2"], goal: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Shortest over straight lines and paths with one, two, and three or more turns."""
    turns = _gathered(layouts)
    sense, edge = turns.sense, turns.edge
    to_turn, angle_in = _tangents(start, layouts, turns, arriving=True)
    from_turn, angle_out = _tangents(goal, layouts, turns, arriving=False)
    straight = (goal - start).norm(dim=-1).masked_fill(~in_sight(start, goal, layouts), torch.inf)

    arc = sense * (angle_out - angle_in)
    once = (to_turn + from_turn + RADIUS * arc).masked_fill(arc < -GRAZE, torch.inf)
    # The tangent from turn to turn has an arc before it (first) and one after it (last).
    arc = sense[:, :, None] * (turns.leave - angle_in[:, :, None])
    first = (to_turn[:, :, None] + RADIUS * arc).masked_fill(arc < -GRAZE, torch.inf)
    arc = sense[:, None] * (angle_out[:, None] - turns.arrive)
    last = (from_turn[:, None] + RADIUS * arc).masked_fill(arc < -GRAZE, torch.inf)
    twice = first + edge + last
    # `between` counts arcs from angle zero, so both ends hand theirs over.
    opening = (first + edge - RADIUS * sense[:, None] * turns.arrive).amin(1)
    closing = (last + edge + RADIUS * sense[:, :, None] * turns.leave).amin(2)
    more = opening[:, :, None] + turns.between + closing[:, None]
    return torch.cat([straight[:, None], once, twice.flatten(1), more.flatten(1)], dim=1).amin(1)


def _tangents(
    places: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"], turns: Turns, arriving: bool
) -> tuple[Float[Tensor, "B turns"], Float[Tensor, "B turns"]]:
    """From (arriving) or to each place the tangent to each turn: length, infinite if blocked, and angle."""
    offset = places[:, None] - turns.corner
    far = offset.norm(dim=-1)
    swing = torch.acos((RADIUS / far).clamp(max=1)) * turns.sense * (1 if arriving else -1)
    normal = torch.atan2(offset[..., 1], offset[..., 0]) + swing
    angle = _wrapped(normal - turns.middle)
    length = (far.square() - RADIUS**2).clamp(min=0).sqrt()
    touch = turns.corner + RADIUS * torch.stack([normal.cos(), normal.sin()], dim=-1)
    fits = (angle.abs() <= QUARTER) & in_sight(places[:, None], touch, layouts)
    return length.masked_fill(~fits, torch.inf), angle


@functools.lru_cache(maxsize=4096)
def _turns(layout: int) -> Turns:
    """The tangents between the turns of one maze, and the shortest paths along them."""
    cells = torch.tensor([layout])
    corner, middle = (part.repeat_interleave(2, 0) for part in _free_quarters(open_cells(cells)[0]))
    sense = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(corner) // 2)
    offset = corner[None] - corner[:, None]
    crossing = sense[:, None] != sense[None]
    width = torch.where(crossing, 2 * RADIUS, 0.0).double()
    length = (offset.square().sum(-1) - width.square()).clamp(min=0).sqrt()
    heading = torch.atan2(offset[..., 1], offset[..., 0]) + sense[:, None] * torch.atan2(width, length)
    leaving, arriving = (heading - math.pi / 2 * each for each in (sense[:, None], sense[None]))
    leave, arrive = _wrapped(leaving - middle[:, None]), _wrapped(arriving - middle)
    begin, end = (
        centre + RADIUS * torch.stack([normal.cos(), normal.sin()], dim=-1)
        for centre, normal in ((corner[:, None], leaving), (corner[None], arriving))
    )
    fits = in_sight(begin[None], end[None], cells)[0] & (offset != 0).any(-1)
    fits &= (leave.abs() <= QUARTER) & (arrive.abs() <= QUARTER)
    edge = length.masked_fill(~fits, torch.inf)
    between = edge + RADIUS * (sense[:, None] * leave - sense * arrive)
    between = between.masked_fill(torch.eye(len(sense), dtype=torch.bool), 0.0)
    for via in range(len(sense)):  # Floyd and Warshall
        between = torch.minimum(between, between[:, via, None] + between[via])
    return Turns(corner, sense, middle, edge, leave, arrive, between)


def _gathered(layouts: Shaped[Tensor, " B"]) -> Turns:
    """The turns of each row's maze, as many as the richest of them has."""
    numbers, which = layouts.long().unique(return_inverse=True)
    mazes = [_padded(number) for number in numbers.tolist()]
    most = max(2, max(len(_turns(number).sense) for number in numbers.tolist()))
    stacked = (torch.stack(parts) for parts in zip(*mazes, strict=True))
    cut = (part[:, :most, :most] if part.ndim > 2 else part[:, :most] for part in stacked)
    return Turns(*(part.to(layouts.device)[which] for part in cut))


@functools.lru_cache(maxsize=4096)
def _padded(layout: int) -> tuple[Tensor, ...]:
    """The fields of one maze's turns, filled up to as many as a maze could have."""
    turns = _turns(layout)
    missing = MOST_TURNS - len(turns.sense)
    square, line, pairs = (0, missing, 0, missing), (0, missing), (0, 0, 0, missing)
    pad = torch.nn.functional.pad
    return (
        pad(turns.corner, pairs, value=FAR),
        pad(turns.sense, line),
        pad(turns.middle, line),
        pad(turns.edge, square, value=torch.inf),
        pad(turns.leave, square),
        pad(turns.arrive, square),
        pad(turns.between, square, value=torch.inf),
    )


def _free_quarters(
    cells: Bool[Tensor, "row column"],
) -> tuple[Float[Tensor, "corners 2"], Float[Tensor, " corners"]]:
    """The inner corners that lie on exactly one wall, and for each the direction away from that wall."""
    wall = ~cells
    around = torch.stack([wall[:-1, :-1], wall[:-1, 1:], wall[1:, :-1], wall[1:, 1:]])  # the first row is up
    lone = around.sum(0).flatten() == 1
    away = torch.tensor([-0.25, -0.75, 0.25, 0.75], dtype=torch.float64, device=cells.device) * math.pi
    middle = (around * away[:, None, None]).sum(0).flatten()
    return _corners(cells.device)[lone], middle[lone]


def _posts(cells: Bool[Tensor, "B row column"]) -> Bool[Tensor, "B corners"]:
    """Which inner corners belong to a wall."""
    wall = ~cells
    return (wall[:, :-1, :-1] | wall[:, :-1, 1:] | wall[:, 1:, :-1] | wall[:, 1:, 1:]).flatten(1)


def _corners(device: torch.device) -> Float[Tensor, "corners 2"]:
    """Where the inner grid lines cross, row by row from above."""
    line = torch.arange(INNER, dtype=torch.float64, device=device) - (INNER - 1) / 2
    return torch.stack([line.repeat(INNER), (-line).repeat_interleave(INNER)], dim=-1)


def _wrapped(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The same angle between -pi and pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _distance_to_segment(
    points: Float[Tensor, "K 2"], start: Float[Tensor, "*#batch 2"], end: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch K"]:
    """From each of K points to each segment."""
    move = (end - start)[..., None, :]
    offset = points - start[..., None, :]
    part = ((offset * move).sum(-1) / move.square().sum(-1).clamp(min=1e-24)).clamp(0, 1)
    return (offset - part[..., None] * move).norm(dim=-1)
