"""Maps of the tile rooms, and the rectangles and corners that physics, pictures and shortest paths need.

A map is 8 lines of 8 tiles of 8 x 8 pixels; it and its mirror image, if that differs, are layouts
numbered from 0 in the order of `variants`. Changing a map changes what a layout number means, so
maps are added at the end or get a new world, never edited.

    character    here
    .            free               s, g    free, where tasks start and end
    #            wall               o       pit: whoever touches it is in it for ever
    > v < ^      one-way door       a move that touches it against its arrow does not happen
    k            key                picked up by touching it; the dot then is in its middle
    1 2          locked doors       opened by touching one with the key, which then breaks

A mode says what the flags of a state say: 0 nothing happened yet, 1 the key is held, 2 and 3 the first or the
second door is open. A passage leads from one mode to another when its rectangle, a gate, is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.types import InputError

TILES, TILE = 8, 8  # tiles per side, pixels per tile
SIZE = TILES * TILE
FRAME = 2  # pixels of wall all round; the dot lives strictly between `LOW` and `HIGH`
LOW, HIGH = FRAME - 0.5, SIZE - FRAME - 0.5
MIDDLE = ((SIZE - 1) / 2, (SIZE - 1) / 2)
ARROWS = {">": (1, 0), "v": (0, 1), "<": (-1, 0), "^": (0, -1)}
KEYED = ((0, 1, "k"), (1, 2, "1"), (1, 3, "2"))  # passages of a world with a key: from mode, to mode, gate
KEY = 0  # the key's number among the gates; where there is a key, its middle is the first corner
Map = tuple[str, ...]
Box = tuple[int, int, int, int]  # left, top, right, bottom in tiles
NOWHERE = (-100.0, -100.0, -100.0, -100.0)  # a box that only fills up a tensor
Grid = Bool[np.ndarray, "8 8"]


@dataclass(frozen=True)
class Rectangles:
    """Rectangles in pixels, filled up to the same number for every layout with ones far outside."""

    centre: Float[Tensor, "*lead R 2"]
    half: Float[Tensor, "*lead R 2"]


@dataclass(frozen=True)
class TileLayouts:
    """All layouts of a world: L layouts, M modes, C corners, G passages."""

    maps: tuple[Map, ...]
    passages: tuple[tuple[int, int], ...]  # from mode, to mode
    solids: Rectangles  # L M R: walls and closed doors, which stop a move
    obstacles: Rectangles  # L M R: the same, pits, and a key that is not held: no path goes on through them
    pits: Rectangles  # L R, one tile each
    one_ways: Rectangles  # L R, one tile each
    directions: Float[Tensor, "L R 2"]  # of the one-way doors
    gates: Rectangles  # L G
    corners: Float[Tensor, "L C 2"]  # where shortest paths turn
    occurs: Bool[Tensor, "L M 64"]  # tiles, row by row, where a dot can be in a mode
    starts: Bool[Tensor, "L 64"]
    goals: Bool[Tensor, "L 64"]

    @property
    def count(self) -> int:
        """How many layouts there are."""
        return len(self.maps)


def variants(drawn: Sequence[Map]) -> tuple[Map, ...]:
    """Every drawn map and its mirror image; those that look equal count once.

    Few layouts on purpose: a world model learns the walls of four by heart in minutes, and what is compared
    on them is costs and planners, not how models generalise to new rooms (the wall worlds ask for that).
    """
    found: dict[str, Map] = {}
    for one in drawn:
        mirrored = tuple(line[::-1].translate(str.maketrans("<>", "><")) for line in one)
        for other in (one, mirrored):
            found.setdefault("".join(other).translate(str.maketrans("sg", "..")), other)
    return tuple(found.values())


def build_layouts(drawn: Sequence[Map], device: torch.device | str = "cpu") -> TileLayouts:
    """The layouts of all variants of the drawn maps, which are all with a key or all without."""
    maps = variants(drawn)
    passages = KEYED if "k" in "".join(maps[0]) else ()
    modes = 4 if passages else 1
    for one in maps:
        _check(one, modes)
    solids = [[_marked(one, _closed(mode)) for mode in range(modes)] for one in maps]
    obstacles = [[_marked(one, _closed(mode) + _holes(mode)) for mode in range(modes)] for one in maps]
    arrows = [_places(one, "".join(ARROWS)) for one in maps]
    gates = [[place for *_, mark in passages for place in _places(one, mark)] for one in maps]
    corners = [_corners(grids, _places(one, "k")) for grids, one in zip(obstacles, maps, strict=True)]
    return TileLayouts(
        maps=maps,
        passages=tuple((before, after) for before, after, _ in passages),
        solids=_per_mode(solids, device),
        obstacles=_per_mode(obstacles, device),
        pits=_pixels([_tiles(_places(one, "o")) for one in maps], device),
        one_ways=_pixels([_tiles(places) for places in arrows], device),
        directions=_filled(
            [[ARROWS[one[y][x]] for x, y in places] for one, places in zip(maps, arrows, strict=True)],
            (0.0, 0.0),
            device,
        ),
        gates=_pixels([_tiles(places) for places in gates], device),
        # One more place where a path may turn changes nothing, so the filling is the middle of the room.
        corners=_filled([one or [MIDDLE] for one in corners], MIDDLE, device),
        occurs=_flat([_occurring(one, modes) for one in maps], device),
        starts=_flat([_zone(one, "s") for one in maps], device),
        goals=_flat([_zone(one, "g") for one in maps], device),
    )


def _closed(mode: int) -> str:
    """The characters that stop a move in a mode."""
    return {2: "#2", 3: "#1"}.get(mode, "#12")


def _holes(mode: int) -> str:
    """The characters on which a move ends in a mode."""
    return "ok" if mode == 0 else "o"


def _marked(one: Map, characters: str) -> Grid:
    """True on the tiles that show one of the characters; indexed [row, column]."""
    return np.array([[tile in characters for tile in line] for line in one])


def _zone(one: Map, mark: str) -> Grid:
    """The tiles with the mark; in a map without it all free ones."""
    zone = _marked(one, mark)
    return zone if zone.any() else _marked(one, ".sg")


def _places(one: Map, characters: str) -> list[tuple[int, int]]:
    """Column and row of the tiles that show one of the characters."""
    return [(x, y) for y, line in enumerate(one) for x, tile in enumerate(line) if tile in characters]


def _tiles(places: Sequence[tuple[int, int]]) -> list[Box]:
    return [(x, y, x + 1, y + 1) for x, y in places]


def _rectangles(grid: Grid) -> list[Box]:
    """All rectangles (left, top, right, bottom) of true tiles that no larger one contains.

    Together they leave no seam between two tiles through which a line could slip.
    """
    spans = [(first, last) for first in range(TILES) for last in range(first + 1, TILES + 1)]
    full = [(x0, y0, x1, y1) for x0, x1 in spans for y0, y1 in spans if grid[y0:y1, x0:x1].all()]
    return [
        one
        for one in full
        if not any(
            other != one
            and other[0] <= one[0]
            and other[1] <= one[1]
            and other[2] >= one[2]
            and other[3] >= one[3]
            for other in full
        )
    ]


def _filled(
    rows: Sequence[Sequence[tuple[int | float, ...]]], filling: tuple[float, ...], device: torch.device | str
) -> Float[Tensor, "K R width"]:
    """Rows of unequal length as one tensor; the shorter ones end with `filling`."""
    most = max(len(row) for row in rows)
    full = [[*row, *[filling] * (most - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.float64, device=device).view(len(rows), most, len(filling))


def _pixels(rows: Sequence[Sequence[Box]], device: torch.device | str) -> Rectangles:
    """Boxes of tiles as rectangles of pixels, whose edges are half a pixel beyond their outermost pixels."""
    box = _filled(rows, NOWHERE, device) * TILE - 0.5
    return Rectangles((box[..., :2] + box[..., 2:]) / 2, (box[..., 2:] - box[..., :2]) / 2)


def _per_mode(grids: Sequence[Sequence[Grid]], device: torch.device | str) -> Rectangles:
    """The rectangles of the true tiles of every layout in every mode."""
    flat = _pixels([_rectangles(grid) for group in grids for grid in group], device)
    shape = (len(grids), len(grids[0]))
    return Rectangles(flat.centre.unflatten(0, shape), flat.half.unflatten(0, shape))


def _flat(grids: Sequence[np.ndarray], device: torch.device | str) -> Bool[Tensor, "*lead 64"]:
    """Grids of tiles with the tiles row by row in one axis."""
    return torch.from_numpy(np.stack(grids)).flatten(-2).to(device)


def _corners(obstacles: Sequence[Grid], keys: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """The middle of the key, and the outward corners of the obstacles in any mode."""
    found = {
        (x, y)
        for grid in obstacles
        for x in range(1, TILES)
        for y in range(1, TILES)
        if grid[y - 1 : y + 1, x - 1 : x + 1].sum() == 1
    }
    middles = [(x + 0.5, y + 0.5) for x, y in keys]
    return [(x * TILE - 0.5, y * TILE - 0.5) for x, y in [*middles, *sorted(found)]]


def _occurring(one: Map, modes: int) -> Bool[np.ndarray, "M 8 8"]:
    """Tiles that can be walked to, in each mode, from where tasks start; pits are left out."""
    begin = _places(one, "s") or _places(one, ".")
    seen = {(0, x, y) for x, y in begin}
    open_ends = list(seen)
    while open_ends:
        mode, x, y = open_ends.pop()
        for arrow in ARROWS.values():
            place = (x + arrow[0], y + arrow[1])
            if not (0 <= place[0] < TILES and 0 <= place[1] < TILES):
                continue
            back = (-arrow[0], -arrow[1])
            tiles = (one[y][x], one[place[1]][place[0]])
            if any(ARROWS.get(tile) == back for tile in tiles):
                continue
            now = next((to for at, to, gate in KEYED if at == mode and gate == tiles[1]), mode)
            if tiles[1] in _closed(now) + "o" or (now, *place) in seen:
                continue
            seen.add((now, *place))
            open_ends.append((now, *place))
    grids = np.zeros((modes, TILES, TILES), bool)
    for mode, x, y in seen:
        grids[mode, y, x] = True
    return grids


def _check(one: Map, modes: int) -> None:
    """Refuse maps for which physics or shortest paths would not hold."""
    if (
        len(one) != TILES
        or any(len(line) != TILES for line in one)
        or set("".join(one)) - set(".sg#o><^vk12")
    ):
        raise InputError(f"a map is {TILES} lines of {TILES} of the characters .sg#o><^vk12; got {one}")
    padded = np.pad(_marked(one, "#"), 1, constant_values=True)
    for x, y in _places(one, "12" + "".join(ARROWS)):
        beside = padded[y : y + 3, x : x + 3]
        upright, level = beside[0, 1] and beside[2, 1], beside[1, 0] and beside[1, 2]
        arrow = ARROWS.get(one[y][x])
        if not (level if arrow in ((0, 1), (0, -1)) else upright if arrow else upright or level):
            raise InputError(
                f"a door needs walls on both sides; the one in column {x}, row {y} of {one} has not"
            )
    for mode in range(modes):
        grid = _marked(one, _closed(mode) + _holes(mode))
        cross = grid[:-1, :-1] & grid[1:, 1:] & ~grid[:-1, 1:] & ~grid[1:, :-1]
        cross |= ~grid[:-1, :-1] & ~grid[1:, 1:] & grid[:-1, 1:] & grid[1:, :-1]
        if cross.any():
            raise InputError(f"walls or pits of {one} meet only at a corner: a path could slip through")
    if modes > 1 and any(len(_places(one, mark)) != 1 for mark in "k12"):
        raise InputError(f"a map with a key has exactly one k, one 1 and one 2; got {one}")
