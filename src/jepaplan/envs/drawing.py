"""The two-channel picture of the two rooms, drawn for thousands of worlds at once.

Channel 0 is the dot, floor(255 exp(-d^2 / (2 s^2))) at distance d from its centre; channel 1 the walls, 0 or
255 (pixel conventions of PLDM, arXiv:2502.14819). Two facts make it fast: the dot is zero beyond a few
pixels, so only a small patch is computed, and most frames share their walls, so each distinct layout is drawn
once and then copied.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def draw_walls(
    wall_x: Float[Tensor, " B"],
    door_y: Float[Tensor, " B"],
    size: int,
    border: int,
    half_widths: tuple[int, int],
) -> UInt8[Tensor, "B 2 size size"]:
    """Border lines and the wall with its door, beside a black channel; `half_widths` are of wall and door."""
    pixel = torch.arange(size, device=wall_x.device, dtype=wall_x.dtype)
    in_wall = (pixel - wall_x[:, None]).abs() <= half_widths[0]
    in_door = (pixel - door_y[:, None]).abs() <= half_widths[1]
    on_border = (pixel == border) | (pixel == size - 1 - border)
    # A picture has only two kinds of rows, those of the wall and those of the door.
    wall_row = (in_wall | on_border).to(torch.uint8) * 255
    door_row = on_border.to(torch.uint8) * 255
    frames = torch.zeros(len(wall_x), 2, size, size, dtype=torch.uint8, device=wall_x.device)
    frames[:, 1] = torch.where(in_door[:, :, None], door_row, wall_row[:, None, :])
    frames[:, 1, [border, size - 1 - border]] = 255
    return frames


def distinct(
    wall_x: Float[Tensor, " B"], door_y: Float[Tensor, " B"]
) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"], Tensor]:
    """The distinct pairs, and for every world the number of its pair."""
    # Both numbers side by side in one integer, bit for bit: sorting integers beats sorting rows.
    bits = torch.stack([door_y, wall_x], dim=-1).float().contiguous().view(torch.int64)[:, 0]
    keys, inverse = bits.unique(return_inverse=True)
    pairs = keys[:, None].view(torch.float32).to(wall_x.dtype)
    return pairs[:, 1], pairs[:, 0], inverse


def add_dots(
    frames: UInt8[Tensor, "B channels size size"], positions: Float[Tensor, "B 2"], std: float
) -> UInt8[Tensor, "B channels size size"]:
    """Draw a dot into channel 0 of each frame, in place; that channel must be black."""
    count, channels, size, _ = frames.shape
    radius = std * math.sqrt(2 * math.log(255))  # beyond it the level is below one
    width = min(math.floor(2 * radius) + 2, size)
    # float64 because the level is cut to an integer: float32 would be one level off here and there.
    centre = positions.double()
    corner = (centre - radius).floor().clamp(0, size - width)
    offset = corner[:, :, None] + torch.arange(width, device=frames.device) - centre[:, :, None]
    bell = torch.exp(offset.square() / (-2 * std * std))
    level = (bell[:, 1, :, None] * (255 * bell[:, 0, None, :])).to(torch.uint8)
    inside = torch.arange(width, device=frames.device)
    patch = (inside[:, None] * size + inside).flatten()
    first = torch.arange(count, device=frames.device) * (channels * size * size)
    first = first + corner[:, 1].long() * size + corner[:, 0].long()
    frames.view(-1).scatter_(0, (first[:, None] + patch).flatten(), level.flatten())
    return frames
