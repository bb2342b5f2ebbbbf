"""Steps to go between states that the world model imagines: shortest paths, then a distance fitted to them.

No recorded path joins most pairs of states, so elapsed times never push them apart (docs/lab_notes.md). The
world model can join them. In the scene of one recording:

    imagine_states    walk at random from recorded latents; keep the states that are furthest from each other
    step_costs        from each, go straight in every direction; an end beside another state is a way to it
    shortest_paths    the cheapest chains of such ways are the steps to go between all pairs

This is value iteration on a sampled, deterministic decision process, run to its fixed point; searching over
remembered states is Eysenbach et al., "Search on the Replay Buffer", arXiv:1906.05253, here over imagined
ones, and before any planning. Whether an end is "beside" a state is read by the inverse dynamics: the action
that would join them.

A predictor is wrong where moves are blocked: it hedges, and after some pushes it is through the wall. So an
imagined step is believed only if the inverse dynamics reads from it nearly the action that was taken, and
imagined actions are of the size that was recorded most, not the largest (docs/lab_notes.md: both were
needed).
"""

import math
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepaplan.interfaces import WorldModel
from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError

UNREACHED = 1e4  # steps; what no chain of ways joins


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
) -> tuple[Float[Tensor, "B D"], Bool[Tensor, " B"]]:
    """The next latents, and whether the inverse dynamics reads from them nearly what was done."""
    following = world_model.step(latent, actions)
    disagreement = (inverse_dynamics(latent, following) - actions).norm(dim=-1)
    return following, disagreement < belief * actions.norm(dim=-1)


@torch.no_grad()
def imagine_states(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    recorded: Float[Tensor, "F D"],
    config: ImaginationConfig,
    generator: torch.Generator,
) -> Float[Tensor, "states D"]:
    """States of the scene of `recorded`, spread out: recorded ones and what random walks from them reach."""
    device = recorded.device
    first = torch.randint(len(recorded), (config.walkers,), generator=generator)
    latent, reached = recorded[first.to(device)], [recorded]
    heading = torch.randn(config.walkers, world_model.action_dim, generator=generator)
    for _ in range(config.walk_steps):
        heading = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        actions = (config.step_norm * heading).to(device)
        following, believed = believed_step(world_model, inverse_dynamics, latent, actions, config.belief)
        latent = following.where(believed[:, None], latent)
        reached.append(following[believed])
        turn = torch.randn(heading.shape, generator=generator)
        # Whoever is stopped turns, and so does now and then somebody who is not.
        anew = (torch.rand(config.walkers, generator=generator) < 0.1) | ~believed.cpu()
        heading = turn.where(anew[:, None], heading + config.heading_noise * turn)
    states = torch.cat(reached)
    return states[farthest_points(states[:, config.scene_width :], min(config.states, len(states)))]


