"""Legend of axes, the seed tree and the records that every room shares.

    axis     meaning
    B        problems planned at once, or items of a training batch
    S        sampled action sequences per problem
    H        horizon: model steps of a plan; H actions make H+1 latents
    T        recorded steps; T actions make T+1 observations
    A        action components per model step
    D        latent width
    N        tokens of a latent made of patches
    *latent  either `D` or `N D`

The order is always `B S H A` and `B S H+1 *latent`; action `t` leads from latent `t` to latent `t+1`.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class InputError(ValueError):
    """What was given cannot be used; the message says what came, what was expected and what to write."""


@dataclass(frozen=True)
class SeedTree:
    """One seed at the edge, split by name.

    `SeedTree(7)["collect"]` is an integer that depends on the seed and the name only, so adding a consumer of
    randomness never changes what the others draw.
    """

    seed: int

    def __getitem__(self, name: str | int | tuple[str | int, ...]) -> int:
        """A 63-bit seed for `name`."""
        digest = hashlib.sha256(repr((self.seed, name)).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def torch(self, *name: str | int, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device`, seeded for `name`."""
        return torch.Generator(device).manual_seed(self[name])

    def numpy(self, *name: str | int) -> np.random.Generator:
        """A numpy generator, seeded for `name`."""
        return np.random.default_rng(self[name])


@dataclass(frozen=True)
class Observation:
    """What is seen of B problems: pictures (or true states, for references) and, if there is one, the body.

    `Observation.of(pictures)` wraps a bare tensor, so whoever has no proprioception need not know of it.
    """

    frames: Shaped[Tensor, "B *observation"]
    proprioception: Float[Tensor, "B P"] | None = None

    @classmethod
    def of(cls, seen: "Observation | Tensor") -> "Observation":
        """An observation as it is, a bare tensor as pictures without proprioception."""
        return seen if isinstance(seen, Observation) else cls(seen)


@dataclass(frozen=True)
class Patch:
    """One rectangle of a world's scenery, for pictures; corners in pixels (x, y)."""

    kind: str  # "wall", "pit", "one-way door up", "key" ...: what a picture paints differently
    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """A distribution over action sequences in normalised units: what a search starts from and returns."""

    mean: Float[Tensor, "B H A"]
    std: Float[Tensor, "B H A"]


@dataclass(frozen=True)
class Rollout:
    """Imagined futures: `latents[:, :, 0]` was observed, the rest predicted."""

    actions: Float[Tensor, "B S H A"]
    latents: Float[Tensor, "B S H+1 *latent"]


@dataclass(frozen=True)
class Expansion:
    """One imagined step from each of N nodes: where it leads, what it cost, what is still expected.

    A path's cost is the sum of its `step_cost` plus the `to_go` of its last latent.
    """

    latents: Float[Tensor, "B N *latent"]
    step_cost: Float[Tensor, "B N"]
    to_go: Float[Tensor, "B N"]


@dataclass(frozen=True)
class Search:
    """What a planner did: the refined plan and the candidates of its last iteration.

    `plan.mean` is what the controller executes. `evaluations` counts predictor calls per problem (samples x
    horizon x iterations), whatever the batch.
    """

    plan: Plan
    candidates: Float[Tensor, "B S H A"]
    costs: Float[Tensor, "B S"]
    evaluations: int
