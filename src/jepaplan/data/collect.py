"""Record episodes: the wall sets of the papers, or any gymnasium environment that shows pictures.

The wall sets are those of Destrade et al. (arXiv:2601.00844): 1000 trajectories of 64 states, a new random
layout for each, half of them through the door. Walks are drawn, walked, and kept or rejected by whether they
truly changed room.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.data.episodes import EpisodeWriter
from jepaplan.data.wall_walks import changes_room, crossing_walks, free_walks, simulate
from jepaplan.envs.check import WorldInterface, check_world
from jepaplan.envs.wall import WallConfig, WallLayouts, WallWorld
from jepaplan.types import InputError, SeedTree

Progress = Callable[[int, int], None]  # called with the episodes done and the episodes in all
BLOCK_FRAMES = 1024  # drawn at once: few enough to stay in the processor's cache
ATTEMPTS = 200  # rounds of drawing walks before giving up on a kind of walk


@dataclass(frozen=True)
class Walks:
    """Walks through the two rooms, before they are drawn."""

    positions: Float[Tensor, "B frames 2"]
    actions: Float[Tensor, "B steps 2"]
    layouts: WallLayouts

    def select(self, index: Tensor) -> "Walks":
        """The walks numbered, or marked true, in `index`."""
        return Walks(self.positions[index], self.actions[index], self.layouts.select(index))


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
    """Record `trajectories` walks of `states` frames (so `states - 1` actions) into one file."""
    if trajectories < 1 or states < 3 or not 0 <= crossing_fraction <= 1:
        raise InputError(
            f"need trajectories >= 1, states >= 3 and crossing_fraction in [0, 1]; "
            f"got {trajectories}, {states}, {crossing_fraction}"
        )
    world = WallWorld(config)
    crossing = round(crossing_fraction * trajectories)
    manifest: dict[str, Any] = {"world": asdict(config), "collector": "collect_wall", "seed": seed}
    manifest |= {"trajectories": trajectories, "states": states, "crossing": crossing}
    manifest |= {"state_names": ["x", "y", "wall_x", "door_y"], "action_names": ["dx", "dy"]}
    walks = wall_walks(
        world, trajectories, crossing, states - 1, SeedTree(seed).torch("collect_wall", config.name)
    )
    with EpisodeWriter(Path(path), manifest) as writer:
        block = max(1, BLOCK_FRAMES // states)
        for numbers in torch.arange(trajectories).split(block):
            part = walks.select(numbers)
            layouts = part.layouts.select(torch.arange(len(numbers)).repeat_interleave(states))
            flat = part.positions.flatten(0, 1)
            frames = world.render(flat, layouts).unflatten(0, (len(numbers), states))
            truth = world.state(flat, layouts).unflatten(0, (len(numbers), states))
            writer.append(frames, part.actions, states=truth)
            if progress is not None:
                progress(int(numbers[-1]) + 1, trajectories)


def wall_walks(world: WallWorld, count: int, crossing: int, steps: int, generator: torch.Generator) -> Walks:
    """`count` walks in random order, exactly `crossing` of which change room."""
    kinds = [
        _keep(world, crossing, steps, True, generator),
        _keep(world, count - crossing, steps, False, generator),
    ]
    both = Walks(
        torch.cat([walks.positions for walks in kinds]),
        torch.cat([walks.actions for walks in kinds]),
        WallLayouts(
            torch.cat([walks.layouts.wall_x for walks in kinds]),
            torch.cat([walks.layouts.door_y for walks in kinds]),
        ),
    )
    return both.select(torch.randperm(count, generator=generator))


def _keep(world: WallWorld, count: int, steps: int, crossing: bool, generator: torch.Generator) -> Walks:
    """`count` walks that change room, or that do not. Layouts are drawn first and keep their law."""
    draw = crossing_walks if crossing else free_walks
    layouts = world.sample_layouts(count, generator)
    walks = Walks(torch.zeros(count, steps + 1, 2), torch.zeros(count, steps, 2), layouts)
    missing = torch.arange(count)
    for _ in range(ATTEMPTS):
        if not len(missing):
            return walks
        here = layouts.select(missing)
        start, actions = draw(world, here, steps, generator)
        positions = simulate(world, start, actions, here, generator)
        good = world.is_free(start, here) & (changes_room(positions, here, world.config) == crossing)
        walks.positions[missing[good]], walks.actions[missing[good]] = positions[good], actions[good]
        missing = missing[~good]
    if not len(missing):
        return walks
    raise InputError(
        f"{len(missing)} of {count} walks of {steps} steps still do not {'change' if crossing else 'keep'} "
        f"room after "
        f"{ATTEMPTS} draws; use more states, longer steps or another crossing_fraction"
    )


def collect_gym(
    path: Path | str,
    environment: str | gymnasium.Env[Any, Any],
    *,
    episodes: int,
    seed: int = 0,
    steps: int = 1000,
    policy: Callable[[Any], Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Record episodes of any gymnasium environment with pictures and continuous actions.

    An episode ends when the environment says so or after `steps` actions. `policy` maps an observation to an
    action; without one, actions are drawn from the action space (seeded).
    """
    if episodes < 1 or steps < 1:
        raise InputError(f"need episodes >= 1 and steps >= 1; got {episodes} and {steps}")
    env = _make(environment) if isinstance(environment, str) else environment
    try:
        interface = check_world(env)
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        manifest = {
            "world": name,
            "collector": "collect_gym",
            "seed": seed,
            "episodes": episodes,
            "steps": steps,
        }
        manifest["policy"] = (
            "uniform" if policy is None else getattr(policy, "__name__", type(policy).__name__)
        )
        seeds = SeedTree(seed)
        env.action_space.seed(seeds["actions"] % 2**31)
        with EpisodeWriter(Path(path), manifest) as writer:
            for number in range(episodes):
                first, _ = env.reset(seed=seeds["episode", number] % 2**31)
                frames, actions, felt = _episode(env, interface, first, policy, steps)
                writer.append(frames, actions, proprioception=felt)
                if progress is not None:
                    progress(number + 1, episodes)
    finally:
        if isinstance(environment, str):
            env.close()


def _make(name: str) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(name)
    except gymnasium.error.Error as reason:
        raise InputError(
            f"gymnasium cannot make {name!r}: {reason}. Import the package that registers it first"
        ) from reason


def _episode(
    env: gymnasium.Env[Any, Any],
    interface: WorldInterface,
    observation: Any,
    policy: Callable[[Any], Any] | None,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Frames, actions and proprioception of one episode that begins at `observation`."""
    seen, actions = [observation], []
    for _ in range(steps):
        action = env.action_space.sample() if policy is None else policy(seen[-1])
        actions.append(torch.from_numpy(np.array(action, np.float32).reshape(-1)))
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append(observation)
        if terminated or truncated:
            break
    frames = torch.stack([interface.image(one) for one in seen])
    felt = [vector for one in seen if (vector := interface.proprioception(one)) is not None]
    return frames, torch.stack(actions), torch.stack(felt) if felt else None
