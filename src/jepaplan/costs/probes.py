"""Goals that are given as states, boxes or discs of a probed state instead of pictures.

    want                             distance                  a problem's row of `goal` in `bind`
    probe(z) = s                     StateDistance(probe)      s                    W numbers
    low <= probe(z) <= high          BoxDistance(probe)        low, high            2 W numbers
    |probe(z) - centre| <= radius    BallDistance(probe)       centre, radius       W + 1 numbers

Each is a `Distance` between a latent and such a row, zero where the wish is fulfilled, so it goes into
`GoalDistance` and `NStepCost` like any other. `jepaplan.control.goals` makes the rows. A probe is any
differentiable function of latents, such as the one that `jepaplan.evaluation.position_probe` fits.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.regions import outside_ball, outside_box
from jepaplan.interfaces import Distance
from jepaplan.types import InputError


@runtime_checkable
class Probe(Protocol):
    """What can be read off a latent, `*latent` to W numbers, whatever axes come before."""

    def __call__(self, latent: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probed state."""
        ...


def euclidean(
    source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
) -> Float[Tensor, "*batch"]:
    """Length of the difference."""
    return torch.linalg.vector_norm(source - goal, dim=-1)


@dataclass(frozen=True)
class StateDistance:
    """How far the probed state is from a given one."""

    probe: Probe
    distance: Distance = euclidean  # between states; components of different units want one that weighs them

    def __call__(self, source: Float[Tensor, "..."], goal: Float[Tensor, "*batch W"]) -> Float[Tensor, "..."]:
        """Distances between probed latents and states."""
        state = self.probe(source)
        _refuse_other_rows("StateDistance", "GivenGoal(states)", goal, state.shape[-1])
        return self.distance(state, goal)


@dataclass(frozen=True)
class BoxDistance:
    """How far the probed state is outside a box; zero inside."""

    probe: Probe

    def __call__(self, source: Float[Tensor, "..."], goal: Float[Tensor, "*batch W"]) -> Float[Tensor, "..."]:
        """Distances between probed latents and boxes."""
        state = self.probe(source)
        width = state.shape[-1]
        _refuse_other_rows("BoxDistance", "box_goal(low, high)", goal, 2 * width)
        return outside_box(state, goal[..., :width], goal[..., width:])


@dataclass(frozen=True)
class BallDistance:
    """How far the probed state is outside a ball; zero inside."""

    probe: Probe

    def __call__(self, source: Float[Tensor, "..."], goal: Float[Tensor, "*batch W"]) -> Float[Tensor, "..."]:
        """Distances between probed latents and balls."""
        state = self.probe(source)
        width = state.shape[-1]
        _refuse_other_rows("BallDistance", "ball_goal(centre, radius)", goal, width + 1)
        return outside_ball(state, goal[..., :width], goal[..., width])


def _refuse_other_rows(distance: str, goal_kind: str, goal: Tensor, width: int) -> None:
    if goal.shape[-1] != width:
        raise InputError(
            f"{distance} expects goals of {width} numbers for what this probe reads; got {goal.shape[-1]}. "
            f"Write the goal as {goal_kind}, with as many components as the probe has"
        )
