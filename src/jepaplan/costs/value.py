"""From values to costs: the only minus sign between "more is better" and "less is better".

    symbol           here
    V(z, g)          value          expected return, minus the steps to go: at most 0 and 0 at the goal
    d(z, g) = -V     RemainingCost  what is still to be paid

A quasimetric head is already a distance and goes into `GoalDistance` as it is; a value head goes in through
`RemainingCost`: `GoalDistance(distance=RemainingCost(value), over="terminal")`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Value(Protocol):
    """Return to go from a latent towards a goal: higher is better."""

    def __call__(
        self, latent: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Values of broadcastable batches of latents."""
        ...


@dataclass(frozen=True)
class RemainingCost:
    """A value as a `Distance`: what the value function expects to pay until the goal."""

    value: Value

    def __call__(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Minus the value."""
        return -self.value(source, goal)
