"""Random walks in the two rooms: free ones that stay in a room, and ones built to pass the door.

PLDM (arXiv:2502.14819), appendix on data; lengths and headings of arXiv:2601.00844, and its sets: 1000
trajectories of 64 states, a new random layout for each, half of them through the door. Walks are drawn,
walked, and kept or rejected by whether they truly changed room.

    paper                  here
    turns and norms        data.step_laws     of single steps
    cross the door         changes_room       x left of the wall at one time and right of it at another
"""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.data.collect import Progress, collect_world
from jepaplan.data.step_laws import heading_turns, truncated_normal
from jepaplan.data.walks import Walks
from jepaplan.envs.wall import INSET, WallConfig, WallLayouts, WallWorld
from jepaplan.types import InputError

ATTEMPTS = 200  # rounds of drawing walks before giving up on a kind of walk


def collect_wall(
    path: Path | str,
    config: WallConfig,
    *,
    trajectories: int = 1000,
    states: int = 64,
    seed: int = 0,
    crossing_fraction: float = 0.5,
    progress: Progress | None = None,
) -> None:
    """Record two rooms of any geometry, which the file then describes; `collect_world` does the rest."""
    collect_world(
        path,
        WallWorld(config),
        partial(wall_walks, crossing_fraction=crossing_fraction),
        trajectories=trajectories,
        states=states,
        seed=seed,
        manifest={"world": asdict(config), "crossing": round(crossing_fraction * trajectories)},
        progress=progress,
    )


def wall_walks(
    world: WallWorld,
    count: int,
    steps: int,
    generator: torch.Generator,
    crossing_fraction: float = 0.5,
) -> Walks:
    """`count` walks in random order; exactly that fraction of them, rounded, change room."""
    if not 0 <= crossing_fraction <= 1:
        raise InputError(f"crossing_fraction is a share of the walks, in [0, 1]; got {crossing_fraction}")
    crossing = round(crossing_fraction * count)
    kinds = [
        _keep(world, crossing, steps, True, generator),
        _keep(world, count - crossing, steps, False, generator),
    ]
    both = Walks(torch.cat([walks.states for walks in kinds]), torch.cat([walks.actions for walks in kinds]))
    return both.select(torch.randperm(count, generator=generator))


def free_wall_walks(world: WallWorld, count: int, steps: int, generator: torch.Generator) -> Walks:
    """`count` walks from anywhere to anywhere."""
    layouts = world.sample_layouts(count, generator)
    start, actions = free_walks(world, layouts, steps, generator)
    return Walks(simulate(world, world.state(start, layouts), actions, generator), actions)


def _keep(world: WallWorld, count: int, steps: int, crossing: bool, generator: torch.Generator) -> Walks:
    """`count` walks that change room, or that do not. Layouts are drawn first and keep their law."""
    draw = crossing_walks if crossing else free_walks
    layouts = world.sample_layouts(count, generator)
    walks = Walks(torch.zeros(count, steps + 1, world.state_width), torch.zeros(count, steps, 2))
    missing = torch.arange(count)
    for _ in range(ATTEMPTS):
        if not len(missing):
            return walks
        here = layouts.select(missing)
        start, actions = draw(world, here, steps, generator)
        states = simulate(world, world.state(start, here), actions, generator)
        good = world.is_free(start, here) & (changes_room(states, world.config) == crossing)
        walks.states[missing[good]], walks.actions[missing[good]] = states[good], actions[good]
        missing = missing[~good]
    if not len(missing):
        return walks
    raise InputError(
        f"{len(missing)} of {count} walks of {steps} steps still do not {'change' if crossing else 'keep'} "
        f"room after {ATTEMPTS} draws; use more states, longer steps or another crossing_fraction"
    )


def walk_actions(
    first_heading: Float[Tensor, " B"], steps: int, config: WallConfig, generator: torch.Generator
) -> Float[Tensor, "B steps 2"]:
    """Displacements whose heading does a random walk from `first_heading` (radians)."""
    count = len(first_heading)
    turns = heading_turns((count, steps), config.heading_concentration, generator)
    turns[:, 0] = 0
    heading = first_heading[:, None] + turns.cumsum(1)
    law = (config.step_mean, config.step_std, config.step_min, config.step_max)
    length = truncated_normal((count, steps), law, generator)
    return torch.stack([length * heading.cos(), length * heading.sin()], dim=-1)


def free_walks(
    world: WallWorld, layouts: WallLayouts, steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B steps 2"]]:
    """Starts anywhere, first headings in any direction."""
    start = world.sample_positions(layouts, generator)
    heading = 2 * math.pi * torch.rand(len(start), generator=generator)
    return start, walk_actions(heading, steps, world.config, generator)


def crossing_walks(
    world: WallWorld, layouts: WallLayouts, steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B steps 2"]]:
    """Walks laid through a point of the door at a random step; walls may still stop some of them.

    One walk leaves the door point leftwards, another rightwards. The first, turned round in time, leads into
    the door.
    """
    config, count = world.config, len(layouts.wall_x)
    draw = torch.rand(count, 4, generator=generator)
    across = config.wall_half_width * (2 * draw[:, 0] - 1)
    reach = float(config.door_half_width)
    along = truncated_normal((count,), (0.0, 1.4 / 4 * reach, -reach, reach), generator)
    door = torch.stack([layouts.wall_x + across, layouts.door_y + along], dim=-1)
    heading = math.pi + (draw[:, 1] - 0.5) * math.pi / 2
    arrive = -walk_actions(heading, steps, config, generator)
    leave = walk_actions(heading + math.pi, steps, config, generator)
    passing = 1 + (draw[:, 2] * (steps - 1)).long()[:, None]  # 1 to steps - 1 actions lead into the door
    step = torch.arange(steps)[None]
    order = torch.where(step < passing, passing - 1 - step, step - passing)[..., None].expand(-1, -1, 2)
    into = (step < passing)[..., None]
    actions = torch.where(into, arrive.gather(1, order), leave.gather(1, order))
    start = door - torch.where(into, actions, 0).sum(1)
    # Half of the walks are mirrored in the door point, so that they pass it from right to left.
    mirror = (draw[:, 3] < 0.5)[:, None]
    actions[:, :, 0] = torch.where(mirror, -actions[:, :, 0], actions[:, :, 0])
    start_x = torch.where(mirror[:, 0], 2 * door[:, 0] - start[:, 0], start[:, 0])
    start = torch.stack([start_x, start[:, 1]], dim=-1)
    return start.clamp(config.low + INSET, config.high - INSET), actions


def simulate(
    world: WallWorld,
    start: Float[Tensor, "B 4"],
    actions: Float[Tensor, "B steps 2"],
    generator: torch.Generator,
) -> Float[Tensor, "B steps+1 4"]:
    """Where the dots go."""
    states = [start]
    for action in actions.unbind(1):
        states.append(world.step(states[-1], action, generator))
    return torch.stack(states, dim=1)


def changes_room(states: Float[Tensor, "B frames 4"], config: WallConfig) -> Bool[Tensor, " B"]:
    """True for a walk that is left of the wall at one time and right of it at another."""
    from_wall = states[:, :, 0] - states[:, :, 2]
    half = config.wall_half_width
    return (from_wall < -half).any(1) & (from_wall > half).any(1)
