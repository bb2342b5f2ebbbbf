"""The maze from above, 64 x 64 pixels in colour, drawn for thousands of worlds at once and without OpenGL.

What MuJoCo's camera shows of gymnasium-robotics' point maze when it looks straight down and in parallel, at
the scale of PLDM's pictures (arXiv:2502.14819): walls, a floor of four large tiles, a ball lit from the
camera. A pixel's colour is the mean over its area. Each distinct maze is drawn once and copied; the ball
changes only a small patch.

    word         here
    R            BALL             radius of the drawn ball, metres; twice the one that collides
    headlight    AMBIENT + DIFFUSE * cosine of the angle between the surface and the eye

Departs from MuJoCo: no specular light and no antialiasing noise; a test in `test_point_maze_drawing.py`
compares the two.
"""

import functools

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.envs.maze_layouts import SIDE, open_cells

SIZE = 64  # pixels
VIEW = 5.84775  # metres across the picture: the grid and most of its ring of walls
BALL = 0.2
AMBIENT, DIFFUSE = 0.4, 0.8
BALL_COLOUR = (76.5, 153.0, 76.5)  # before light
WALL_COLOUR = (219.0, 158.0, 97.0)  # lit, with the mean of the highlight that MuJoCo spreads over it
LIGHT_TILE, DARK_TILE = (51.0, 76.5, 102.0), (25.5, 51.0, 76.5)
RADIUS = BALL / VIEW * SIZE  # pixels
PATCH = int(2 * (RADIUS + 0.5)) + 2  # pixels along the side of what a ball can touch


def to_pixels(places: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
    """Metres to pixels (x = column, y = row), the origin at the centre of the upper left pixel."""
    flipped = torch.stack([places[..., 0], -places[..., 1]], dim=-1)
    return (flipped / VIEW + 0.5) * SIZE - 0.5


def draw(layouts: Int[Tensor, " B"], positions: Float[Tensor, "B 2"]) -> UInt8[Tensor, "B 3 64 64"]:
    """Pictures of the ball at `positions` in the maze of each layout."""
    if len(layouts) == 0:
        return torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8, device=positions.device)
    numbers, which = layouts.unique(return_inverse=True)
    empty = torch.stack([_empty(number) for number in numbers.tolist()]).to(positions.device)
    visible = torch.stack([_floor_part(number) for number in numbers.tolist()]).to(positions.device)
    frames = empty.round().to(torch.uint8).index_select(0, which)
    centre = to_pixels(positions.double().nan_to_num().clamp(-2 * SIDE, 2 * SIDE)).float()
    corner = (centre - RADIUS - 0.5).floor().clamp(0, SIZE - PATCH)
    pixel = torch.arange(PATCH, device=positions.device)
    offset = corner[:, :, None] + pixel - centre[:, :, None]
    distance = (offset[:, 0, None, :].square() + offset[:, 1, :, None].square()).sqrt().flatten(1)
    covered = (RADIUS + 0.5 - distance).clamp(0, 1)
    facing = (1 - (distance / RADIUS).square()).clamp(min=0).sqrt()
    light = AMBIENT + DIFFUSE * facing

    first = corner[:, 1].long() * SIZE + corner[:, 0].long()
    place = first[:, None] + (pixel[:, None] * SIZE + pixel).flatten()
    covered = covered * visible.flatten().take(which[:, None] * SIZE**2 + place)  # walls are above the ball
    channel = torch.arange(3, device=positions.device)[:, None] * SIZE**2
    floor = _floor().to(positions.device).flatten().take(channel + place[:, None])
    behind = empty.flatten().take(which[:, None, None] * (3 * SIZE**2) + channel + place[:, None])
    colour = torch.tensor(BALL_COLOUR, device=positions.device)[:, None]
    level = behind + covered[:, None] * (colour * light[:, None] - floor)
    start = torch.arange(len(frames), device=positions.device)[:, None, None] * (3 * SIZE**2)
    where = start + channel + place[:, None]
    frames.view(-1).scatter_(0, where.flatten(), level.round().to(torch.uint8).flatten())
    return frames


@functools.lru_cache(maxsize=1024)
def _floor_part(layout: int) -> Float[Tensor, "64 64"]:
    """How much of each pixel's area is floor and not wall."""
    edges = torch.arange(SIDE + 1, dtype=torch.float64) - SIDE / 2
    cover = _cover(edges)
    return (cover @ open_cells(torch.tensor(layout)).double() @ cover.T).float()


@functools.cache
def _floor() -> Float[Tensor, "3 64 64"]:
    """Two light tiles, upper left and lower right, and two dark ones."""
    cover = _cover(torch.tensor([-SIDE, 0, SIDE], dtype=torch.float64))
    light = cover @ torch.eye(2, dtype=torch.float64) @ cover.T
    colours = [torch.tensor(tile, dtype=torch.float64)[:, None, None] for tile in (LIGHT_TILE, DARK_TILE)]
    return (light * colours[0] + (1 - light) * colours[1]).float()


@functools.lru_cache(maxsize=1024)
def _empty(layout: int) -> Float[Tensor, "3 64 64"]:
    """The maze without its ball."""
    wall = torch.tensor(WALL_COLOUR)[:, None, None]
    return wall + _floor_part(layout) * (_floor() - wall)


def _cover(edges: Float[Tensor, " K"]) -> Float[Tensor, "64 K-1"]:
    """The part of each column of pixels that lies between neighbouring edges, in metres from the middle."""
    pixels = (edges / VIEW + 0.5) * SIZE
    left = torch.arange(SIZE, dtype=torch.float64)[:, None]
    return (torch.minimum(pixels[1:], left + 1) - torch.maximum(pixels[:-1], left)).clamp(min=0)
