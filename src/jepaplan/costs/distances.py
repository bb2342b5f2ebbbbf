"""Distances that need no learning, and distances made of others.

    literature                   here
    PLDM's planning cost         mean_square       mean over components of the squared difference
    L1 of V-JEPA 2-AC            mean_absolute     mean over components; in tokens through `TokenMean`
    cosine                       cosine            1 - cos: 0 in the same direction, 2 in the opposite one
    D max(m, 1 - lambda R)       ReachabilityGate  RC-aux: what is surely in reach counts less
    none                         MovingDistance    of what actions change: a picture's map is no way to go

A `Distance` reads the last axis of a latent. Latents made of tokens (`N D`) or of an ensemble's members
(`M D`) go through `TokenMean`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import Distance
from jepaplan.types import InputError


def mean_square(
    source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
) -> Float[Tensor, "*batch"]:
    """Mean over components of the squared difference: the distance that PLDM plans with."""
    # a norm reads the difference once; square() and mean() would write it a second time
    return torch.linalg.vector_norm(source - goal, dim=-1).square() / source.shape[-1]


def mean_absolute(
    source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
) -> Float[Tensor, "*batch"]:
    """Mean over components of the absolute difference: the distance that V-JEPA 2-AC plans with."""
    return (source - goal).abs().mean(dim=-1)


def cosine(source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]) -> Float[Tensor, "*batch"]:
    """One minus the cosine of the angle between two latents."""
    return 1 - torch.cosine_similarity(source, goal, dim=-1)


@dataclass(frozen=True)
class TokenMean:
    """Any distance between latents, taken token by token (or member by member) and averaged."""

    distance: Distance

    def __call__(
        self, source: Float[Tensor, "*#batch N D"], goal: Float[Tensor, "*#batch N D"]
    ) -> Float[Tensor, "*batch"]:
        """Mean over the last axis but one."""
        return self.distance(source, goal).mean(dim=-1)


@dataclass(frozen=True, kw_only=True)
class MovingDistance:
    """Any distance between the numbers of two latents from `moves_from` on: those that actions change."""

    distance: Distance
    moves_from: int

    def __call__(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        return self.distance(source[..., self.moves_from :], goal[..., self.moves_from :])


@dataclass(frozen=True, kw_only=True)
class ReachabilityGate:
    """A distance that shrinks where the goal is probably within reach of the steps that are left.

    `reachability(latent, goal)` is a probability. RC-aux gates the terminal distance; its `strength` is tuned
    per task between 0.35 and 0.85, and 0 where the head does not help.
    """

    distance: Distance
    reachability: Distance  # the same shapes: latent and goal to one number, here in [0, 1]
    strength: float = 0.5
    least: float = 0.1  # share of the distance that always counts, so that a gate never erases the goal

    def __post_init__(self) -> None:
        """Refuse gates that would turn the distance around."""
        if not (0 <= self.strength <= 1 and 0 <= self.least <= 1):
            raise InputError(
                f"strength and least are shares between 0 and 1; got strength={self.strength}, "
                f"least={self.least}"
            )

    def __call__(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Gated distances of broadcastable batches of latents."""
        open_share = (1 - self.strength * self.reachability(source, goal)).clamp(min=self.least)
        return self.distance(source, goal) * open_share
