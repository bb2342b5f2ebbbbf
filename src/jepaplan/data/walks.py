"""Walks before they are drawn, and who walks in which world.

A walker is a function `(world, count, steps, generator) -> Walks`; what else it takes (such as the share of
walks through a door) has a default. Walkers are found by the world's name and imported when asked for.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from jepaplan.envs.worlds import WORLDS
from jepaplan.types import InputError


@dataclass(frozen=True)
class Walks:
    """True states along walks of equal length, and the actions that led from each to the next."""

    states: Float[Tensor, "B frames W"]  # T + 1 frames
    actions: Float[Tensor, "B T A"]  # environment units

    def __post_init__(self) -> None:
        """Refuse walks that lack a frame."""
        if self.states.shape[1] != self.actions.shape[1] + 1:
            raise InputError(
                f"walks of T actions have T + 1 states; got {self.actions.shape[1]} actions and "
                f"{self.states.shape[1]} states"
            )

    def select(self, index: Shaped[Tensor, " K"]) -> "Walks":
        """The walks numbered, or marked true, in `index`."""
        return Walks(self.states[index], self.actions[index])


Walker = Callable[[Any, int, int, torch.Generator], Walks]

_WALL = "jepaplan.data.wall_walks:wall_walks"
_TILES = "jepaplan.data.tile_walks:tile_walks"
_FREE = {
    _WALL: "jepaplan.data.wall_walks:free_wall_walks",
    _TILES: "jepaplan.data.tile_walks:free_tile_walks",
}
# Who walks in the worlds of a module: "module:function".
_BY_MODULE = {
    "jepaplan.envs.wall": _WALL,
    "jepaplan.envs.tile_rooms": _TILES,
    "jepaplan.envs.point_maze": "jepaplan.data.maze_walks:maze_walks",
}

# How each world is recorded.
WALKERS: Mapping[str, str] = {
    name: _BY_MODULE[module]
    for name, factory in WORLDS.items()
    if (module := factory.partition(":")[0]) in _BY_MODULE
}
# Walks that aim at nothing, for probes; where a world has no others, those that are recorded.
FREE_WALKERS: Mapping[str, str] = {name: _FREE.get(walker, walker) for name, walker in WALKERS.items()}


def find_walker(name: str, free: bool = False) -> Walker:
    """How world `name` is recorded, or with `free` how one walks there without an aim."""
    if name not in WALKERS:
        raise InputError(
            f"nobody walks in a world named {name!r}; there are walkers for {', '.join(WALKERS)}. Add a "
            "function (world, count, steps, generator) -> Walks to `jepaplan.data.walks`"
        )
    module, _, function = (FREE_WALKERS if free else WALKERS)[name].partition(":")
    return getattr(import_module(module), function)


def takes(walker: Walker, option: str) -> bool:
    """Whether `walker` has an option of that name beyond the four that all have."""
    return option in inspect.signature(walker).parameters
