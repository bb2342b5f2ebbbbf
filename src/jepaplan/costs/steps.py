"""What a term sees of imagined paths, and the three ways in which a term can look at them.

    z_{k-1}  --a_k-->  z_k      `before`, `action`, `latent` of the `ImaginedStep` with index k = 1..H

`AdditiveTerm`: every step adds its share, and the last latent says what is still expected. It serves planners
that score whole plans and those that grow paths step by step (tree search, beam, collocation).
`StepwiseTerm`: folds one step after the other into a total, such as the minimum over a path.
`PathTerm`: wants the whole path at once; it costs memory, so prefer the others.

Additive and stepwise terms let nobody hold all latents of all samples: at 2000 samples x 96 steps x 512
numbers that would be 393 MB.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.interfaces import Distance
from jepaplan.types import InputError, Rollout


@dataclass(frozen=True, kw_only=True)
class ImaginedStep:
    """One step of all sampled paths."""

    index: int | Int[Tensor, "B S"]  # 1..horizon: how many actions have been taken; a tree's nodes may differ
    horizon: int
    before: Float[Tensor, "B S *latent"]
    action: Float[Tensor, "B S A"]  # taken at `before`, in normalised units
    latent: Float[Tensor, "B S *latent"]  # where it led
    goal: Float[Tensor, "B 1 *goal"]
    previous_action: Float[Tensor, "B S A"] | None = None  # that led to `before`; None at the first step


@runtime_checkable
class StepwiseTerm(Protocol):
    """A term that folds over the steps."""

    def accumulate(
        self, total: Float[Tensor, "B S"] | None, step: ImaginedStep
    ) -> Float[Tensor, "B S"] | None:
        """The total including `step`; None as long as nothing has been counted."""
        ...


@runtime_checkable
class AdditiveTerm(StepwiseTerm, Protocol):
    """A term whose path cost is the sum of its `step_cost` plus the `to_go` of the last step."""

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """What this step adds, whatever comes after; None for nothing."""
        ...

    def to_go(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """What is expected beyond `step.latent`, if the path ends there; None for nothing."""
        ...


@runtime_checkable
class PathTerm(Protocol):
    """A term that needs all latents of a path at once."""

    def over_path(self, rollout: Rollout, goal: Float[Tensor, "B 1 *goal"]) -> Float[Tensor, "B S"]:
        """One number per path."""
        ...


Term = StepwiseTerm | PathTerm


@runtime_checkable
class StepDistance(Protocol):
    """What is still to go as a step with its action tells it; a `Distance` asks its latent alone."""

    def of_step(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """What is to be paid from `step.before` on if `step.action` is taken first."""
        ...


def how_far(distance: Distance | StepDistance, step: ImaginedStep) -> Float[Tensor, "B S"]:
    """What a step leaves to go: from where it led, or from where its action was taken."""
    if isinstance(distance, StepDistance):
        return distance.of_step(step)
    return distance(step.latent, step.goal)


def added_up(
    term: AdditiveTerm, total: Float[Tensor, "B S"] | None, step: ImaginedStep
) -> Float[Tensor, "B S"] | None:
    """How an additive term accumulates; what is to go is not even computed before the last step."""
    share = term.step_cost(step)
    if share is not None:
        total = share if total is None else total + share
    rest = term.to_go(step) if step.index == step.horizon else None
    if rest is not None:
        total = rest if total is None else total + rest
    return total


def discounted(
    values: Float[Tensor, "B S"], discount: float, steps: int | Int[Tensor, "B S"]
) -> Float[Tensor, "B S"]:
    """`values` times discount to the power of `steps`."""
    if discount == 1:
        return values
    return values * discount ** (steps if isinstance(steps, int) else steps.to(values.dtype))


def refuse_growing_discount(discount: float) -> None:
    """Discounts lie in (0, 1]."""
    if not 0 < discount <= 1:
        raise InputError(f"discount lies in (0, 1]; got {discount}")
