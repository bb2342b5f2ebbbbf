"""Gradient descent on action sequences from many starts: the classic use of a differentiable world model.

Many starts and a choice by what they finally cost, as in stable-worldmodel's gradient solver; DINO-WM
(arXiv:2411.04983) descends from one.

    literature       here
    parallel starts  starts       start 0 is the plan to start from: the warm start
    lr, AdamW        Descent.optimiser
    grad clip        Descent.gradient_clip

Gradients need a smooth cost: they do not find doors. `Search.plan.mean` is the cheapest iterate of all
starts, so it is never dearer than an allowed warm start; `std` stays what it was. A gradient counts as three
evaluations per model step (see `descent`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.descent import GRADIENT_EVALUATIONS, Descent, descend
from jepaplan.planners.plan import last, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling, draw
from jepaplan.planners.stepwise import cheapest
from jepaplan.types import Plan, Search


@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """Configuration and planner at once."""

    starts: int = 100  # per problem
    horizon: int = 16  # model steps
    descent: Descent = field(default_factory=Descent)
    std: float = 1.0  # of the starts around the plan, in normalised action units
    bounds: NormBound | BoxBound | None = None
    correlation: float = 0.0  # of the starts' noise from one step to the next
    keep_nominal: bool = True  # the plan itself is start 0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(
            samples=self.starts,
            horizon=self.horizon,
            iterations=1,
            std=self.std,
            correlation=self.correlation,
        )

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement."""
        look = self.starts * horizon
        return [GRADIENT_EVALUATIONS * look] * self.descent.steps + [look]

    def fitting(self, evaluations: int, horizon: int) -> "GradientDescent":
        """The same planner with at most so many evaluations, if it can: fewer steps, then fewer starts."""
        steps = (evaluations // (self.starts * horizon) - 1) // GRADIENT_EVALUATIONS
        starts = self.starts
        if steps < 1:
            starts = min(starts, evaluations // ((GRADIENT_EVALUATIONS + 1) * horizon))
        descent = replace(self.descent, steps=min(self.descent.steps, max(1, steps)))
        return replace(self, starts=max(1, starts), descent=descent)

    @torch.no_grad()
    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """What is known after every gradient, and after the last step."""
        starts = draw(
            start,
            self.starts,
            generator,
            bounds=self.bounds,
            correlation=self.correlation,
            keep_nominal=self.keep_nominal,
        )
        for found in descend(cost, starts, self.descent, self.bounds):
            plan = Plan(cheapest(found.actions, found.costs), start.std)
            yield Search(plan, found.actions, found.costs, found.evaluations)

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is how far apart the other starts are."""
        return last(self.refinements(cost, start, generator))
