"""From values to costs: the only minus sign between "more is better" and "less is better".

    symbol                                      here
    V(z, g)                                     value           expected return, minus the steps to go
    V(z)                                        WithoutGoal     a value that has one goal built in
    d(z, g) = -V                                RemainingCost   what is still to be paid
    -V(z_H, g)                                  GoalDistance(distance=RemainingCost(V), over="terminal")
    -sum_{k=1..H} gamma^k V(z_k, g)             GoalDistance(distance=RemainingCost(V), over="discounted")
    -(sum_{k<H} gamma^k r_k + gamma^H V(z_H))   NStepCost       n-step return with its bootstrap
    r_k = -1 where z_k is not at g              NotYetThere     pays 1 there; `MinusReward` takes a learned r
    Q(z, a, g), Q(z, a)                         ActionValue, ActionWithoutGoal
    -Q(z_{H-1}, a_H, g)                         GoalDistance(distance=RemainingActionCost(Q), over="terminal")
    -sum_{k=1..H} Q(z_{k-1}, a_k, g)            GoalDistance(distance=RemainingActionCost(Q), over="sum")
    -(sum_{k<H-1} gamma^k r_k
      + gamma^{H-1} Q(z_{H-1}, a_H, g))         NStepCost(remaining=RemainingActionCost(Q), ...)

The n-step return is what TD-MPC2 plans with (arXiv:2310.16828). A quasimetric head is a distance already and
goes in as it is. An ensemble is read first, by its mean, minimum or lower confidence bound, and is a `Value`
then: `RemainingCost(ReadValue(ensemble, Reading(by="lower_confidence", caution=0.5)))` with the names of
`jepaplan.models.value_heads`. How cautiously it is read is thus a choice of the cost, not of the head.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.compose import Additive
from jepaplan.costs.steps import (
    ImaginedStep,
    StepDistance,
    discounted,
    refuse_growing_discount,
)
from jepaplan.interfaces import Distance, Prepared
from jepaplan.types import InputError


@runtime_checkable
class Value(Protocol):
    """Return to go from a latent towards a goal: higher is better."""

    def __call__(
        self, latent: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Values of broadcastable batches of latents."""
        ...


@runtime_checkable
class StateValue(Protocol):
    """Return to go from a latent, for a task that needs no goal."""

    def __call__(self, latent: Float[Tensor, "*batch D"]) -> Float[Tensor, "..."]:
        """Values, or those of an ensemble with the members on the last axis."""
        ...


@runtime_checkable
class ActionValue(Protocol):
    """Return to go towards a goal if an action is taken first: higher is better."""

    def __call__(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"],
        action: Float[Tensor, "*#batch A"],
    ) -> Float[Tensor, "*batch"]:
        """Values of broadcastable batches; actions in normalised units."""
        ...


@runtime_checkable
class StateActionValue(Protocol):
    """Return to go if an action is taken first, for a task that needs no goal."""

    def __call__(
        self, latent: Float[Tensor, "*batch D"], *, action: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "..."]:
        """Values: higher is better."""
        ...


@runtime_checkable
class Reward(Protocol):
    """A learned reward of taking an action at a latent."""

    def __call__(
        self, latent: Float[Tensor, "*batch D"], action: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "*batch"]:
        """Rewards: higher is better."""
        ...


@runtime_checkable
class StepCost(Protocol):
    """What one step costs."""

    def __call__(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """Costs; lower is better."""
        ...


@dataclass(frozen=True)
class RemainingCost:
    """A value as a `Distance`: what the value function expects to pay until the goal.

    A value of actions is no distance between latents: that is `RemainingActionCost`.
    """

    value: Value

    def __call__(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Minus the value."""
        return -self.value(source, goal)


@dataclass(frozen=True)
class RemainingActionCost:
    """An action value as a `StepDistance`: what it expects to pay from where the action is taken."""

    value: ActionValue

    def of_step(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """Minus the value of the step's action."""
        return -self.value(step.before, step.goal, step.action)


@dataclass(frozen=True)
class MinusReward:
    """A learned reward as a `StepCost`."""

    reward: Reward

    def __call__(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """Minus the reward of the step's action where it was taken."""
        return -self.reward(step.before, step.action)


@dataclass(frozen=True)
class WithoutGoal:
    """A state value V(z) where V(z, g) is expected; the goal is ignored."""

    value: StateValue

    def __call__(self, latent: Float[Tensor, "*batch D"], goal: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The value of `latent`."""
        return self.value(latent)


@dataclass(frozen=True)
class ActionWithoutGoal:
    """An action value Q(z, a) where Q(z, a, g) is expected; the goal is ignored."""

    value: StateActionValue

    def __call__(
        self, latent: Float[Tensor, "*batch D"], goal: Float[Tensor, "..."], action: Float[Tensor, "*batch A"]
    ) -> Float[Tensor, "..."]:
        """The value of `action` at `latent`."""
        return self.value(latent, action=action)


@dataclass(frozen=True, kw_only=True)
class NotYetThere:
    """One per step that begins further from the goal than `threshold`: steps until the goal is reached.

    A path that leaves the goal pays again, as the value of a reward of -1 wherever the goal is not reached
    says. A sharp threshold has no gradient; `softness` makes it a sigmoid for gradient planners.
    """

    distance: Distance
    threshold: float  # in units of `distance`
    softness: float = 0.0  # width of the sigmoid in units of `distance`; 0 is a sharp threshold

    def __post_init__(self) -> None:
        """Refuse thresholds that nothing can undercut."""
        if self.threshold < 0 or self.softness < 0:
            raise InputError(
                "threshold and softness are distances, 0 or more; got "
                f"threshold={self.threshold}, softness={self.softness}"
            )

    def __call__(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """1 where the step begins away from the goal, 0 where it begins at the goal."""
        beyond = self.distance(step.before, step.goal) - self.threshold
        return torch.sigmoid(beyond / self.softness) if self.softness > 0 else (beyond > 0).to(beyond.dtype)


@dataclass(frozen=True, kw_only=True)
class NStepCost(Additive):
    """What imagined steps cost, discounted, and what remains after the last: minus an n-step return.

    An action value knows what the last step costs: it takes the place of that step's running cost.
    """

    running: StepCost  # NotYetThere(...) or MinusReward(reward)
    remaining: Distance | StepDistance  # RemainingCost(V), a quasimetric, or RemainingActionCost(Q)
    discount: float = 1.0  # per model step; the one that the value was trained with
    label: ClassVar[str] = "n-step cost"

    def __post_init__(self) -> None:
        """Refuse a discount that would grow."""
        refuse_growing_discount(self.discount)

    def prepare(self, goal: Float[Tensor, "B *goal"]) -> int:
        """What remains may have to find something out about goals; predictor calls that it took."""
        return self.remaining.prepare(goal) if isinstance(self.remaining, Prepared) else 0

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The running cost; the first step is not discounted."""
        return discounted(self.running(step), self.discount, step.index - 1)

    def to_go(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The bootstrap; by an action value without the running cost of this step, which `step_cost` has."""
        if isinstance(self.remaining, StepDistance):
            rest = self.remaining.of_step(step) - self.running(step)
            return discounted(rest, self.discount, step.index - 1)
        return discounted(self.remaining(step.latent, step.goal), self.discount, step.index)
