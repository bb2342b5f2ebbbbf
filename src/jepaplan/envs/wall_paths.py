"""Shortest ways between points of two rooms: straight where the wall allows, else round the door's corners.

symbol     here
corners    the four corners of the door, two on each face of the wall
solids     centre and half extents of the wall above and below the door
"""

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.envs.segments import crosses_rectangle

GRAZE = -1e-9  # a shortest path may slide along a wall and turn at its corners

Solids = tuple[Float[Tensor, "B 2 2"], Float[Tensor, "B 2 2"]]


def wall_solids(
    wall_x: Float[Tensor, " B"], door_y: Float[Tensor, " B"], half_widths: tuple[int, int], size: int
) -> Solids:
    """The wall above and below the door, reaching out of the picture; `half_widths` of wall and door."""
    x, y = wall_x.double(), door_y.double()
    far, door = float(size), half_widths[1]
    above, below = (y - door - far) / 2, (y + door + 2 * far) / 2
    centre = torch.stack([torch.stack([x, above], -1), torch.stack([x, below], -1)], dim=1)
    width = torch.full_like(x, half_widths[0])
    tall = [torch.stack([width, y - door - above], -1), torch.stack([width, below - y - door], -1)]
    return centre, torch.stack(tall, dim=1)


def door_corners(
    wall_x: Float[Tensor, " B"], door_y: Float[Tensor, " B"], half_widths: tuple[int, int]
) -> Float[Tensor, "B 4 2"]:
    """Where a shortest path may turn."""
    reach = torch.tensor(half_widths, device=wall_x.device)
    signs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], device=wall_x.device)
    return torch.stack([wall_x, door_y], dim=-1).double()[:, None] + signs * reach


def shortest_path(
    start: Float[Tensor, "B 2"], end: Float[Tensor, "B 2"], corners: Float[Tensor, "B 4 2"], solids: Solids
) -> Float[Tensor, " B"]:
    """Length of the shortest path, which turns at most twice: the door is convex, the rooms have no holes."""
    to_corner = sight_line(start[:, None], corners, solids)
    from_corner = sight_line(end[:, None], corners, solids)
    between = torch.cdist(corners, corners, compute_mode="donot_use_mm_for_euclid_dist")
    around = (to_corner[:, :, None] + between + from_corner[:, None, :]).amin((1, 2))
    straight = sight_line(start[:, None], end[:, None], solids)[:, 0]
    return torch.minimum(straight, around)


def sight_line(
    start: Float[Tensor, "B S 2"], end: Float[Tensor, "B K 2"], solids: Solids
) -> Float[Tensor, "B K"]:
    """Length of each segment (S is 1 or K), infinite where the inside of the wall is in the way."""
    centre, half = solids
    hidden = crosses_rectangle(start[:, :, None], end[:, :, None], centre[:, None], half[:, None], GRAZE).any(
        -1
    )
    return (end - start).norm(dim=-1).masked_fill(hidden, torch.inf)
