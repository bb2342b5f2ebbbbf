"""All recipes by name."""

import difflib
from collections.abc import Callable
from typing import Literal

from jepaplan.recipes.demo_study import demo
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.maze import MAZE_RECIPES
from jepaplan.recipes.planner_study import planners
from jepaplan.recipes.reproduction import Reproduction
from jepaplan.recipes.table2 import sweeps, table2
from jepaplan.recipes.tile_rooms import TILE_RECIPES
from jepaplan.recipes.wall import WALL_RECIPES, WALL_SWEEPS
from jepaplan.types import InputError

RECIPES: dict[str, Callable[[], Experiment]] = {**WALL_RECIPES, **MAZE_RECIPES, **TILE_RECIPES}
"""What lists show."""

SWEEPS: dict[str, Callable[[], Experiment]] = {**WALL_SWEEPS}
"""Variations in one number, found by name but too many to list."""

REPRODUCTIONS: dict[str, Callable[[Literal["cpu", "full"]], Reproduction]] = {
    "demo": demo,
    "planners": planners,
    "sweeps": sweeps,
    "table2": table2,
}
"""What `jepaplan reproduce` makes, by name and scale."""


def find_recipe(name: str) -> Experiment:
    """The recipe of that name; an unknown name is refused with the nearest ones."""
    known = RECIPES | SWEEPS
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"there is no recipe {name!r}.{meant} Known: {', '.join(RECIPES)}")
    return known[name]()
