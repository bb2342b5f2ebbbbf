"""Worlds in which a dot moves as gymnasium environments: many in one environment, or one alone.

    observation   what the world shows, uint8 (channels, height, width)
    action        displacement (dx, dy) in pixels, cut per axis to the longest recorded step
    reward        -1 for each step that does not end at the goal, 0 for the one that does
    terminated    the goal is reached, as the world defines it
    truncated     the step limit of the world
    info          goal_observation, state and goal_state, is_success

What differs from world to world is its `Face`: how a task begins, given the options of `reset`, and how an
episode is drawn for people. `gym_adapters` and `tile_gym` register environments made of it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from jepaplan.interfaces import World
from jepaplan.types import InputError

Pixels = UInt8[np.ndarray, "C height width"]
PixelsOfMany = UInt8[np.ndarray, "B C height width"]
PictureForPeople = UInt8[np.ndarray, "screen_height screen_width 3"]
Task = tuple[Float[Tensor, "B W"], Float[Tensor, "B W"]]  # where the dots are, where they should go
Ends = tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"]]


@dataclass(frozen=True, kw_only=True)
class Face:
    """What a world needs beyond its methods to be a gymnasium environment."""

    world: World
    longest: float  # displacement per axis, pixels
    begin: Callable[[int, Mapping[str, Any], torch.Generator], Task]  # what options leave open is drawn
    picture: Callable[[Pixels, Float[np.ndarray, "frames 2"], list[float]], PictureForPeople]  # path, goal


class WorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One world."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, gymnasium's own form

    def __init__(self, face: Face, render_mode: str | None = None) -> None:
        self._many = WorldVectorEnv(face, 1, render_mode)
        self.observation_space = self._many.single_observation_space
        self.action_space = self._many.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Pixels, dict[str, Any]]:
        """A new task: random, or as far as `options` says."""
        super().reset(seed=seed)
        self._many.begin_all(int(self.np_random.integers(2**62)), options)
        return self._many.pixels()[0], _only(self._many.info())

    def step(self, action: np.ndarray) -> tuple[Pixels, float, bool, bool, dict[str, Any]]:
        """Move once."""
        reward, terminated, truncated = self._many.move(np.asarray(action, np.float32)[None])
        seen, info = self._many.pixels()[0], _only(self._many.info())
        return seen, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> PictureForPeople | None:
        """The scenery, the start, the goal and the path so far."""
        pictures = self._many.render()
        return None if pictures is None else pictures[0]


class WorldVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many worlds, stepped and drawn in one call. One that is done begins a new task at the next step."""

    metadata: dict[str, Any] = {  # noqa: RUF012, gymnasium's own form
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, face: Face, num_envs: int = 1, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is None or 'rgb_array'; got {render_mode!r}")
        self.face, self.world, self.num_envs, self.render_mode = face, face.world, num_envs, render_mode
        self.single_observation_space = spaces.Box(0, 255, self.world.image, np.uint8)
        self.single_action_space = spaces.Box(-face.longest, face.longest, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = torch.Generator()
        self._task: Task | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PixelsOfMany, dict[str, Any]]:
        """New tasks for all worlds; options hold one value for all or one per world."""
        if isinstance(seed, list):
            raise InputError("all worlds draw from one generator: give one seed, an integer")
        super().reset(seed=seed)
        self.begin_all(int(self.np_random.integers(2**62)), options)
        return self.pixels(), self.info()

    def step(
        self, actions: np.ndarray
    ) -> tuple[
        PixelsOfMany, Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"], dict[str, Any]
    ]:
        """Move every world once; those that were done begin anew instead."""
        reward, terminated, truncated = self.move(np.asarray(actions, np.float32))
        return self.pixels(), reward, terminated, truncated, self.info()

    def render(self) -> tuple[PictureForPeople, ...] | None:
        """One picture per world: the scenery, the start, the goal and the path so far."""
        if self.render_mode is None:
            gymnasium.logger.warn("to render, make the environment with render_mode='rgb_array'")
            return None
        seen, goals = self.pixels(), self.world.positions(self._running()[1]).tolist()
        last, paths = self._steps.tolist(), torch.stack(self._path).numpy()
        return tuple(
            self.face.picture(seen[number], paths[-1 - last[number] :, number], goals[number])
            for number in range(self.num_envs)
        )

    def begin_all(self, seed: int, options: dict[str, Any] | None) -> None:
        """Start every world anew."""
        self._generator.manual_seed(seed)
        self._task = self.face.begin(self.num_envs, options or {}, self._generator)
        self._steps = torch.zeros(self.num_envs, dtype=torch.long)
        self._done = torch.zeros(self.num_envs, dtype=torch.bool)
        self._path = [self.world.positions(self._task[0])]

    def move(self, actions: Float32[np.ndarray, "B 2"]) -> Ends:
        """One step of all worlds: rewards, terminated, truncated."""
        state, goal = self._running()
        if actions.shape != (self.num_envs, 2) or not np.isfinite(actions).all():
            raise InputError(
                f"actions must be finite displacements (dx, dy) of shape ({self.num_envs}, 2); got shape "
                f"{actions.shape}: {actions.tolist()}"
            )
        cut = torch.from_numpy(actions).clamp(-self.face.longest, self.face.longest)
        state = self.world.step(state, cut, self._generator)
        again = self._done
        if bool(again.any()):
            fresh = self.face.begin(self.num_envs, {}, self._generator)
            state = torch.where(again[:, None], fresh[0], state)
            goal = torch.where(again[:, None], fresh[1], goal)
        self._task = (state, goal)
        self._steps = torch.where(again, 0, self._steps + 1)
        terminated = self.world.reached(state, goal) & ~again
        truncated = (self._steps >= self.world.episode_steps) & ~terminated
        self._done = terminated | truncated
        if self.render_mode is not None:
            self._path = [*self._path[-self.world.episode_steps :], self.world.positions(state)]
        return (-(~terminated & ~again).double()).numpy(), terminated.numpy(), truncated.numpy()

    def pixels(self) -> PixelsOfMany:
        """What is seen of every world."""
        return self.world.observe(self._running()[0]).frames.numpy()

    def info(self) -> dict[str, Any]:
        """Goals and true states; every entry is there for every world."""
        state, goal = self._running()
        entries = {
            "goal_observation": self.world.observe(goal).frames.numpy(),
            "state": state.numpy().copy(),
            "goal_state": goal.numpy().copy(),
            "is_success": self.world.reached(state, goal).numpy(),
        }
        present = np.ones(self.num_envs, bool)
        return entries | {f"_{name}": present for name in entries}

    def _running(self) -> Task:
        if self._task is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step or picture")
        return self._task


def refuse_unknown_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse what `reset` does not know, with the nearest name that it does."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0) or [known[0]]
            raise InputError(
                f"reset has no option {name!r}; did you mean {near[0]!r}? There are {', '.join(known)}"
            )


def _only(info: dict[str, Any]) -> dict[str, Any]:
    """The entries of the only world."""
    first = {name: value[0] for name, value in info.items() if not name.startswith("_")}
    return first | {"is_success": bool(first["is_success"])}
