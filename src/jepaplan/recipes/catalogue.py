"""All recipes by name."""

import difflib
from collections.abc import Callable
from typing import Literal

from jepaplan.recipes.demo_study import demo
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.local import LOCAL_RECIPES
from jepaplan.recipes.maze import MAZE_RECIPES
from jepaplan.recipes.noise_study import noise
from jepaplan.recipes.planner_study import planners
from jepaplan.recipes.reproduction import Reproduction
from jepaplan.recipes.scaling import data, levers, search
from jepaplan.recipes.table2 import sweeps, table2
from jepaplan.recipes.tile_rooms import TILE_RECIPES
from jepaplan.recipes.video import VIDEO_RECIPES, VideoExperiment
from jepaplan.recipes.video_study import VideoStudy, vjepa2
from jepaplan.recipes.wall import WALL_RECIPES, WALL_SWEEPS
from jepaplan.types import InputError

RECIPES: dict[str, Callable[[], Experiment]] = {
    **LOCAL_RECIPES,
    **WALL_RECIPES,
    **MAZE_RECIPES,
    **TILE_RECIPES,
}
"""Systems that plan."""

LISTED: dict[str, Callable[[], Experiment | VideoExperiment]] = {**RECIPES, **VIDEO_RECIPES}
"""What lists show: systems that plan, and the pretraining of video encoders."""

SWEEPS: dict[str, Callable[[], Experiment]] = {**WALL_SWEEPS}
"""Variations in one number, found by name but too many to list."""

REPRODUCTIONS: dict[str, Callable[[Literal["cpu", "full"]], Reproduction | VideoStudy]] = {
    "data": data,
    "demo": demo,
    "levers": levers,
    "noise": noise,
    "planners": planners,
    "search": search,
    "sweeps": sweeps,
    "table2": table2,
    "vjepa2": vjepa2,
}
"""What `jepaplan reproduce` makes, by name and scale."""


def find_recipe(name: str) -> Experiment | VideoExperiment:
    """The recipe of that name, written with `_` or `-`; an unknown one is refused with the nearest ones."""
    known = LISTED | SWEEPS
    asked = name.replace("-", "_")
    if asked not in known:
        near = difflib.get_close_matches(asked, known, n=3, cutoff=0.4)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"there is no recipe {name!r}.{meant} Known: {', '.join(LISTED)}")
    return known[asked]()
