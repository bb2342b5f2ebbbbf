"""Record episodes: walks in one of our worlds, or any gymnasium environment that shows pictures.

Walks come from a walker (`data.walks`) as true states; here they are drawn, block by block, and written.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from jepaplan.data.episodes import Earned, EpisodeWriter
from jepaplan.data.walks import Walker, find_walker, takes
from jepaplan.envs.check import WorldInterface, check_world
from jepaplan.envs.worlds import find_world
from jepaplan.interfaces import World
from jepaplan.types import InputError, SeedTree

Progress = Callable[[int, int], None]  # called with the episodes done and the episodes in all
BLOCK_FRAMES = 1024  # drawn at once: few enough to stay in the processor's cache


def collect_world(
    path: Path | str,
    world: World,
    walker: Walker,
    *,
    trajectories: int = 1000,
    states: int = 64,
    seed: int = 0,
    manifest: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Record `trajectories` walks of `states` frames (so `states - 1` actions) into one file.

    `manifest` adds to what the file says about itself, or replaces some of it.
    """
    if trajectories < 1 or states < 3:
        raise InputError(f"need trajectories >= 1 and states >= 3; got {trajectories} and {states}")
    facts: dict[str, Any] = {"world": world.name, "collector": "collect_world", "seed": seed}
    facts |= {"trajectories": trajectories, "states": states, **(manifest or {})}
    # One stream for all worlds. Its name is that of the first of them: another would change its recordings.
    walks = walker(world, trajectories, states - 1, SeedTree(seed).torch("collect_wall", world.name))
    with EpisodeWriter(Path(path), facts) as writer:
        for numbers in torch.arange(trajectories).split(max(1, BLOCK_FRAMES // states)):
            part = walks.select(numbers)
            seen = world.observe(part.states.flatten(0, 1))
            shape = (len(numbers), states)
            felt = None if seen.proprioception is None else seen.proprioception.unflatten(0, shape)
            frames = seen.frames.unflatten(0, shape)
            writer.append(frames, part.actions, states=part.states, proprioception=felt)
            if progress is not None:
                progress(int(numbers[-1]) + 1, trajectories)


@runtime_checkable
class Recording(Protocol):
    """What a recipe asks of the recording of its world."""

    @property
    def trajectories(self) -> int:
        """How many walks."""
        ...

    @property
    def states(self) -> int:
        """Frames of each, one more than its actions."""
        ...

    @property
    def crossing_fraction(self) -> float:
        """Share of the walks that change room, where the world has rooms."""
        ...


def record_world(
    path: Path | str, name: str, recording: Recording, seed: int, progress: Progress | None = None
) -> None:
    """Record the world of that name as its own walker walks."""
    walker: Any = find_walker(name)  # with options of its own
    facts: dict[str, Any] = {}
    if takes(walker, "crossing_fraction"):
        walker = partial(walker, crossing_fraction=recording.crossing_fraction)
        facts["crossing_fraction"] = recording.crossing_fraction
    collect_world(
        path,
        find_world(name),
        walker,
        trajectories=recording.trajectories,
        states=recording.states,
        seed=seed,
        manifest=facts,
        progress=progress,
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
    action; without one, actions are drawn from the action space (seeded). Beside them are kept rewards, which
    action was the last by the environment's rules, and success where its info has `is_success` or `success`.
    Frames and whole episodes of which info says nothing are no success, if it says so of any other; if it
    never does, the recording has no such column.
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
        told = False
        with EpisodeWriter(Path(path), manifest) as writer:
            for number in range(episodes):
                first = env.reset(seed=seeds["episode", number] % 2**31)
                frames, actions, felt, earned, tells = _episode(env, interface, first, policy, steps)
                writer.append(frames, actions, proprioception=felt, earned=earned)
                told = told or tells
                if progress is not None:
                    progress(number + 1, episodes)
            if not told:
                writer.leave_out("success")
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
    first: tuple[Any, Mapping[str, Any]],
    policy: Callable[[Any], Any] | None,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor | None, Earned, bool]:
    """Frames, actions, proprioception, what was earned, and whether anything was said of success.

    The episode begins as `reset` said.
    """
    seen, success, actions = [first[0]], [_succeeded(first[1])], []
    rewards: list[float] = []
    ends: list[bool] = []
    for _ in range(steps):
        action = env.action_space.sample() if policy is None else policy(seen[-1])
        actions.append(torch.from_numpy(np.array(action, np.float32).reshape(-1)))
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        success.append(_succeeded(info))
        rewards.append(float(reward))
        ends.append(bool(terminated))
        if terminated or truncated:
            break
    frames = torch.stack([interface.image(one) for one in seen])
    felt = [vector for one in seen if (vector := interface.proprioception(one)) is not None]
    earned = Earned(
        rewards=torch.tensor(rewards),
        terminal=torch.tensor(ends),
        # what nobody calls a success, as many environments do of the first frame, is none
        success=torch.tensor([bool(one) for one in success]),
    )
    tells = any(one is not None for one in success)
    return frames, torch.stack(actions), torch.stack(felt) if felt else None, earned, tells


def _succeeded(info: Mapping[str, Any]) -> bool | None:
    """What an environment says of its success; None: nothing."""
    told = info.get("is_success", info.get("success"))
    return None if told is None else bool(np.all(told))
