"""A learned prior in closed loop: at every replan it is asked anew, from where each problem is to its goal.

The prior says one action; a plan needs as many as its horizon. So the world model is rolled forward under the
prior's means, and the prior asked again at each imagined latent:

    z_0 = encode(observation)     mu_t, sigma_t = prior(z_t, g)     z_{t+1} = step(z_t, mu_t)

Candidates are mu plus noise of deviation sigma. TD-MPC2 (arXiv:2310.16828, section 3.2) samples its policy at
each imagined latent instead, for every candidate; here one path a problem is imagined, which costs as much as
one candidate, and the search does the rest.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import Bounds, Planner, WorldModel
from jepaplan.planners.deadline import leadable
from jepaplan.planners.proposals_bank import AroundPlan
from jepaplan.types import InputError, Plan


@runtime_checkable
class GoalPrior(Protocol):
    """The next normalised action as a Gaussian."""

    def __call__(
        self, latent: Float[Tensor, "B D"], goal: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Mean and log standard deviation."""
        ...


@dataclass(frozen=True, kw_only=True)
class LearnedPrior:
    """A prior, the world model that it imagines with, and what a planner takes from it."""

    prior: GoalPrior
    world_model: WorldModel
    share: float = 0.5  # of the candidates; the others are the planner's own
    std: float | None = None  # of the noise around it, in normalised action units; None: as it learned
    bounds: Bounds | None = None  # the planner's: imagination keeps to them as well

    def __post_init__(self) -> None:
        """Refuse shares and deviations that are none."""
        check_lead(self.share, self.std)

    def lead(
        self, planner: Planner, latent: Float[Tensor, "B D"], goal: Float[Tensor, "B *goal"], horizon: int
    ) -> Planner:
        """The planner, with candidates around what the prior would do from here to there; `horizon` calls."""
        proposal = AroundPlan(plan=self.imagine(latent, goal, horizon))
        return leadable(planner).with_proposal(proposal, self.share)

    @torch.no_grad()
    def imagine(self, latent: Float[Tensor, "B D"], goal: Float[Tensor, "B *goal"], horizon: int) -> Plan:
        """The prior's actions along the path that they lead to, each problem on its own."""
        if goal.shape != latent.shape:
            raise InputError(
                f"a learned prior compares latents: it needs goals that are latents too, of shape "
                f"{tuple(latent.shape)}; got goals of shape {tuple(goal.shape)}. Pursue a picture or a "
                "latent, or plan without a prior"
            )
        means: list[Tensor] = []
        deviations: list[Tensor] = []
        for _ in range(horizon):
            mean, log_std = self.prior(latent, goal)
            mean = mean if self.bounds is None else self.bounds.project(mean)
            means.append(mean)
            deviations.append(log_std.exp() if self.std is None else torch.full_like(log_std, self.std))
            latent = self.world_model.step(latent, mean)
        return Plan(mean=torch.stack(means, dim=1), std=torch.stack(deviations, dim=1))


def check_lead(share: float, std: float | None) -> None:
    """Refuse what no prior can lead with."""
    if not 0 < share <= 1:
        raise InputError(
            f"a prior's share of the candidates lies in (0, 1]; got {share}. To plan without a prior, name "
            "none"
        )
    if std is not None and not 0 < std < math.inf:
        raise InputError(
            "the deviation around a prior is a positive number in normalised action units, or None for the "
            f"learned one; got {std}"
        )