def farthest_points(points: Float[Tensor, "N D"], count: int) -> Int[Tensor, " count"]:
    """Indices of `count` points, each the one furthest from those before it; the first is point 0.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    squares = points.square().sum(-1)
    nearest = torch.full_like(squares, float("inf"))
    chosen: list[Tensor] = [torch.zeros((), dtype=torch.long, device=points.device)]
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * (points @ points[last]))
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


@torch.no_grad()
def step_costs(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    states: Float[Tensor, "N D"],
    config: ImaginationConfig,
    generator: torch.Generator,
) -> Float[Tensor, "N N"]:
    """Largest steps from state to state along straight lines, plus what is missing at their end.

    Where no line leads, the cost is `UNREACHED`; from a state to itself it is 0.
    """
    count = len(states)
    costs = torch.full((count, count), UNREACHED, device=states.device)
    costs.fill_diagonal_(0)
    directions = unit_directions(config.directions, world_model.action_dim, generator).to(states.device)
    actions = (config.step_norm * directions).repeat(count, 1)
    ends = states.repeat_interleave(config.directions, dim=0)
    origin = torch.arange(count, device=states.device).repeat_interleave(config.directions)
    for number in range(1, config.reach + 1):
        ends, believed = believed_step(world_model, inverse_dynamics, ends, actions, config.belief)
        # A line ends at its first step that is not believed.
        ends, actions, origin = ends[believed], actions[believed], origin[believed]
        beside = torch.cdist(ends[:, config.scene_width :], states[:, config.scene_width :]).argmin(-1)
        missing = inverse_dynamics(ends, states[beside]).norm(dim=-1) / config.largest_norm
        steps = number * config.step_norm / config.largest_norm
        cost = torch.where(missing < config.tolerance, steps + missing, UNREACHED)
        costs.view(-1).scatter_reduce_(0, origin * count + beside, cost, "amin")
    return costs


def shortest_paths(costs: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """Cheapest chains between all pairs (Floyd and Warshall); a copy."""
    paths = costs.clone()
    for middle in range(len(paths)):
        torch.minimum(paths, paths[:, middle : middle + 1] + paths[middle], out=paths)
    return paths.clamp_(max=UNREACHED)


@dataclass(frozen=True, kw_only=True)
class ImaginedScenes:
    """States of several scenes, and steps to go within each; `UNREACHED` where no way is known."""

    states: Float[Tensor, "E N D"]
    steps: Float[Tensor, "E N N"]


@dataclass(frozen=True, kw_only=True)
class ImaginedGroups:
    """A batch for `ImaginedValueObjective`: some states of a scene, and one more model step from each."""

    states: Float[Tensor, "B G D"]
    steps: Float[Tensor, "B G G"]
    nearby: Float[Tensor, "B G D"]  # where one action takes each state
    nearby_steps: Float[Tensor, "B G"]  # share of a largest step that this action is


class GroupSampler:
    """Groups of imagined states: `sample` draws numbers, `load` gathers latents, imagines one step more."""

    def __init__(
        self, scenes: ImaginedScenes, world_model: WorldModel, config: ImaginationConfig, group: int = 64
    ) -> None:
        self.scenes, self.world_model, self.config, self.group = scenes, world_model, config, group

    def sample(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """For each of `count` groups: its scene, its states, and an action from each."""
        scenes, states = self.scenes.states.shape[:2]
        shape = (count, self.group)
        direction = torch.randn(*shape, self.world_model.action_dim, generator=generator)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        length = self.config.step_norm * torch.rand(*shape, 1, generator=generator)
        return {
            "scene": torch.randint(scenes, (count,), generator=generator),
            "states": torch.randint(states, shape, generator=generator),
            "actions": direction * length,
        }

    @torch.no_grad()
    def load(self, drawn: dict[str, Tensor]) -> ImaginedGroups:
        """The latents of a draw."""
        device = self.scenes.states.device
        scene, chosen, actions = (drawn[name].to(device) for name in ("scene", "states", "actions"))
        states = self.scenes.states[scene[:, None], chosen]
        nearby = self.world_model.step(states.flatten(0, 1), actions.flatten(0, 1))
        return ImaginedGroups(
            states=states,
            steps=self.scenes.steps[scene[:, None, None], chosen[:, :, None], chosen[:, None, :]],
            nearby=nearby.view_as(states),
            nearby_steps=actions.norm(dim=-1) / self.config.largest_norm,
        )


@runtime_checkable
class ProjectedDistance(Protocol):
    """A distance that projects its arguments first, so that a state in several pairs is projected once."""

    def project(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch W"]:
        """What the distance compares."""
        ...

    def between(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of projected latents."""
        ...


class ImaginedValueObjective(nn.Module):
    """Fit a distance to the steps to go between imagined states, far and near."""

    def __init__(
        self,
        distance: nn.Module,
        inverse_dynamics: InverseModel,
        config: ImaginationConfig,
        pairs_per_state: int = 4,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        self.distance = distance
        # In a list, so not registered: it is finished, and its weights belong to the world model's stage.
        self._inverse_dynamics = [inverse_dynamics]
        self.config, self.pairs_per_state, self.gather = config, pairs_per_state, gather

    def forward(self, batch: ImaginedGroups) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts."""
        distance = cast(ProjectedDistance, self.distance)
        states, nearby = distance.project(batch.states), distance.project(batch.nearby)
        # Groups are in random order, so neighbours in the group are random pairs.
        far = torch.stack(
            [
                relative_error(
                    distance.between(states, states.roll(-apart, dims=1)),
                    batch.steps.roll(-apart, dims=2).diagonal(dim1=1, dim2=2),
                    unreached=self.config.unreached,
                    gather=self.gather,
                )
                for apart in range(1, self.pairs_per_state + 1)
            ]
        ).mean()
        with torch.no_grad():
            joining = self._inverse_dynamics[0](batch.states, batch.nearby)
            # A wall shortens a step: what was really moved bounds what was asked.
            steps = torch.minimum(joining.norm(dim=-1) / self.config.largest_norm, batch.nearby_steps)
        near = (distance.between(states, nearby) - steps).square().mean()
        if self.config.reversible:
            near = near + (distance.between(nearby, states) - steps).square().mean()
        return far + near, {"far": far.detach(), "near": near.detach()}


def relative_error(
    distances: Float[Tensor, "*pairs"],
    steps: Float[Tensor, "*pairs"],
    *,
    unreached: float = 0.0,
    gather: Gather = alone,
) -> Float[Tensor, ""]:
    """Mean squared error over one plus the steps, of the pairs that a way joins.

    With `unreached` > 0 the others count as well, by what they lack to that many steps.
    """
    joined = steps < UNREACHED
    error = (distances - steps).square() / (steps + 1)
    if unreached > 0:
        # a hinge: nobody knows how much further than this the goal is
        missing = (unreached - distances).clamp(min=0).square() / (unreached + 1)
        return torch.where(joined, error, missing).mean()
    known = joined.to(distances.dtype)
    # Processes know different numbers of pairs: dividing by the mean number makes their mean that of all.
    counts = gather(known.sum().reshape(1))
    return (known * error).sum() * len(counts) / counts.sum().clamp(min=1)
