"""What the same planner reaches with perfect knowledge, and what no plan reaches: brackets for any method.

A world model that knows the true dynamics thinks in true states (x, y, wall_x, door_y). Three distances
between such states say what a cost can be worth:

    random actions                    the floor
    true dynamics, pixel distance     comparing images, with nothing to learn and nothing imagined wrong
    true dynamics, straight line      knows where the goal is, not that there is a wall
    true dynamics, geodesic           the ceiling: what remains are the search's own failures

Distances between images are what early visual planners used (Ebert et al., "Visual Foresight",
arXiv:1812.00568).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from jepaplan.control.random_actions import RandomController
from jepaplan.envs.wall import WallWorld
from jepaplan.interfaces import ActionUnits, Controller, Distance, WorldModel
from jepaplan.types import InputError

STATE_WIDTH = 4  # x, y, wall_x, door_y
ENCODE_AT_ONCE = 4096  # frames; bounds the memory of an encoder's activations

EncodeFrames = Callable[[UInt8[Tensor, "B channels height width"]], Float[Tensor, "B D"]]


class TrueDynamics:
    """A world model whose latent is the true state and whose step is the world's own.

    Give its controller true states as observations and goals. Imagination is exact as long as the world is
    deterministic; a noisy bounce is imagined as staying in place.
    """

    action_dim = 2
    stride = 1

    def __init__(self, world: WallWorld, action_units: ActionUnits) -> None:
        self._world = world
        self._units = action_units

    @property
    def action_units(self) -> ActionUnits:
        """The same units as the learned model's, so that the planner's noise and bounds mean the same."""
        return self._units

    def encode(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B 4"]:
        """The state itself."""
        if observation.ndim != 2 or observation.shape[1] != STATE_WIDTH:
            raise InputError(
                f"true dynamics observe states `B {STATE_WIDTH}` (x, y, wall_x, door_y); got "
                f"{tuple(observation.shape)}. Evaluate with `observe=true_states(world)`."
            )
        return observation.float()

    @torch.no_grad()
    def step(self, latent: Float[Tensor, "B 4"], action: Float[Tensor, "B 2"]) -> Float[Tensor, "B 4"]:
        """The world's step; a blocked move stays in place."""
        positions, layouts = self._world.split_state(latent)
        target = positions + self._units.inverse(action)
        stays = self._world.touches(positions, target, layouts)[:, None]
        return self._world.state(torch.where(stays, positions, target), layouts)

    def rollout(
        self, latent: Float[Tensor, "B 4"], actions: Float[Tensor, "B S H 2"]
    ) -> Float[Tensor, "B S H+1 4"]:
        """Apply `step` H times."""
        problems, samples, horizon, _ = actions.shape
        current = latent[:, None].expand(-1, samples, -1).flatten(0, 1)
        path = [current]
        for number in range(horizon):
            current = self.step(current, actions[:, :, number].flatten(0, 1))
            path.append(current)
        return torch.stack(path, dim=1).view(problems, samples, horizon + 1, STATE_WIDTH)


class PositionDistance:
    """Straight-line pixels between two states: blind to walls."""

    def __call__(
        self, source: Float[Tensor, "*#batch 4"], goal: Float[Tensor, "*#batch 4"]
    ) -> Float[Tensor, "*batch"]:
        """Euclidean distance of the positions."""
        return (source[..., :2] - goal[..., :2]).norm(dim=-1)


@dataclass(frozen=True)
class PixelDistance:
    """Euclidean distance of the two states' images, intensities in [0, 1], without drawing them.

    Images of the same layout differ in the dot alone, and the sum over pixels of a product of two Gaussian
    dots of standard deviation s is, but for rounding to 255 levels, its integral: pi s^2 exp(-d^2 / 4 s^2)
    at distance d. So the distance is s sqrt(2 pi (1 - exp(-d^2 / 4 s^2))): flat beyond a few dot widths,
    which is what makes pixels a poor guide. A test compares it with rendered images.
    """

    dot_std: float = 1.3  # pixels

    def __call__(
        self, source: Float[Tensor, "*#batch 4"], goal: Float[Tensor, "*#batch 4"]
    ) -> Float[Tensor, "*batch"]:
        """Closed form of the distance of two rendered dots."""
        squared = (source[..., :2] - goal[..., :2]).square().sum(-1)
        different = -torch.expm1(-squared / (4 * self.dot_std**2))
        return self.dot_std * (2 * math.pi * different).sqrt()


class GeodesicDistance:
    """Pixels of the shortest legal path between two states of the same layout."""

    def __init__(self, world: WallWorld) -> None:
        self._world = world

    def __call__(
        self, source: Float[Tensor, "*#batch 4"], goal: Float[Tensor, "*#batch 4"]
    ) -> Float[Tensor, "*batch"]:
        """The world's geodesic; on one side of the wall it is the straight line, which is quicker."""
        source, goal = torch.broadcast_tensors(source, goal)
        flat_source, flat_goal = source.reshape(-1, STATE_WIDTH), goal.reshape(-1, STATE_WIDTH)
        lengths = (flat_source[:, :2] - flat_goal[:, :2]).norm(dim=-1)
        apart = ~self._same_side(flat_source, flat_goal)
        start, layouts = self._world.split_state(flat_source[apart])
        lengths[apart] = self._world.geodesic(start, flat_goal[apart, :2], layouts)
        return lengths.view(source.shape[:-1])

    def _same_side(self, source: Float[Tensor, "B 4"], goal: Float[Tensor, "B 4"]) -> Bool[Tensor, " B"]:
        offsets = torch.stack([source[:, 0], goal[:, 0]]) - source[:, 2]
        half = self._world.config.wall_half_width
        return (offsets <= -half).all(0) | (offsets >= half).all(0)


class RenderedDistance:
    """A learned distance between true states, each drawn and encoded: only encoder and value are learned.

    With `TrueDynamics` it is the learned cost under perfect imagination.
    """

    def __init__(self, world: WallWorld, encode: EncodeFrames, distance: Distance) -> None:
        self._world = world
        self._encode = encode
        self._distance = distance

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "*#batch 4"], goal: Float[Tensor, "*#batch2 4"]
    ) -> Float[Tensor, "*out"]:
        """Draw, encode, compare."""
        return self._distance(self.latents(source), self.latents(goal))

    def latents(self, states: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch D"]:
        """Latents of the images of `states`."""
        encoded = [
            self._encode(self._world.render(*self._world.split_state(chunk)))
            for chunk in states.reshape(-1, STATE_WIDTH).split(ENCODE_AT_ONCE)
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
    world: WallWorld, action_units: ActionUnits, make_controller: ControllerMaker
) -> tuple[Reference, ...]:
    """The four references under one planner; evaluate them with `observe=true_states(world)`."""
    model = TrueDynamics(world, action_units)
    random = RandomController(sampler=GaussianActions(action_units=action_units))
    return (
        Reference(
            name="random actions",
            controller=random,
            meaning="no plan at all: the floor",
        ),
        Reference(
            name="true dynamics, pixel distance",
            controller=make_controller(model, PixelDistance(world.config.dot_std)),
            meaning="perfect imagination, images compared pixel by pixel",
        ),
        Reference(
            name="true dynamics, straight line",
            controller=make_controller(model, PositionDistance()),
            meaning="perfect imagination, knows where the goal is but not that there is a wall",
        ),
        Reference(
            name="true dynamics, geodesic",
            controller=make_controller(model, GeodesicDistance(world)),
            meaning="perfect imagination and perfect value: what the search itself leaves undone",
        ),
    )
