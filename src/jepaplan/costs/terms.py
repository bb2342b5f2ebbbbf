"""Terms of a cost: what is bad about one imagined step, and how the steps of a path add up.

    symbol           here
    d(z, g)          `Distance(latent, goal)`, steps or any other unit still to go
    sum_k d(z_k, g)  GoalDistance(over="sum")          k = 1..H: no action changes the observed latent
    d(z_H, g)        GoalDistance(over="terminal")
    min_k d(z_k, g)  GoalDistance(over="minimum")      touching the goal counts, wherever the path ends
    sum_k gamma^k d  GoalDistance(over="discounted")

PLDM (arXiv:2502.14819) plans with the sum of `mean_square`; DINO-WM and LeWM with a terminal distance.

A term is stepwise or it wants the whole path, and says which by the method it has. Stepwise terms fold one
imagined step into a running total, so nobody has to hold all latents of all samples: at 2000 samples x 96
steps x 512 numbers that would be 393 MB.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import Distance
from jepaplan.types import InputError, Rollout


@dataclass(frozen=True)
class ImaginedStep:
    """One step of all sampled paths, as a stepwise term sees it."""

    index: int  # 1..horizon: how many actions have been taken
    horizon: int
    latent: Float[Tensor, "B S *latent"]  # after the action
    action: Float[Tensor, "B S A"]  # that led here, in normalised units
    goal: Float[Tensor, "B 1 *latent"]


@runtime_checkable
class StepwiseTerm(Protocol):
    """A term that folds over the steps."""

    def accumulate(
        self, total: Float[Tensor, "B S"] | None, step: ImaginedStep
    ) -> Float[Tensor, "B S"] | None:
        """The total including `step`; None as long as nothing has been counted."""
        ...


@runtime_checkable
class PathTerm(Protocol):
    """A term that needs all latents of a path at once; it costs memory, so prefer stepwise terms."""

    def over_path(self, rollout: Rollout, goal: Float[Tensor, "B 1 *latent"]) -> Float[Tensor, "B S"]:
        """One number per path."""
        ...


@dataclass(frozen=True, kw_only=True)
class GoalDistance:
    """How far the imagined path stays from the goal, by any `Distance`."""

    distance: Distance
    over: Literal["sum", "terminal", "minimum", "discounted"] = "sum"
    discount: float = 1.0  # per model step; only with over="discounted"

    def __post_init__(self) -> None:
        """Refuse a discount that would be ignored or would grow."""
        if not 0 < self.discount <= 1:
            raise InputError(f"discount lies in (0, 1]; got {self.discount}")
        if self.discount < 1 and self.over != "discounted":
            raise InputError(
                f'discount={self.discount} has no effect with over="{self.over}"; write over="discounted", '
                "or leave the discount out"
            )

    def accumulate(
        self, total: Float[Tensor, "B S"] | None, step: ImaginedStep
    ) -> Float[Tensor, "B S"] | None:
        """Fold in one step; a terminal distance is not even computed before the last."""
        if self.over == "terminal":
            return self.distance(step.latent, step.goal) if step.index == step.horizon else None
        distance = self.distance(step.latent, step.goal)
        if self.over == "discounted":
            distance = distance * self.discount**step.index
        if total is None:
            return distance
        return torch.minimum(total, distance) if self.over == "minimum" else total + distance


@dataclass(frozen=True)
class ActionEffort:
    """Sum over steps of the squared length of the action, in normalised units."""

    def accumulate(self, total: Float[Tensor, "B S"] | None, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """Fold in one step."""
        effort = step.action.square().sum(dim=-1)
        return effort if total is None else total + effort


def mean_square(
    source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
) -> Float[Tensor, "*batch"]:
    """Mean over components of the squared difference: the distance that PLDM plans with."""
    # a norm reads the difference once; square() and mean() would write it a second time
    return torch.linalg.vector_norm(source - goal, dim=-1).square() / source.shape[-1]
