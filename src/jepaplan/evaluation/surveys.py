"""What probes and maps ask of a world beyond `interfaces.World`: fresh layouts, states at places, ways found.

A world that can answer exactly has the methods of `Surveyed`; for every other world the answers are made of
what all worlds can do:

    question                                exact                 else
    a layout that nobody has seen           fresh_layouts         the start of a fresh task
    the state at a place                    placed                the nearest of many sampled states
    has the way to the goal been found?     passed                nothing lies between any more: not `apart`

`Measured` names the unit of a world's cost to go.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.interfaces import World
from jepaplan.types import SeedTree

SAMPLED = 2048  # states of one layout among which the nearest to a place is looked for


@runtime_checkable
class Surveyed(Protocol):
    """A world that answers exactly."""

    def fresh_layouts(self, count: int, generator: torch.Generator) -> Float[Tensor, "B W"]:
        """States in layouts drawn afresh; where things are in them does not matter."""
        ...

    def placed(self, state: Float[Tensor, "B W"], positions: Float[Tensor, "B 2"]) -> Float[Tensor, "B W"]:
        """The same layouts, the moving thing at `positions` or at the nearest place where it can be."""
        ...

    def passed(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """Whether all that lay between has been left behind."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A world that names the unit of its cost to go."""

    cost_unit: str


def cost_unit(world: World) -> str:
    """What the world's cost to go counts."""
    return world.cost_unit if isinstance(world, Measured) else "units of the world"


def fresh_layouts(world: World, count: int, generator: torch.Generator) -> Float[Tensor, "B W"]:
    """States in `count` layouts drawn afresh; only their layouts are to be used."""
    if isinstance(world, Surveyed):
        return world.fresh_layouts(count, generator)
    return world.sample_tasks(count, generator)[0]


def placed(
    world: World, state: Float[Tensor, "B W"], positions: Float[Tensor, "B 2"]
) -> Float[Tensor, "B W"]:
    """States in the layouts of `state` whose moving thing is at `positions`, or as near as can be."""
    if isinstance(world, Surveyed):
        return world.placed(state, positions)
    # Rows that share all but the place share their samples: few layouts come many times.
    layouts, number = state.unique(dim=0, return_inverse=True)
    found = torch.empty_like(state)
    for each in range(len(layouts)):
        rows = (number == each).nonzero()[:, 0]
        samples = world.sample_states(layouts[each].expand(SAMPLED, -1), SeedTree(0).torch("placed"))
        places = world.positions(samples).to(positions)
        for some in rows.split(SAMPLED):
            found[some] = samples[torch.cdist(positions[some], places).argmin(dim=1)]
    return found


def passed(world: World, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
    """Whether the way to the goal has been found: nothing lies between any more."""
    if isinstance(world, Surveyed):
        return world.passed(state, goal)
    return ~world.apart(state, goal)
