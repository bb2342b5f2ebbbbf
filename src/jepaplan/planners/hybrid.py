"""The cross-entropy method with elites refined by gradients: sampling finds the valley, descent its floor.

Bharadhwaj et al., "Model-Predictive Control via Cross-Entropy and Gradient-Based Optimization", L4DC 2020
(arXiv:2004.08763).

    paper              here
    N samples, top M   samples, elites
    gradient steps     descent.steps      of each elite, in every iteration

Departs from the paper: only elites are refined, as they are the ones that the fit sees. A refined elite is
its cheapest iterate, so it is never dearer than it was. `Search.plan.mean` is the cheapest sequence of all,
`std` that of the last fit; the fit's mean is where the next iteration looks. Gradients count as three
evaluations per model step (see `descent`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.descent import GRADIENT_EVALUATIONS, Adam, Descent, descended
from jepaplan.planners.plan import (
    check_elites,
    evaluate,
    fit_elites,
    gathered,
    last,
    scaled_elites,
    uninformed,
)
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling, draw, within
from jepaplan.planners.stepwise import cheapest
from jepaplan.types import Plan, Search


@dataclass(frozen=True, kw_only=True)
class GradientCEM:
    """Configuration and planner at once."""

    samples: int = 300  # per problem and iteration
    elites: int = 30
    iterations: int = 5
    horizon: int = 16  # model steps
    descent: Descent = field(
        default_factory=lambda: Descent(steps=3, optimiser=Adam(learning_rate=0.05))
    )  # of each elite, in every iteration
    std: float = 1.0  # of the first iteration's noise, in normalised action units
    std_min: float = 0.05  # in normalised action units; keeps exploring near the optimum
    momentum: float = 0.0  # share of the previous mean and std in the next
    bounds: NormBound | BoxBound | None = None
    correlation: float = 0.0  # of the noise from one step to the next
    keep_nominal: bool = True  # the mean itself is candidate 0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(
            samples=self.samples,
            horizon=self.horizon,
            iterations=self.iterations,
            std=self.std,
            correlation=self.correlation,
        )
        check_elites(self.elites, self.samples, std=self.std, std_min=self.std_min, momentum=self.momentum)

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement."""
        of_elite = GRADIENT_EVALUATIONS * self.descent.steps + 1
        return [(self.samples + self.elites * of_elite) * horizon] * self.iterations

    def fitting(self, evaluations: int, horizon: int) -> "GradientCEM":
        """The same planner with at most so many evaluations, if it can: fewer iterations, then fewer samples.

        As large a share of them are elites.
        """
        iterations = evaluations // self.schedule(horizon)[0]
        if iterations >= 1:
            return replace(self, iterations=min(self.iterations, iterations))
        smaller = self
        for samples in range(self.samples, 1, -1):
            elites = scaled_elites(self.elites, samples, of=self.samples)
            smaller = replace(self, samples=samples, elites=elites, iterations=1)
            if smaller.schedule(horizon)[0] <= evaluations:
                break
        return smaller

    @torch.no_grad()
    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """What is known after every iteration; the candidates are its refined elites and the best before."""
        current, spent = start, 0
        found: Search | None = None
        for _ in range(self.iterations):
            candidates = draw(
                current,
                self.samples,
                generator,
                bounds=self.bounds,
                correlation=self.correlation,
                keep_nominal=self.keep_nominal,
            )
            costs = evaluate(cost, candidates)
            elites = gathered(candidates, costs.topk(self.elites, dim=-1, largest=False).indices)
            refined = descended(cost, elites, self.descent, self.bounds)
            elites, costs = refined.actions, refined.costs
            spent += candidates.shape[1] * candidates.shape[2] + refined.evaluations
            if found is not None:
                # a cost is a function: the best so far stays in the running at the price it had
                best = found.costs.argmin(dim=-1, keepdim=True)
                elites = torch.cat([elites, gathered(found.candidates, best)], dim=1)
                costs = torch.cat([costs, found.costs.gather(1, best)], dim=1)
            current = self._refit(elites, costs, current)
            found = Search(Plan(cheapest(elites, costs), current.std), elites, costs, spent)
            yield found

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is where the noise begins."""
        return last(self.refinements(cost, start, generator))

    def _refit(
        self, candidates: Float[Tensor, "B S H A"], costs: Float[Tensor, "B S"], current: Plan
    ) -> Plan:
        fitted = fit_elites(
            candidates,
            costs,
            current,
            elites=self.elites,
            momentum=self.momentum,
            std_min=self.std_min,
        )
        return within(self.bounds, fitted)
