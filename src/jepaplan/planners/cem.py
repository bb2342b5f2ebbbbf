"""The cross-entropy method: draw plans, keep the cheapest few, fit a Gaussian to them, repeat.

Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999; momentum as in
de Boer et al., "A Tutorial on the Cross-Entropy Method", 2005, section 3.

    literature       here
    N, N^e           samples, elites
    alpha            1 - momentum     the share of the new fit
    sigma            std              a standard deviation
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import evaluate, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling, draw
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class CEM:
    """Configuration and planner at once. `Search.plan.mean` is the mean of the last fit."""

    samples: int = 300  # per problem and iteration
    elites: int = 30
    iterations: int = 10
    horizon: int = 16  # model steps
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
        if not 2 <= self.elites <= self.samples:
            raise InputError(
                f"elites are the samples kept for the fit, between 2 and samples={self.samples}; "
                f"got {self.elites}"
            )
        if not 0 <= self.std_min <= self.std:
            raise InputError(f"std_min must lie in [0, std={self.std}]; got {self.std_min}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is the share of the previous fit, in [0, 1); got {self.momentum}")

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    @torch.no_grad()
    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is where the noise begins."""
        found = self._iterate(cost, start, generator)
        for _ in range(self.iterations - 1):
            found = self._iterate(cost, found.plan, generator)
        return replace(found, evaluations=found.evaluations * self.iterations)

    def _iterate(self, cost: SequenceCost, current: Plan, generator: Randomness) -> Search:
        candidates = draw(
            current,
            self.samples,
            generator,
            bounds=self.bounds,
            correlation=self.correlation,
            keep_nominal=self.keep_nominal,
        )
        costs = evaluate(cost, candidates)
        evaluations = self.samples * current.mean.shape[1]
        return Search(self._refit(candidates, costs, current), candidates, costs, evaluations)

    def _refit(self, candidates: Tensor, costs: Tensor, current: Plan) -> Plan:
        best = costs.topk(self.elites, dim=-1, largest=False, sorted=False).indices
        elites = candidates.gather(1, best[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))
        mean = torch.lerp(elites.mean(dim=1), current.mean, self.momentum)
        std = torch.lerp(elites.std(dim=1), current.std, self.momentum).clamp(min=self.std_min)
        # the average of allowed actions is allowed, but for rounding and for a start that was not
        return Plan(mean=mean if self.bounds is None else self.bounds.project(mean), std=std)
