"""Several opinions on the same future, and what it costs where they differ.

    symbol                          here
    std_m V_m(z_k, g)               ValueDisagreement     discounted sum over steps, in units of the value
    Var_m(z_k)                      LatentDisagreement    PLDM (arXiv:2502.14819): gamma = 0.95
    -mean_m V_m, -(mean - c std)    RemainingCost(v)      where v has read the ensemble: a `Value`

An ensemble of values puts its members on the last axis (`jepaplan.models.value_heads.ValueEnsemble`). An
ensemble of world models is a `WorldModel` whose latents are `M D`, one row per member, each member continuing
its own row; distances between such latents go through `jepaplan.costs.distances.TokenMean`. Variances are
those of the M members, not estimates for more.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.compose import Additive
from jepaplan.costs.steps import ImaginedStep, discounted, refuse_growing_discount
from jepaplan.types import InputError


@runtime_checkable
class ValueMembers(Protocol):
    """Values as several heads see them."""

    def __call__(
        self, latent: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch M"]:
        """One value per member, on the last axis."""
        ...


@dataclass(frozen=True, kw_only=True)
class ValueDisagreement(Additive):
    """How far the members of a value ensemble are apart along the path: their standard deviation."""

    members: ValueMembers
    discount: float = 1.0  # per model step
    label: ClassVar[str] = "value disagreement"

    def __post_init__(self) -> None:
        """Refuse a discount that would grow."""
        refuse_growing_discount(self.discount)

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The members' standard deviation after this step."""
        # torch's std has gradient 0 where all members agree; a root of the variance would have none
        deviation = self.members(step.latent, step.goal).std(dim=-1, correction=0)
        return discounted(deviation, self.discount, step.index)


@dataclass(frozen=True, kw_only=True)
class LatentDisagreement(Additive):
    """How far the members of an ensemble world model have imagined apart: mean variance of components."""

    discount: float = 0.95  # per model step
    label: ClassVar[str] = "disagreement"

    def __post_init__(self) -> None:
        """Refuse a discount that would grow."""
        refuse_growing_discount(self.discount)

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The members' variance after this step."""
        if step.latent.ndim != 4:
            raise InputError(
                "LatentDisagreement compares members of an ensemble world model, whose latents are `M D`; "
                f"this one's have {step.latent.ndim - 2} axes. For an ensemble of values write "
                "ValueDisagreement(members=...)"
            )
        variance = step.latent.var(dim=-2, correction=0).mean(dim=-1)
        return discounted(variance, self.discount, step.index)
