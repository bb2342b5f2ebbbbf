"""Pictures of textured sprites over a textured ground; they go round a torus, or bounce in a box.

The world of `synthetic-motion-v1`, of this project. On the torus a sprite that leaves on one side comes in on
the other. Places and headings are drawn uniformly, and a drift or a turn at constant speed keeps a uniform
law uniform; so every single frame has the same distribution whatever the motion, and only a sequence of
frames can tell motions apart. In the box a sprite is reflected at the edges, which keeps its place uniform as
well. Coordinates are pixels, x to the right and y down; the centre of the first pixel is at 0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
TURNS = ("clockwise", "counter-clockwise")  # as seen
MOTIONS = (*DIRECTIONS, *TURNS)
SHAPES = ("disc", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
_RGB = ((235, 60, 50), (60, 200, 80), (70, 100, 250), (245, 215, 60))

# All shapes have the area of the disc of radius 1.
_SQUARE = math.sqrt(math.pi) / 2  # half a side
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3)))  # radius of the circle inside
_ARM = 1.25  # half the length of the cross's bars
_BAR = _ARM - math.sqrt(_ARM * _ARM - math.pi / 4)  # half their width: 8 arm bar - 4 bar^2 = pi
REACH = 2 * _TRIANGLE  # the farthest point of any shape from its centre, in radii


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """B clips of T frames with K places for sprites; the sprites of a clip look alike."""

    centre: Float[Tensor, "B K T 2"]  # pixels
    heading: Float[Tensor, "B K T"]  # radians, clockwise as seen
    present: Bool[Tensor, "B K"]
    shape: Int[Tensor, " B"]
    colour: Int[Tensor, " B"]
    radius: Float[Tensor, " B"]  # of the disc of the same area, pixels
    stripes: Float[Tensor, "B 2"]  # waves per radius, and phase in radians
    ground: Float[Tensor, "B 3 size size"]  # levels, 0 to 255


def torus_path(
    start: Float[Tensor, "B K 2"], velocity: Float[Tensor, "B 2"], times: Float[Tensor, " T"], size: int
) -> Float[Tensor, "B K T 2"]:
    """Where sprites are that drift at `velocity` (pixels per second) round a torus of `size` pixels."""
    return (start[:, :, None] + velocity[:, None, None] * times[:, None]).remainder(size)


def bouncing_path(
    start: Float[Tensor, "B 2"],
    velocity: Float[Tensor, "B 2"],
    times: Float[Tensor, " T"],
    box: tuple[float, float],
) -> tuple[Float[Tensor, "B T 2"], Float[Tensor, "B T 2"]]:
    """Places and velocities of sprites whose centres are reflected at the sides of a square box."""
    low, room = box[0], box[1] - box[0]
    # Unfold the box: reflection is motion on a circle of twice its length, seen from the side.
    along = (start[:, None] - low + velocity[:, None] * times[:, None]).remainder(2 * room)
    back = along > room
    place = low + torch.where(back, 2 * room - along, along)
    return place, torch.where(back, -velocity[:, None], velocity[:, None])


def direction_vectors(motion: Int[Tensor, " B"]) -> Float[Tensor, "B 2"]:
    """Unit vectors of the eight directions; zero for turns."""
    angle = motion.float() * (2 * math.pi / len(DIRECTIONS))
    drifts = (motion < len(DIRECTIONS)).float()
    return drifts[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)


def turn_signs(motion: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """+1 for clockwise, -1 for counter-clockwise, 0 for directions."""
    first = len(DIRECTIONS)
    return (motion == first).float() - (motion == first + 1).float()


def draw_grounds(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "B 3 size size"]:
    """Muted clouds of colour with a finer grain of light and dark."""

    def noise(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)

    level = 110 + 20 * torch.randn(count, 1, 1, 1, generator=generator)
    return (level + 28 * noise(3, 7) + 14 * noise(1, size // 3)).clamp(10, 235)


def draw_scenes(scenes: Scenes) -> UInt8[Tensor, "B T 3 size size"]:
    """The pictures: each sprite is computed in a square patch only and laid over what is there."""
    count, places, frames, _ = scenes.centre.shape
    size = scenes.ground.shape[-1]
    pictures = scenes.ground[:, None].expand(-1, frames, -1, -1, -1).contiguous()
    flat = pictures.view(count, frames, 3, size * size)
    side = min(2 * math.ceil(float(scenes.radius.max()) * REACH + 1), size)
    for place in range(places):
        some = scenes.present[:, place].nonzero()[:, 0]
        if len(some):
            patch, index = _patch(scenes, some, place, side, size)
            part = flat[some]
            index = index[:, :, None].expand(-1, -1, 3, -1)
            behind = part.gather(-1, index)
            cover, levels = patch[:, :, 3:], patch[:, :, :3]
            flat[some] = part.scatter(-1, index, behind + cover * (levels - behind))
    return pictures.round_().to(torch.uint8)


def _patch(
    scenes: Scenes, some: Int[Tensor, " U"], place: int, side: int, size: int
) -> tuple[Float[Tensor, "U T 4 pixels"], Int[Tensor, "U T pixels"]]:
    """RGB and cover (0 to 1) of one sprite per clip around its centre, and which pixels of the torus."""
    centre, heading = scenes.centre[some, place], scenes.heading[some, place, :, None]
    corner = centre.floor() - (side // 2 - 1)
    line = torch.arange(side)
    row, column = torch.meshgrid(line, line, indexing="ij")
    pixel = corner[:, :, None] + torch.stack([column.flatten(), row.flatten()], dim=-1)
    x, y = (pixel - centre[:, :, None]).unbind(-1)
    radius = scenes.radius[some, None, None]
    u = (x * heading.cos() + y * heading.sin()) / radius
    v = (y * heading.cos() - x * heading.sin()) / radius
    cover = (0.5 - radius * _outside(scenes.shape[some], u, v)).clamp(0, 1)
    waves, phase = scenes.stripes[some].T[:, :, None, None]
    # Stripes along the body and one dark side: no turn but a full one brings the picture back.
    light = (0.8 + 0.2 * (waves * 2 * math.pi * u + phase).sin()) * (0.8 + 0.2 * (4 * v).tanh())
    colour = torch.tensor(_RGB, dtype=light.dtype)[scenes.colour[some]][:, None, :, None]
    patch = torch.cat([colour * light[:, :, None], cover[:, :, None]], dim=2)
    column, row = pixel.long().remainder(size).unbind(-1)
    return patch, row * size + column


def _outside(
    shape: Int[Tensor, " U"], u: Float[Tensor, "U T pixels"], v: Float[Tensor, "U T pixels"]
) -> Float[Tensor, "U T pixels"]:
    """How far outside of its shape a point is, in radii; negative inside."""
    outside = torch.empty_like(u)
    for number, name in enumerate(SHAPES):
        those = shape == number
        a, b = u[those], v[those]
        if name == "disc":
            outside[those] = (a.square() + b.square()).sqrt() - 1
        elif name == "square":
            outside[those] = torch.maximum(a.abs(), b.abs()) - _SQUARE
        elif name == "triangle":
            slanted = a.abs() * (math.sqrt(3) / 2) - b / 2
            outside[those] = torch.maximum(slanted, b) - _TRIANGLE
        else:
            long, short = torch.maximum(a.abs(), b.abs()), torch.minimum(a.abs(), b.abs())
            outside[those] = torch.maximum(long - _ARM, short - _BAR)
    return outside
