"""Grids of a maze: drawn by a rule, kept in a file, written as one number that fits in a state.

Rule of PLDM (arXiv:2502.14819): each of 4 x 4 cells is open with probability one half; twice, open cells with
more than six open neighbours among eight become wall; a draw is kept if its open cells hang together (through
sides), make up the wanted part of the grid, and lie less than eight steps apart. Destrade et al.
(arXiv:2601.00844) want 50 to 60 % open, so 8 or 9 cells; they train in five mazes and plan in others.

    word       here
    layout     an integer: bit 4 * row + column is set where the cell is open; row 0 is the upper one
    cell       number 4 * row + column
    metre      the side of a cell; x points right, y up, the origin is the middle of the grid

Departs from PLDM: the mazes are our own draws, in `mazes/version_1.json`; `drawn_layouts(0)` makes them
again.
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.types import InputError, SeedTree

SIDE = 4  # cells along each side of the grid; a ring of walls surrounds it
CELLS = SIDE * SIDE
ALL_OPEN = 2**CELLS - 1  # the largest layout
LEAST_OPEN, MOST_OPEN = 0.5, 0.6  # part of the grid
MOST_NEIGHBOURS = 6  # open neighbours, of 8, beyond which a cell is filled
LONGEST_PATH = 7  # steps between the two open cells that are farthest apart
TRAINING, HELD_OUT = 5, 40  # mazes of each kind


@dataclass(frozen=True)
class MazeSets:
    """The mazes for recording, and those for planning, which no recording saw."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


@functools.cache
def maze_sets() -> MazeSets:
    """The mazes of version 1."""
    text = resources.files("jepaplan.envs").joinpath("mazes/version_1.json").read_text(encoding="utf-8")
    written = json.loads(text)
    return MazeSets(
        tuple(parse_layout(rows) for rows in written["training"]),
        tuple(parse_layout(rows) for rows in written["held_out"]),
    )


def drawn_layouts(seed: int) -> str:
    """The text of a file of mazes, all different: `drawn_layouts(0)` is version 1."""
    generator = SeedTree(seed).torch("maze layouts")
    found: list[int] = []
    while len(found) < TRAINING + HELD_OUT:
        layout = _draw(generator)
        if layout not in found and _accepted(layout):
            found.append(layout)
    rows = [format_layout(layout) for layout in found]
    content = {
        "version": 1,
        "made_by": f"jepaplan.envs.maze_layouts.drawn_layouts({seed})",
        "legend": "rows from top to bottom; '.' open, '#' wall; a ring of walls surrounds each maze",
        "training": rows[:TRAINING],
        "held_out": rows[TRAINING:],
    }
    return json.dumps(content, indent=1) + "\n"


def parse_layout(rows: str) -> int:
    """The layout written as '..##/#.../..../..##', row after row, '.' open and '#' wall."""
    cells = rows.replace("/", "")
    if rows.count("/") != SIDE - 1 or len(cells) != CELLS or set(cells) - set(".#"):
        raise InputError(
            f"a maze is {SIDE} rows of {SIDE} cells, '.' open and '#' wall, such as '..##/#.../..../..##'; "
            f"got {rows!r}"
        )
    return sum(1 << number for number, cell in enumerate(cells) if cell == ".")


def format_layout(layout: int) -> str:
    """Undo `parse_layout`."""
    cells = "".join("." if layout >> number & 1 else "#" for number in range(CELLS))
    return "/".join(cells[row * SIDE : (row + 1) * SIDE] for row in range(SIDE))


def open_cells(layouts: Shaped[Tensor, "*batch"]) -> Bool[Tensor, "*batch row column"]:
    """Which cells of each layout are open."""
    bits = torch.arange(CELLS, device=layouts.device)
    return (layouts.long()[..., None] >> bits & 1).bool().unflatten(-1, (SIDE, SIDE))


@functools.lru_cache(maxsize=1024)
def cell_distances(layout: int) -> Float[Tensor, "cells cells"]:
    """Steps from open cell to open cell through sides; infinite from, to and between what is not joined."""
    cell = torch.arange(CELLS)
    row, column = cell // SIDE, cell % SIDE
    beside = (row[:, None] - row).abs() + (column[:, None] - column).abs() == 1
    free = open_cells(torch.tensor(layout)).flatten()
    joined = beside & free[:, None] & free
    steps = torch.where(torch.eye(CELLS, dtype=torch.bool) & free, 0.0, torch.inf)
    steps = torch.where(joined, 1.0, steps)
    for middle in range(CELLS):  # Floyd and Warshall
        steps = torch.minimum(steps, steps[:, middle, None] + steps[middle])
    return steps


def cell_of(positions: Float[Tensor, "*batch 2"]) -> Int[Tensor, "*batch"]:
    """The number of the cell that holds each position, -1 outside the grid or if not a number."""
    half = SIDE / 2
    x, y = positions[..., 0], positions[..., 1]
    inside = (x.abs() < half) & (y.abs() < half)
    column = torch.where(inside, x + half, 0).floor().long().clamp(max=SIDE - 1)
    row = torch.where(inside, half - y, 0).floor().long().clamp(0, SIDE - 1)
    return torch.where(inside, SIDE * row + column, -1)


def cell_centre(cells: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch 2"]:
    """Where the middle of each cell is, in metres."""
    x = cells % SIDE - (SIDE - 1) / 2
    y = (SIDE - 1) / 2 - cells // SIDE
    return torch.stack([x, y], dim=-1)


def in_open_cell(
    positions: Float[Tensor, "B 2"], layouts: Shaped[Tensor, " B"]
) -> tuple[Bool[Tensor, " B"], Int[Tensor, " B"]]:
    """Whether each position is in an open cell of its layout, and the cell's number (0 where it is not)."""
    cell = cell_of(positions)
    inside = (cell >= 0) & is_layout(layouts)
    number = torch.where(is_layout(layouts), layouts, 0)
    free = open_cells(number).flatten(-2).gather(-1, cell.clamp(min=0)[:, None])[:, 0] & inside
    return free, torch.where(free, cell, 0)


def is_layout(layouts: Shaped[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """True for whole numbers that name a maze."""
    return (layouts >= 0) & (layouts <= ALL_OPEN) & (layouts == layouts.floor())


def joined(layout: int) -> bool:
    """Whether every open cell leads to every other."""
    free = open_cells(torch.tensor(layout)).flatten()
    return bool(cell_distances(layout)[free][:, free].isfinite().all())


def _draw(generator: torch.Generator) -> int:
    """One draw, crowded cells filled, not yet accepted."""
    free = torch.rand(SIDE, SIDE, generator=generator) < 0.5
    for _ in range(2):
        around = torch.nn.functional.pad(free.float(), (1, 1, 1, 1))
        neighbours = around.unfold(0, 3, 1).unfold(1, 3, 1).sum((-1, -2)) - free.float()
        free = free & (neighbours <= MOST_NEIGHBOURS)
    return int((free.flatten().long() << torch.arange(CELLS)).sum())


def _accepted(layout: int) -> bool:
    """Enough open cells, all joined, none too far from another."""
    free = open_cells(torch.tensor(layout)).flatten()
    enough = LEAST_OPEN <= float(free.float().mean()) <= MOST_OPEN
    return enough and float(cell_distances(layout)[free][:, free].max()) <= LONGEST_PATH
