"""Model predictive path integral control: draw plans, weigh them by cost, average.

Williams et al., "Information Theoretic MPC for Model-Based Reinforcement Learning", ICRA 2017, Algorithm 2.

    paper            here
    K, T             samples, horizon
    lambda           temperature      DIVIDES the cost: higher is softer (TD-MPC2's "temperature" multiplies)
    Sigma            std              diagonal; a deviation, so `std_from_variance(12)` for a variance of 12
    U                Plan.mean
    epsilon          candidates - mean, measured after the projection onto the bounds
    lambda u^T Sigma^-1 epsilon       `control_cost=True`

Departs from the paper: bounds are kept by projection; the mean itself is one of the candidates
(`keep_nominal`); with `cost_scaling="per_problem"` a temperature means the same whatever the unit of the
cost.

TD-MPC2 (arXiv:2310.16828, section 3.2) weighs the cheapest few only and refits the deviation every iteration:

    TD-MPC2          here
    top-k            elites
    sigma_min        std_min          a number switches the refit on
    temperature      1 / temperature  theirs multiplies: 0.5 there is 2 here, with `cost_scaling="none"`
    policy rollouts  `Mixture` of an `ActionPrior` and Gaussian noise

It acts on one elite drawn by weight; here the mean (or the best candidate) is returned, so that a plan is a
function of the candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import best_so_far, last, refine, scaled_elites, uninformed
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
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """Configuration and planner at once. The defaults suit standardised costs of any unit."""

    samples: int = 512  # per problem and iteration
    horizon: int = 16  # model steps
    iterations: int = 1  # one, with a warm start, is the classic receding-horizon use
    temperature: float = 0.1  # in units of the cost, or of its spread with `cost_scaling="per_problem"`
    std: float = 1.0  # of the noise, in normalised action units; never a variance
    std_min: float | None = None  # a number: refit std each iteration, but not below it; None: std stays
    bounds: NormBound | BoxBound | None = None
    correlation: float = 0.0  # of the noise from one step to the next
    cost_scaling: Literal["none", "per_problem"] = (
        "per_problem"  # per_problem: divide by the samples' deviation
    )
    keep_nominal: bool = True  # the mean itself is candidate 0
    control_cost: bool = False  # add the paper's temperature * mean . noise / std^2
    elites: int | None = None  # only so many of the cheapest have a weight; None: all
    proposal: Proposal | None = None  # None: Gaussian noise with that correlation
    returns: Literal["mean", "best"] = "mean"  # weighted, or the cheapest candidate of all iterations

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
        if not self.temperature > 0:
            raise InputError(f"temperature divides the cost, so it must be positive; got {self.temperature}")
        if self.std_min is not None and not 0 < self.std_min <= self.std:
            raise InputError(
                f"std_min must lie in (0, std={self.std}], or be None for a constant std; got {self.std_min}"
            )
        if self.elites is not None and not 1 <= self.elites <= self.samples:
            raise InputError(
                f"elites are the samples that have a weight, between 1 and samples={self.samples}, "
                f"or None for all; got {self.elites}"
            )

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def with_budget(self, samples: int, iterations: int) -> "MPPI":
        """The same planner with fewer samples and iterations; as large a share of them are elites."""
        elites = None if self.elites is None else scaled_elites(self.elites, samples, of=self.samples)
        return replace(self, samples=samples, iterations=iterations, elites=elites)

    def with_proposal(self, proposal: Proposal, share: float) -> "MPPI":
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

    def _scaled(
        self, costs: Float[Tensor, "B S"], candidates: Float[Tensor, "B S H A"], current: Plan
    ) -> Float[Tensor, "B S"]:
        if self.control_cost:
            noise = candidates - current.mean[:, None]
            price = current.mean / current.std.square()
            costs = costs + self.temperature * (price[:, None] * noise).sum(dim=(-2, -1))
        return costs if self.cost_scaling == "none" else standardised(costs)

    def _refit(
        self, candidates: Float[Tensor, "B S H A"], costs: Float[Tensor, "B S"], current: Plan
    ) -> Plan:
        scaled = self._scaled(costs, candidates, current)
        if self.elites is not None:
            scaled = only_cheapest(scaled, self.elites)
        weights = path_integral_weights(scaled, self.temperature)
        mean = torch.einsum("bs,bsha->bha", weights, candidates)
        std = current.std
        if self.std_min is not None:
            variance = torch.einsum("bs,bsha->bha", weights, (candidates - mean[:, None]).square())
            std = variance.sqrt().clamp(min=self.std_min)
        # the average of allowed actions is allowed, but for rounding
        return within(self.bounds, Plan(mean=mean, std=std))


def only_cheapest(costs: Float[Tensor, "B S"], count: int) -> Float[Tensor, "B S"]:
    """The `count` cheapest of each problem as they are, all others infinite."""
    chosen = costs.topk(count, dim=-1, largest=False, sorted=False).indices
    return torch.full_like(costs, torch.inf).scatter(1, chosen, costs.gather(1, chosen))


def path_integral_weights(costs: Float[Tensor, "B S"], temperature: float) -> Float[Tensor, "B S"]:
    """w_s proportional to exp(-J_s / temperature); each row sums to one, whatever all its costs share."""
    best = costs.amin(dim=-1, keepdim=True)
    # the best first: a large constant in the costs must not eat the digits that tell them apart
    return torch.softmax((best - costs) / temperature, dim=-1)


def standardised(costs: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """Costs above each problem's best, in standard deviations of the problem's finite costs."""
    above = costs - costs.amin(dim=-1, keepdim=True)
    finite = above.isfinite()
    count = finite.sum(dim=-1, keepdim=True).clamp(min=1)
    known = above.where(finite, 0.0)
    mean = known.sum(dim=-1, keepdim=True) / count
    variance = ((known - mean).square() * finite).sum(dim=-1, keepdim=True) / count
    # equal costs have no spread, and then all weights should be equal: divide zeros by one
    return above / variance.sqrt().where(variance > 0, 1.0)
