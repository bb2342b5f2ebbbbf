"""Terms that most costs are made of: distance to the goal, effort and smoothness of actions.

    symbol                       here
    d(z, g)                      `Distance(latent, goal)`, steps or any other unit still to go
    sum_k d(z_k, g)              GoalDistance(over="sum")          k = 1..H: no action changes z_0
    d(z_H, g)                    GoalDistance(over="terminal")
    min_k d(z_k, g)              GoalDistance(over="minimum")      touching the goal counts, wherever it ends
    sum_k gamma^k d              GoalDistance(over="discounted")
    1/n sum_{k>H-n} d(z_k, g)    GoalDistance(over="last", last=n)
    sum_k |a_k|^2                ActionEffort
    sum_k |a_k - a_{k-1}|^2      ActionSmoothness                  k = 2..H

PLDM (arXiv:2502.14819) plans with the sum of `mean_square`; DINO-WM and LeWM with a terminal distance; H-JEPA
with the mean over the last two at its lowest level.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.compose import Additive, Summand
from jepaplan.costs.distances import mean_square as mean_square
from jepaplan.costs.steps import (
    ImaginedStep,
    JointSteps,
    StepDistance,
    added_up,
    discounted,
    how_far,
    refuse_growing_discount,
)
from jepaplan.interfaces import Distance, Prepared
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class GoalDistance(Additive):
    """How far the imagined path stays from the goal, by any `Distance`, or by one that knows the action.

    A `StepDistance` counts from where the action was taken: -Q(z_{k-1}, a_k, g) in place of d(z_k, g).
    """

    distance: Distance | StepDistance
    over: Literal["sum", "terminal", "minimum", "discounted", "last"] = "sum"
    discount: float = 1.0  # per model step; only with over="discounted"
    last: int = 1  # steps that count, from the end; only with over="last"
    label: ClassVar[str] = "goal"

    def __post_init__(self) -> None:
        """Refuse numbers that would be ignored, and a discount that would grow."""
        refuse_growing_discount(self.discount)
        if self.last < 1:
            raise InputError(f"the last {self.last} steps cannot be averaged; last is at least 1")
        for name, given, over in (
            ("discount", self.discount < 1, "discounted"),
            ("last", self.last > 1, "last"),
        ):
            if given and self.over != over:
                raise InputError(
                    f'{name}={getattr(self, name)} has no effect with over="{self.over}"; write '
                    f'over="{over}", or leave it out'
                )

    def prepare(self, goal: Float[Tensor, "B *goal"]) -> int:
        """What the distance has to find out about goals; predictor calls that it took."""
        return self.distance.prepare(goal) if isinstance(self.distance, Prepared) else 0

    def accumulate_jointly(
        self, total: Float[Tensor, "B S"] | None, steps: JointSteps
    ) -> Float[Tensor, "B S"] | None:
        """Fold in steps that follow each other; a distance that does not count is not even computed."""
        if self.over != "minimum":
            return added_up(self, total, steps)
        distance = steps.apart(how_far(self.distance, steps.side_by_side())).amin(dim=1)
        return distance if total is None else torch.minimum(total, distance)

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """The distance after this step, as far as it counts by itself."""
        if self.over == "minimum":
            raise InputError(
                'GoalDistance(over="minimum") knows its cost only at the end of a path, so it cannot be paid '
                'step by step: write over="discounted" or over="terminal" for tree search, beam and '
                "collocation, or plan with a planner that scores whole plans (MPPI, CEM, gradient)"
            )
        if self.over == "terminal":
            return None
        if self.over == "last":
            counted = min(self.last, step.horizon)
            counts = step.index > step.horizon - counted
            return None if counts is False else how_far(self.distance, step) * counts / counted
        distance = how_far(self.distance, step)
        return discounted(distance, self.discount, step.index) if self.over == "discounted" else distance

    def to_go(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """The terminal distance; for `last`, what the steps not taken yet would add if nothing moved."""
        if self.over == "terminal":
            return how_far(self.distance, step)
        if self.over != "last" or (isinstance(step.index, int) and step.index == step.horizon):
            return None
        distance = how_far(self.distance, step)
        steps_left = torch.as_tensor(step.horizon - step.index, dtype=distance.dtype, device=distance.device)
        return distance * (steps_left / min(self.last, step.horizon)).clamp(max=1)


@dataclass(frozen=True)
class ActionEffort(Additive):
    """Sum over steps of the squared length of the action, in normalised units."""

    label: ClassVar[str] = "effort"

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The squared length of this step's action."""
        return step.action.square().sum(dim=-1)


@dataclass(frozen=True)
class ActionSmoothness(Summand):
    """Sum over steps of the squared difference between an action and the one before it in the plan.

    The plan's first action has none before it and costs nothing. Each share depends on two steps, so this
    term is for planners that score whole plans.
    """

    label: ClassVar[str] = "smoothness"

    def accumulate(self, total: Float[Tensor, "B S"] | None, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """Fold in one step."""
        if total is None or step.previous_action is None:
            return torch.zeros_like(step.action[..., 0])
        return total + (step.action - step.previous_action).square().sum(dim=-1)
