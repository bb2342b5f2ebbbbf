"""The cross-entropy method: draw plans, keep the cheapest few, fit a Gaussian to them, repeat.

Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999; momentum as in
de Boer et al., "A Tutorial on the Cross-Entropy Method", 2005, section 3.

    literature       here
    N, N^e           samples, elites
    alpha            1 - momentum     the share of the new fit
    sigma            std              a standard deviation

V-JEPA 2-AC's planner (arXiv:2506.09985) is this one with momentum and a box.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import (
    best_so_far,
    check_elites,
    fit_elites,
    last,
    refine,
    scaled_elites,
    uninformed,
)
from jepaplan.planners.proposals import (
    BoxBound,
    NormBound,
    Proposal,
    Randomness,
    check_sampling,
    own_proposal,
    propose,
    within,
)
from jepaplan.planners.proposals_bank import beside
from jepaplan.types import Plan, Search


@dataclass(frozen=True, kw_only=True)
class CEM:
    """Configuration and planner at once. `returns` says which plan comes back."""

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
    proposal: Proposal | None = None  # None: Gaussian noise with that correlation
    returns: Literal["mean", "best"] = "mean"  # of the last fit, or the cheapest candidate of all iterations

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(
            samples=self.samples,
            horizon=self.horizon,
            iterations=self.iterations,
            std=self.std,
            correlation=self.correlation,
            proposal=self.proposal,
        )
        check_elites(self.elites, self.samples, std=self.std, std_min=self.std_min, momentum=self.momentum)

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def with_budget(self, samples: int, iterations: int) -> "CEM":
        """The same planner with fewer samples and iterations; as large a share of them are elites."""
        elites = scaled_elites(self.elites, samples, of=self.samples)
        return replace(self, samples=samples, iterations=iterations, elites=elites)

    def with_proposal(self, proposal: Proposal, share: float) -> "CEM":
        """The same planner, of whose candidates the share comes from `proposal`."""
        return replace(self, proposal=beside(own_proposal(self), proposal, share), correlation=0.0)

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is where the noise begins."""
        return last(self.refinements(cost, start, generator))

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """The same, one iteration after the other."""
        searches = refine(
            cost,
            start,
            iterations=self.iterations,
            propose=lambda plan, _: propose(
                self, plan, self.samples, generator, keep_nominal=self.keep_nominal
            ),
            refit=self._refit,
        )
        return best_so_far(searches) if self.returns == "best" else searches

    def _refit(self, candidates: Tensor, costs: Tensor, current: Plan) -> Plan:
        fitted = fit_elites(
            candidates,
            costs,
            current,
            elites=self.elites,
            momentum=self.momentum,
            std_min=self.std_min,
        )
        # the average of allowed actions is allowed, but for rounding and for a start that was not
        return within(self.bounds, fitted)
