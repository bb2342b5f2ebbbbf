"""What the same planner reaches with perfect knowledge, and what no plan reaches: brackets for any method.

A world model that knows the true dynamics thinks in true states. Three distances between such states say what
a cost can be worth:

    random actions                    the floor
    true dynamics, pixel distance     comparing images, with nothing to learn and nothing imagined wrong
    true dynamics, straight line      knows where the goal is, not what lies between
    true dynamics, geodesic           the ceiling: what remains are the search's own failures

Distances between images are what early visual planners used (Ebert et al., "Visual Foresight",
arXiv:1812.00568).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from jepaplan.control.random_actions import RandomController
from jepaplan.envs.wall import WallWorld
from jepaplan.interfaces import ActionUnits, Controller, Distance, World, WorldModel
from jepaplan.types import InputError, Observation

ENCODE_AT_ONCE = 4096  # frames; bounds the memory of an encoder's activations
HOPELESS = 1e4  # what planners pay where no way leads; more than any way of our worlds
COMPARE_AT_ONCE = 1024  # pairs of pictures; likewise


@runtime_checkable
class Encode(Protocol):
    """`WorldModel.encode`: latents of what was seen and felt."""

    def __call__(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B *latent"]:
        """Latents of a batch."""
        ...


def encode_states(world: World, encode: Encode, states: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
    """Latents of what is seen and felt in true states."""
    seen: Observation = world.observe(states)
    return encode(seen.frames, seen.proprioception)


class TrueDynamics:
    """A world model whose latent is the true state and whose step is the world's own.

    Give its controller true states as observations and goals. Imagination is exact as long as the world is
    deterministic; noise, such as a bounce, is left out.
    """

    stride = 1

    def __init__(self, world: World, action_units: ActionUnits) -> None:
        self._world = world
        self._units = action_units
        self.action_dim = world.action_dim

    @property
    def action_units(self) -> ActionUnits:
        """The same units as the learned model's, so that the planner's noise and bounds mean the same."""
        return self._units

    def encode(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """The state itself."""
        width = self._world.state_width
        if observation.ndim != 2 or observation.shape[1] != width:
            raise InputError(
                f"true dynamics observe states `B {width}` of {self._world.name}; got "
                f"{tuple(observation.shape)}. Evaluate with `observe=true_states`."
            )
        return observation.float()

    @torch.no_grad()
    def step(self, latent: Float[Tensor, "B W"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B W"]:
        """The world's step, without its noise."""
        return self._world.step(latent, self._units.inverse(action))

    def rollout(
        self, latent: Float[Tensor, "B W"], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H+1 W"]:
        """Apply `step` H times."""
        problems, samples, horizon, _ = actions.shape
        current = latent[:, None].expand(-1, samples, -1).flatten(0, 1)
        path = [current]
        for number in range(horizon):
            current = self.step(current, actions[:, :, number].flatten(0, 1))
            path.append(current)
        return torch.stack(path, dim=1).unflatten(0, (problems, samples))


class PositionDistance:
    """Straight-line pixels between two states: blind to walls."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Euclidean distance of the positions."""
        return (self._world.positions(source) - self._world.positions(goal)).norm(dim=-1)


class DotDistance:
    """Euclidean distance of the images of two states of the two rooms, without drawing them.

    Images of the same layout differ in the dot alone, and the sum over pixels of a product of two Gaussian
    dots of standard deviation s is, but for rounding to 255 levels, its integral: pi s^2 exp(-d^2 / 4 s^2)
    at distance d. So the distance is s sqrt(2 pi (1 - exp(-d^2 / 4 s^2))): flat beyond a few dot widths,
    which is what makes pixels a poor guide. A test compares it with rendered images.
    """

    def __init__(self, dot_std: float = 1.3) -> None:
        self.dot_std = dot_std  # pixels

    def __call__(
        self, source: Float[Tensor, "*#batch 4"], goal: Float[Tensor, "*#batch 4"]
    ) -> Float[Tensor, "*batch"]:
        """Closed form of the distance of two rendered dots."""
        squared = (source[..., :2] - goal[..., :2]).square().sum(-1)
        different = -torch.expm1(-squared / (4 * self.dot_std**2))
        return self.dot_std * (2 * math.pi * different).sqrt()


class PictureDistance:
    """Euclidean distance of two states' images, intensities in [0, 1]: both are drawn and compared."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Draw each source and each goal, and compare."""
        shape = torch.broadcast_shapes(source.shape, goal.shape)[:-1]
        goals = goal.reshape(-1, goal.shape[-1])
        # Many sources share a goal, which is drawn once.
        which = torch.arange(len(goals)).view(goal.shape[:-1]).expand(shape).flatten()
        wanted = self._drawn(goals)
        flat = source.expand(*shape, -1).reshape(-1, source.shape[-1])
        found = [
            (self._drawn(some) - wanted[to]).square().sum(-1).sqrt()
            for some, to in zip(flat.split(COMPARE_AT_ONCE), which.split(COMPARE_AT_ONCE), strict=True)
        ]
        return torch.cat(found).view(shape).to(source)

    def _drawn(self, states: Float[Tensor, "B W"]) -> Float[Tensor, "B pixels"]:
        return self._world.observe(states).frames.flatten(1).float() / 255


def pixel_distance(world: World) -> Distance:
    """How far two states' images are: drawn and compared, or where it is known, by its closed form."""
    return DotDistance(world.config.dot_std) if isinstance(world, WallWorld) else PictureDistance(world)


class GeodesicDistance:
    """The world's exact cost to go between two states of the same layout.

    Where no way leads it is `unreachable`: infinite, or for a planner, which must choose among what is left,
    `HOPELESS`.
    """

    def __init__(self, world: World, unreachable: float = math.inf) -> None:
        self._world = world
        self._unreachable = unreachable

    def __call__(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """In the world's own unit: pixels or steps."""
        source, goal = torch.broadcast_tensors(source, goal)
        width = source.shape[-1]
        cost = self._world.cost_to_go(source.reshape(-1, width), goal.reshape(-1, width))
        return cost.masked_fill(cost.isinf(), self._unreachable).view(source.shape[:-1])


class RenderedDistance:
    """A learned distance between true states, each drawn and encoded: only encoder and value are learned.

    With `TrueDynamics` it is the learned cost under perfect imagination.
    """

    def __init__(self, world: World, encode: Encode, distance: Distance) -> None:
        self._world = world
        self._encode = encode
        self._distance = distance

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch2 W"]
    ) -> Float[Tensor, "*out"]:
        """Draw, encode, compare."""
        return self._distance(self.latents(source), self.latents(goal))

    def latents(self, states: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch D"]:
        """Latents of what is seen in `states`."""
        encoded = [
            encode_states(self._world, self._encode, chunk)
            for chunk in states.reshape(-1, states.shape[-1]).split(ENCODE_AT_ONCE)
        ]
        return torch.cat(encoded).unflatten(0, states.shape[:-1])


@dataclass(frozen=True, kw_only=True)
class GaussianActions:
    """Independent Gaussian actions of the recorded scale, kept within the planner's bound.

    For `control.random_actions.RandomController`.
    """

    action_units: ActionUnits
    action_dim: int = 2
    max_norm: float = 2.45  # normalised action units

    def __call__(self, count: int, generator: torch.Generator) -> Float[Tensor, "count A_env"]:
        """Actions in environment units."""
        shape = (count, self.action_dim)
        draw = torch.randn(shape, generator=generator, device=generator.device)
        length = draw.norm(dim=-1, keepdim=True)
        return self.action_units.inverse(draw * (self.max_norm / length.clamp(min=self.max_norm)))


ControllerMaker = Callable[[WorldModel, Distance], Controller]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A name for the tables, a controller that knows the world, and what it means."""

    name: str
    controller: Controller
    meaning: str


def references(
    world: World, action_units: ActionUnits, make_controller: ControllerMaker
) -> tuple[Reference, ...]:
    """The four references under one planner; evaluate them with `observe=true_states`."""
    model = TrueDynamics(world, action_units)
    random = RandomController(sampler=GaussianActions(action_units=action_units, action_dim=world.action_dim))
    return (
        Reference(
            name="random actions",
            controller=random,
            meaning="no plan at all: the floor",
        ),
        Reference(
            name="true dynamics, pixel distance",
            controller=make_controller(model, pixel_distance(world)),
            meaning="perfect imagination, images compared pixel by pixel",
        ),
        Reference(
            name="true dynamics, straight line",
            controller=make_controller(model, PositionDistance(world)),
            meaning="perfect imagination, knows where the goal is but not what lies between",
        ),
        Reference(
            name="true dynamics, geodesic",
            controller=make_controller(model, GeodesicDistance(world, HOPELESS)),
            meaning="perfect imagination and perfect value: what the search itself leaves undone",
        ),
    )
