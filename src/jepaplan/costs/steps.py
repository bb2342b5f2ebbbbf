"""What a term sees of imagined paths, and the three ways in which a term can look at them.

    z_{k-1}  --a_k-->  z_k      `before`, `action`, `latent` of the `ImaginedStep` with index k = 1..H

`AdditiveTerm`: every step adds its share, and the last latent says what is still expected. It serves planners
that score whole plans and those that grow paths step by step (tree search, beam, collocation).
`StepwiseTerm`: folds one step after the other into a total, such as the minimum over a path.
`JointTerm`: either of these, if it can also fold in several steps as one batch: fewer and larger calls.
`PathTerm`: wants the whole path at once; it costs memory, so prefer the others.

Additive and stepwise terms let nobody hold all latents of all samples: at 2000 samples x 96 steps x 512
numbers that would be 393 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
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


@dataclass(frozen=True)
class JointSteps:
    """Steps that follow each other, of all sampled paths."""

    steps: Sequence[ImaginedStep]

    @property
    def last(self) -> ImaginedStep:
        """The latest."""
        return self.steps[-1]

    def side_by_side(self) -> ImaginedStep:
        """As if each step belonged to paths of its own; those of one step are neighbours."""
        if len(self.steps) == 1:
            return self.last
        first, paths = self.steps[0], self.last.action.shape[1]
        latents = torch.cat([first.before, *(step.latent for step in self.steps)], dim=1)
        actions = torch.cat([step.action for step in self.steps], dim=1)
        numbers = torch.as_tensor([step.index for step in self.steps], device=actions.device)
        return ImaginedStep(
            index=numbers.repeat_interleave(paths).expand(len(actions), -1),
            horizon=first.horizon,
            before=latents[:, :-paths],
            action=actions,
            latent=latents[:, paths:],
            goal=first.goal,
        )

    def apart(self, shares: Float[Tensor, "B KS"]) -> Float[Tensor, "B K S"]:
        """What was computed `side_by_side`, by step."""
        return shares.unflatten(1, (len(self.steps), -1))


@runtime_checkable
class JointTerm(StepwiseTerm, Protocol):
    """A stepwise term that can fold in some steps at once."""

    def accumulate_jointly(
        self, total: Float[Tensor, "B S"] | None, steps: JointSteps
    ) -> Float[Tensor, "B S"] | None:
        """What `accumulate` gives after each of the steps in turn, but for the last digits."""
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
    term: AdditiveTerm, total: Float[Tensor, "B S"] | None, steps: JointSteps
) -> Float[Tensor, "B S"] | None:
    """How an additive term accumulates; what is to go is not even computed before the last step."""
    share = term.step_cost(steps.side_by_side())
    if share is not None:
        share = share if len(steps.steps) == 1 else steps.apart(share).sum(dim=1)
        total = share if total is None else total + share
    rest = term.to_go(steps.last) if steps.last.index == steps.last.horizon else None
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
