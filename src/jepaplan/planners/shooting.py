"""Random shooting: draw plans once and take the cheapest. The floor that every other planner has to beat."""

from dataclasses import dataclass

import torch

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import evaluate, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling, draw
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

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(
            samples=self.samples,
            horizon=self.horizon,
            iterations=1,
            std=self.std,
            correlation=self.correlation,
        )

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    @torch.no_grad()
    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """The cheapest of `samples` candidates around `start`."""
        candidates = draw(
            start,
            self.samples,
            generator,
            bounds=self.bounds,
            correlation=self.correlation,
            keep_nominal=self.keep_nominal,
        )
        costs = evaluate(cost, candidates)
        chosen = candidates[torch.arange(len(candidates), device=candidates.device), costs.argmin(dim=-1)]
        evaluations = self.samples * start.mean.shape[1]
        return Search(
            plan=Plan(chosen, start.std), candidates=candidates, costs=costs, evaluations=evaluations
        )
