"""iCEM: the cross-entropy method with coloured noise, a shrinking population and elites that stay.

Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", CoRL 2020 (arXiv:2008.06389),
Algorithm 1.

    paper            here
    N, K             samples, elites
    gamma            decay            samples of iteration i: max(N gamma^-i, 2 K)
    beta             exponent         of the noise's spectrum
    alpha            momentum         the share of the previous fit
    xi               reused           the share of the elites that stay for the next iteration

Departs from the paper: elites do not go on to the next environment step, since a `Plan` carries a mean and a
deviation only (the warm start is the shifted plan, which is the best candidate); those that stay are not
evaluated again, as they would cost the same; bounds are kept by projection.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.noise import ColouredNoise, check_exponent
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
    propose,
    within,
)
from jepaplan.planners.proposals_bank import beside
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class ICEM:
    """Configuration and planner at once. `Search.plan.mean` is the cheapest candidate of all iterations."""

    samples: int = 100  # per problem, in the first iteration
    elites: int = 10
    iterations: int = 6
    horizon: int = 16  # model steps
    std: float = 1.0  # of the first iteration's noise, in normalised action units
    std_min: float = 0.05  # in normalised action units; keeps exploring near the optimum
    momentum: float = 0.1  # share of the previous mean and std in the next
    decay: float = 1.25  # each iteration draws so many times fewer, but never fewer than two per elite
    reused: float = 0.3  # share of the elites that stay
    exponent: float = 2.0  # of the noise: 0 is white, 2 is smooth
    bounds: NormBound | BoxBound | None = None
    proposal: Proposal | None = None  # None: coloured noise with that exponent

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(samples=self.samples, horizon=self.horizon, iterations=self.iterations, std=self.std)
        check_elites(self.elites, self.samples, std=self.std, std_min=self.std_min, momentum=self.momentum)
        check_exponent(self.exponent)
        if not self.decay >= 1:
            raise InputError(
                f"decay divides the samples of each iteration, so it is 1 or more; got {self.decay}"
            )
        if not 0 <= self.reused <= 1:
            raise InputError(f"reused is the share of the elites that stay, in [0, 1]; got {self.reused}")

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def with_budget(self, samples: int, iterations: int) -> "ICEM":
        """The same planner with fewer samples and iterations; as large a share of them are elites."""
        elites = scaled_elites(self.elites, samples, of=self.samples)
        return replace(self, samples=samples, iterations=iterations, elites=elites)

    def with_proposal(self, proposal: Proposal, share: float) -> "ICEM":
        """The same planner, of whose candidates the share comes from `proposal`."""
        return replace(self, proposal=beside(self._own_proposal(), proposal, share))

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is where the noise begins."""
        return last(self.refinements(cost, start, generator))

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """The same, one iteration after the other."""
        sampler = _Coloured(self.bounds, self._own_proposal())

        def drawn(plan: Plan, iteration: int) -> Tensor:
            # the mean is no sample while it still moves: it would be an elite again and again
            final = iteration == self.iterations - 1
            return propose(sampler, plan, self.population(iteration), generator, keep_nominal=final)

        kept = round(self.reused * self.elites)
        return best_so_far(refine(cost, start, self.iterations, drawn, self._refit, kept))

    def _own_proposal(self) -> Proposal:
        return self.proposal or ColouredNoise(exponent=self.exponent)

    def population(self, iteration: int) -> int:
        """Candidates drawn in an iteration, counted from 0."""
        return min(self.samples, max(int(self.samples * self.decay**-iteration), 2 * self.elites))

    def _refit(self, candidates: Tensor, costs: Tensor, current: Plan) -> Plan:
        fitted = fit_elites(
            candidates,
            costs,
            current,
            elites=self.elites,
            momentum=self.momentum,
            std_min=self.std_min,
        )
        return within(self.bounds, fitted)


@dataclass(frozen=True)
class _Coloured:
    """A `Sampler` that always has a proposal."""

    bounds: NormBound | BoxBound | None
    proposal: Proposal
    correlation: float = 0.0
