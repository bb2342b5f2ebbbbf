"""Steps to go between states that the world model imagines: shortest paths, then a distance fitted to them.

No recorded path joins most pairs of states, so elapsed times never push them apart (docs/lab_notes.md). The
world model can join them. In the scene of one recording:

    imagine_states    states that are spread over the scene (`objectives.imagined_states`)
    step_costs        from each, go straight in every direction; an end beside another state is a way to it
    with_recorded_ways    and so is every recorded step, where that is asked for
    shortest_paths    the cheapest chains of such ways are the steps to go between all pairs

This is value iteration on a sampled, deterministic decision process, run to its fixed point; searching over
remembered states is Eysenbach et al., "Search on the Replay Buffer", arXiv:1906.05253, here over imagined
ones, and before any planning. Whether an end is "beside" a state is read by the inverse dynamics: the action
that would join them.

Where steps cannot be undone there are traps: ends from which no step is believed in any direction, such as
a pit. No line leads into one, so they are kept apart: nothing is reached from them, and nothing is said of
the way to them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.interfaces import WorldModel
from jepaplan.objectives.imagined_states import (
    ImaginationConfig,
    InverseModel,
    believed_step,
    unit_directions,
)
from jepaplan.objectives.vcreg import Gather, alone

UNREACHED = 1e4  # steps; what no chain of ways joins


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


def with_recorded_ways(costs: Float[Tensor, "N N"], steps: Float[Tensor, " T"]) -> Float[Tensor, "N N"]:
    """The same costs where the first states are a recording: what was walked is a way, of so many steps.

    So a door that opened is one that opens, even where the inverse dynamics cannot read such a step.
    """
    known = costs.clone()
    before = torch.arange(min(len(steps), len(costs) - 1), device=costs.device)
    known[before, before + 1] = torch.minimum(known[before, before + 1], steps[: len(before)].to(costs))
    return known


def shortest_paths(costs: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """Cheapest chains between all pairs (Floyd and Warshall); a copy."""
    paths = costs.clone()
    for middle in range(len(paths)):
        torch.minimum(paths, paths[:, middle : middle + 1] + paths[middle], out=paths)
    paths.clamp_(max=UNREACHED)
    return paths


def forget_ways_to_traps(steps: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """The same steps, but unknown (nan) towards states that lead nowhere: no line ends in one."""
    alone = torch.eye(len(steps), dtype=torch.bool, device=steps.device)
    leads_nowhere = ((steps >= UNREACHED) | alone).all(dim=1)
    return steps.masked_fill(leads_nowhere[None, :] & ~alone, torch.nan)


@dataclass(frozen=True, kw_only=True)
class ImaginedScenes:
    """States of several scenes, steps to go within each: `UNREACHED` if no way is known, or nan (unknown)."""

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


class MeanObjective(nn.Module):
    """Several objectives on the same batch, such as one for each member of an ensemble."""

    def __init__(self, objectives: Iterable[nn.Module]) -> None:
        super().__init__()
        self.objectives = nn.ModuleList(objectives)

    def forward(self, batch: ImaginedGroups) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss and its parts."""
        losses, parts = zip(*(objective(batch) for objective in self.objectives), strict=True)
        return torch.stack(losses).mean(), {
            name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]
        }


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

    With `unreached` > 0 the others count as well, by what they lack to that many steps. Unknown ones (nan)
    never count.
    """
    joined = steps < UNREACHED
    counted = (~steps.isnan() if unreached > 0 else joined).to(distances.dtype)
    asked = steps.nan_to_num()  # a masked nan would still be nan in the gradient
    error = (distances - asked).square() / (asked + 1)
    if unreached > 0:
        # a hinge: nobody knows how much further than this the goal is
        missing = (unreached - distances).clamp(min=0).square() / (unreached + 1)
        error = torch.where(joined, error, missing)
    # Processes know different numbers of pairs: dividing by the mean number makes their mean that of all.
    counts = gather(counted.sum().reshape(1))
    return (counted * error).sum() * len(counts) / counts.sum().clamp(min=1)
