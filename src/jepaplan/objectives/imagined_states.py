"""States that the world model imagines in the scene of one recording, and which of its steps to believe.

    believed_step    one model step, and whether the inverse dynamics reads from it what was done
    imagine_states   walk at random from recorded latents; keep the states that are furthest from each other
    are_traps        states from which no step in any direction is believed, such as a pit

A predictor is wrong where moves are blocked: it hedges, and after some pushes it is through the wall. So an
imagined step is believed only if the inverse dynamics reads from it nearly the action that was taken, and
imagined actions are of the size that was recorded most, not the largest (docs/lab_notes.md: both were
needed).
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.interfaces import WorldModel
from jepaplan.types import InputError


@runtime_checkable
class InverseModel(Protocol):
    """The normalised action that leads from one latent to the next."""

    def __call__(
        self, latent: Float[Tensor, "*batch D"], next_latent: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch A"]:
        """Actions of a batch of pairs."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """How a scene is explored in imagination, and what counts as a way from state to state."""

    states: int = 384  # kept per scene
    walkers: int = 64  # random walks per scene
    walk_steps: int = 48  # model steps per walk
    heading_noise: float = 0.3  # standard deviation of the change of direction per step, radians
    step_norm: float = 1.5  # norm of imagined actions, in normalised units
    largest_norm: float = 2.45  # norm of the largest allowed action: what counts as one step to go
    directions: int = 16  # straight lines tried from every state
    reach: int = 6  # model steps along each line
    belief: float = (
        0.3  # a step is believed if the action read from it is off by at most this share of its norm
    )
    tolerance: float = (
        0.35  # an end is beside a state if the action joining them is below this share of a step
    )
    scene_width: int = 0  # leading numbers of the latent that are the same in the whole scene
    reversible: bool = True  # whether a step takes as long back as forth; not so with pits and one-way doors
    unreached: float = (
        0.0  # steps that pairs which no way joins are pushed apart; 0: nothing is learned of them
    )
    traps: bool = True  # where steps cannot be undone, look for states that nobody gets out of
    recorded_ways: bool = False  # every recorded frame is a state, every recorded step a way

    def __post_init__(self) -> None:
        counts = (self.states, self.walkers, self.walk_steps, self.directions, self.reach)
        shares = (self.step_norm, self.largest_norm, self.belief, self.tolerance)
        if min(counts) < 1 or min(shares) <= 0 or self.scene_width < 0 or self.unreached < 0:
            raise InputError(
                "imagination needs positive counts, norms, belief and tolerance, scene_width and unreached "
                f"at least 0; got {self}"
            )


def unit_directions(count: int, action_dim: int, generator: torch.Generator) -> Float[Tensor, "count A"]:
    """Unit directions: evenly spaced where actions have two components, else drawn uniformly."""
    if action_dim == 2:
        angles = torch.arange(count) * (2 * math.pi / count)
        return torch.stack([angles.cos(), angles.sin()], dim=-1)
    drawn = torch.randn(count, action_dim, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def believed_step(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    latent: Float[Tensor, "B D"],
    actions: Float[Tensor, "B A"],
    belief: float,
    readable: float = 1.0,
) -> tuple[Float[Tensor, "B D"], Bool[Tensor, " B"]]:
    """The next latents, and whether the inverse dynamics reads from them nearly what was done.

    `readable`: the share of an action that it reads from a free step.
    """
    following = world_model.step(latent, actions)
    disagreement = (inverse_dynamics(latent, following) / readable - actions).norm(dim=-1)
    return following, disagreement < belief * actions.norm(dim=-1)


@torch.no_grad()
def imagine_states(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    recorded: Float[Tensor, "F D"],
    config: ImaginationConfig,
    generator: torch.Generator,
) -> Float[Tensor, "states D"]:
    """States of the scene of `recorded`, spread out: traps, then recorded ones and what walks reach.

    Every first part of the answer is spread out as well. With `recorded_ways` the recorded ones come first,
    as many as there are states.
    """
    device = recorded.device
    first = torch.randint(len(recorded), (config.walkers,), generator=generator)
    latent, reached, refused = recorded[first.to(device)], [recorded], [recorded[:0]]
    heading = torch.randn(config.walkers, world_model.action_dim, generator=generator)
    for _ in range(config.walk_steps):
        heading = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        actions = (config.step_norm * heading).to(device)
        following, believed = believed_step(world_model, inverse_dynamics, latent, actions, config.belief)
        latent = following.where(believed[:, None], latent)
        reached.append(following[believed])
        refused.append(following[~believed])
        turn = torch.randn(heading.shape, generator=generator)
        # Whoever is stopped turns, and so does now and then somebody who is not.
        anew = (torch.rand(config.walkers, generator=generator) < 0.1) | ~believed.cpu()
        heading = turn.where(anew[:, None], heading + config.heading_noise * turn)
    states, ends = torch.cat(reached), torch.cat([recorded, *refused])
    kept = recorded[: config.states] if config.recorded_ways else recorded[:0]
    if config.recorded_ways:
        states = states[len(recorded) :]  # a state that comes twice would be far from itself
    if config.traps and not config.reversible:
        traps = ends[are_traps(world_model, inverse_dynamics, ends, config)]
        most = min(config.states // 8, config.states - len(kept))
        kept = torch.cat([kept, _spread(traps, most, config)])
    # these first: scenes are cut to the length of the smallest, and they may not be what is cut
    return torch.cat([kept, _spread(states, config.states - len(kept), config)])


def _spread(states: Float[Tensor, "N D"], count: int, config: ImaginationConfig) -> Float[Tensor, "K D"]:
    return states[farthest_points(states[:, config.scene_width :], min(count, len(states)))]


@torch.no_grad()
def are_traps(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    states: Float[Tensor, "N D"],
    config: ImaginationConfig,
) -> Bool[Tensor, " N"]:
    """Whether no step of `directions` from a state is believed: nobody gets out of there."""
    generator = torch.Generator().manual_seed(0)
    directions = unit_directions(config.directions, world_model.action_dim, generator).to(states.device)
    origin = states.repeat_interleave(len(directions), dim=0)
    actions = (config.step_norm * directions).repeat(len(states), 1)
    _, believed = believed_step(world_model, inverse_dynamics, origin, actions, config.belief)
    return ~believed.view(len(states), len(directions)).any(dim=1)


def farthest_points(points: Float[Tensor, "N D"], count: int) -> Int[Tensor, " count"]:
    """Indices of `count` points, each the one furthest from those before it; the first is point 0.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=points.device)
    squares = points.square().sum(-1)
    nearest = torch.full_like(squares, float("inf"))
    chosen: list[Tensor] = [torch.zeros((), dtype=torch.long, device=points.device)]
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * (points @ points[last]))
        chosen.append(nearest.argmax())
    return torch.stack(chosen)
