"""Where plans should not go: soft bounds, clearance from obstacles, probability of a collision.

    penalty per step k = 1..H            here
    outside(probe(z_k))^2                StateBounds           distance outside a box or ball
    outside(a_k)^2                       ActionBounds          for gradient planners; samplers have their own
    max(0, margin - clearance(z_k))^2    ObstacleClearance     signed clearance: negative inside an obstacle
    probability(z_k)                     CollisionProbability  the sum bounds the chance of any collision

`BallsClearance` is the clearance from balls in a probed state. All are differentiable and zero where nothing
is wrong (`CollisionProbability` as far as its probe says zero), so costs of good plans stay as they are. They
are proxies: what a probe does not see is not avoided.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.compose import Additive
from jepaplan.costs.probes import Probe
from jepaplan.costs.regions import Region
from jepaplan.costs.steps import ImaginedStep
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class StateBounds(Additive):
    """Squared distance by which imagined states leave a region."""

    region: Region
    probe: Probe | None = None  # None: the region is one of latents
    label: ClassVar[str] = "bounds"

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The squared distance outside after this step."""
        state = step.latent if self.probe is None else self.probe(step.latent)
        return self.region.outside(state).square()


@dataclass(frozen=True, kw_only=True)
class ActionBounds(Additive):
    """Squared distance by which actions leave a region of normalised actions."""

    region: Region
    label: ClassVar[str] = "action bounds"

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The squared distance outside of this step's action."""
        return self.region.outside(step.action).square()


@dataclass(frozen=True, kw_only=True)
class ObstacleClearance(Additive):
    """Squared shortfall of the clearance that a probe reads, one number per latent."""

    clearance: Probe  # latent to signed distance from the nearest obstacle
    margin: float = 0.0  # clearance that is enough, in the probe's unit
    label: ClassVar[str] = "obstacles"

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The squared shortfall after this step."""
        clearance = _one_number("clearance", self.clearance(step.latent), step)
        return (self.margin - clearance).relu().square()


@dataclass(frozen=True)
class BallsClearance:
    """A `Probe` of one number: how far the probed state is from the nearest of n balls, negative inside."""

    probe: Probe  # latent to W numbers
    centres: Float[Tensor, "n W"]
    radii: Float[Tensor, " n"]

    def __call__(self, latent: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Signed distance from the surface of the nearest ball."""
        apart = self.probe(latent)[..., None, :] - self.centres
        return (torch.linalg.vector_norm(apart, dim=-1) - self.radii).amin(dim=-1)


@dataclass(frozen=True, kw_only=True)
class CollisionProbability(Additive):
    """The probability of a collision that a probe reads, one number per latent."""

    probability: Probe
    label: ClassVar[str] = "collision"

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The probability after this step."""
        return _one_number("probability", self.probability(step.latent), step)


def _one_number(name: str, read: Tensor, step: ImaginedStep) -> Float[Tensor, "B S"]:
    grid = step.action.shape[:2]
    if read.shape == (*grid, 1):  # the usual output of a head of width one
        return read[..., 0]
    if read.shape != grid:
        raise InputError(
            f"{name} must read one number per latent, shape {tuple(grid)}; got {tuple(read.shape)}"
        )
    return read
