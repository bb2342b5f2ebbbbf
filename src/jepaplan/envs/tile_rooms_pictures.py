"""Pictures of the tile rooms: one empty picture per layout and mode, made once; then only dots are drawn.

channel    shows
0          the dot, as in the wall worlds
1          walls and closed doors, 255
2          pits, an even grey; one-way doors, brighter along their arrow; a key, a cross; locked doors, a
           chequerboard that fades when the door opens; the frame is lit while the key is held
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from jepaplan.envs.tile_rooms_layouts import ARROWS, FRAME, HIGH, LOW, SIZE, TILE, Map, TileLayouts
from jepaplan.types import Patch

PIT, RAMP_LOW, RAMP_STEP, BRIGHT, FADED = 160, 24, 28, 255, 64
WAYS = {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}  # y grows downwards
KINDS = {"o": "pit", "k": "key", "1": "door", "2": "door"} | {
    tile: f"one-way door {WAYS[way]}" for tile, way in ARROWS.items()
}


def empty_pictures(layouts: TileLayouts) -> UInt8[Tensor, "L M 3 64 64"]:
    """Every layout in every mode, without a dot."""
    modes = layouts.occurs.shape[1]
    frames = [[_empty(one, mode) for mode in range(modes)] for one in layouts.maps]
    return torch.stack([torch.stack(group) for group in frames]).to(layouts.corners.device)


def patches(one: Map, mode: int) -> tuple[Patch, ...]:
    """The tiles of a map in a mode, and the frame, as rectangles."""
    edge, far = -0.5, SIZE - 0.5
    frame = [
        Patch("wall", (edge, edge), (far, LOW)),
        Patch("wall", (edge, HIGH), (far, far)),
        Patch("wall", (edge, LOW), (LOW, HIGH)),
        Patch("wall", (HIGH, LOW), (far, HIGH)),
    ]
    tiles = [
        Patch(kind, (x * TILE - 0.5, y * TILE - 0.5), ((x + 1) * TILE - 0.5, (y + 1) * TILE - 0.5))
        for y, line in enumerate(one)
        for x, tile in enumerate(line)
        if (kind := _kind(tile, mode)) is not None
    ]
    return tuple(frame + tiles)


def _kind(tile: str, mode: int) -> str | None:
    """What a tile is in a mode: "wall", "pit" ...; None where nothing is to be seen."""
    if (tile == "k" and mode > 0) or (tile == "1" and mode == 2) or (tile == "2" and mode == 3):
        return None
    return "wall" if tile == "#" else KINDS.get(tile)


def _empty(one: Map, mode: int) -> UInt8[Tensor, "3 64 64"]:
    frame = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    for y, line in enumerate(one):
        for x, tile in enumerate(line):
            spot = frame[1:, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
            kind = _kind(tile, mode)
            if kind in ("wall", "door"):
                spot[0] = BRIGHT
            if kind == "pit":
                spot[1] = PIT
            elif kind == "key":
                spot[1] = _cross()
            elif tile in ("1", "2"):
                spot[1] = _chequers() * (BRIGHT if kind == "door" else FADED)
            elif tile in ARROWS:
                spot[1] = _ramp(ARROWS[tile])
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[FRAME:-FRAME, FRAME:-FRAME] = False
    frame[1, outside] = BRIGHT
    frame[2, outside] = BRIGHT if mode == 1 else 0
    return frame


def _cross() -> UInt8[Tensor, "8 8"]:
    """Two bars of two pixels, a pixel away from the tile's edges."""
    middle, long = slice(TILE // 2 - 1, TILE // 2 + 1), slice(1, TILE - 1)
    tile = torch.zeros(TILE, TILE, dtype=torch.uint8)
    tile[middle, long] = tile[long, middle] = BRIGHT
    return tile


def _chequers() -> UInt8[Tensor, "8 8"]:
    """Ones and zeros in squares of two pixels."""
    pair = torch.arange(TILE) // 2
    return ((pair[:, None] + pair) % 2).to(torch.uint8)


def _ramp(direction: tuple[int, int]) -> UInt8[Tensor, "8 8"]:
    """Dark where one comes in, bright where one goes out."""
    along = torch.arange(TILE)
    row, column = torch.meshgrid(along, along, indexing="ij")
    depth = direction[0] * column + direction[1] * row
    return (RAMP_LOW + RAMP_STEP * (depth % TILE if sum(direction) > 0 else depth + TILE - 1)).to(torch.uint8)
