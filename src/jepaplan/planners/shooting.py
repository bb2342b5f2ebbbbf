"""Random shooting: draw plans once and take the cheapest. The floor that every other planner has to beat.

With a warm start and the nominal kept this is predictive sampling (Howell et al., "Predictive Sampling:
Real-time Behaviour Synthesis with MuJoCo", arXiv:2212.00541): noise around the plan of the step before, which
is replaced only by something cheaper. Theirs moves the knots of a spline; here every step moves, and
`proposal=ColouredNoise(...)` makes the movement smooth.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import best_so_far, last, refine, uninformed
from jepaplan.planners.proposals import (
    BoxBound,
    NormBound,
    Proposal,
    Randomness,
    check_sampling,
    own_proposal,
    propose,
)
from jepaplan.planners.proposals_bank import beside
from jepaplan.types import Plan, Search


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Configuration and planner at once. With a warm start and `keep_nominal` this is predictive sampling."""

    samples: int = 512  # per problem
    horizon: int = 16  # model steps
    std: float = 1.0  # in normalised action units
    bounds: NormBound | BoxBound | None = None
    correlation: float = 0.0  # of the noise from one step to the next
    keep_nominal: bool = True  # the mean itself is candidate 0
    proposal: Proposal | None = None  # None: Gaussian noise with that correlation

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

    @property
    def iterations(self) -> int:
        """One: what was drawn teaches nothing about what to draw."""
        return 1

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def with_budget(self, samples: int, iterations: int) -> "RandomShooting":
        """The same planner with fewer samples."""
        return replace(self, samples=samples)

    def with_proposal(self, proposal: Proposal, share: float) -> "RandomShooting":
        """The same planner, of whose candidates the share comes from `proposal`."""
        return replace(self, proposal=beside(own_proposal(self), proposal, share), correlation=0.0)

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """The cheapest of `samples` candidates around `start`."""
        return last(self.refinements(cost, start, generator))

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """One `Search`."""
        return best_so_far(
            refine(
                cost,
                start,
                iterations=1,
                propose=lambda plan, _: propose(
                    self, plan, self.samples, generator, keep_nominal=self.keep_nominal
                ),
                refit=lambda candidates, costs, plan: plan,
            )
        )
