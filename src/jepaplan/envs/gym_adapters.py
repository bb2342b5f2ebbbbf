"""The wall worlds as gymnasium environments: `jepaplan/WallSmall-v0` and `jepaplan/WallBig-v0`.

Importing this module registers them, singly (`gymnasium.make`) and as one vectorised environment that steps
and draws all its worlds in one call (`gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`).

    observation   uint8 (2, 64, 64): the dot, the walls
    action        displacement (dx, dy) in pixels, cut per axis to the longest recorded step
    reward        -1 for each step that does not end at the goal, 0 for the one that does
    terminated    the goal is reached, as `WallWorld.reached` defines it
    truncated     the step limit of the configuration (200 for WallSmall, 64 for WallBig)
    info          goal_observation, state and goal_state (x, y, wall_x, door_y), is_success
    options       of `reset`: layout (wall_x, door_y), start (x, y), goal (x, y), each optional, in pixels
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Float32, UInt8

from jepaplan.envs.episode_picture import picture
from jepaplan.envs.tasks import Task, begin
from jepaplan.envs.wall import WALL_BIG, WALL_SMALL, WallConfig, WallWorld
from jepaplan.types import InputError

CONFIGS = {"WallSmall": WALL_SMALL, "WallBig": WALL_BIG}
Pixels = UInt8[np.ndarray, "2 size size"]
PixelsOfMany = UInt8[np.ndarray, "B 2 size size"]


def _spaces(config: WallConfig) -> tuple[spaces.Box, spaces.Box]:
    size, longest = config.size, config.step_max
    return (
        spaces.Box(0, 255, (2, size, size), np.uint8),
        spaces.Box(-longest, longest, (2,), np.float32),
    )


class WallEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One wall world."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, gymnasium's own form

    def __init__(self, config: WallConfig = WALL_SMALL, render_mode: str | None = None) -> None:
        self._many = WallVectorEnv(num_envs=1, config=config, render_mode=render_mode)
        self.observation_space, self.action_space = _spaces(config)
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
        return (
            self._many.pixels()[0],
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _only(self._many.info()),
        )

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The walls, the start, the goal and the path so far."""
        pictures = self._many.render()
        return None if pictures is None else pictures[0]


class WallVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many wall worlds in one. A world that is done begins a new random task at the next step."""

    metadata: dict[str, Any] = {  # noqa: RUF012, gymnasium's own form
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, num_envs: int = 1, config: WallConfig = WALL_SMALL, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is None or 'rgb_array'; got {render_mode!r}")
        self.world, self.num_envs, self.render_mode = WallWorld(config), num_envs, render_mode
        self.single_observation_space, self.single_action_space = _spaces(config)
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

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:
        """One picture per world: the walls, the start, the goal and the path so far."""
        if self.render_mode is None:
            gymnasium.logger.warn("to render, make the environment with render_mode='rgb_array'")
            return None
        task = self._running()
        walls = self.world.observe(task.states).frames[:, 1].numpy()
        last = self._steps.tolist()
        paths = torch.stack(self._path).numpy()
        return tuple(
            picture(walls[number], paths[-1 - last[number] :, number], task.goals[number, :2].tolist())
            for number in range(self.num_envs)
        )

    def begin_all(self, seed: int, options: dict[str, Any] | None) -> None:
        """Start every world anew."""
        self._generator.manual_seed(seed)
        self._task = begin(self.world, self.num_envs, options or {}, self._generator)
        self._steps = torch.zeros(self.num_envs, dtype=torch.long)
        self._done = torch.zeros(self.num_envs, dtype=torch.bool)
        self._path = [self.world.positions(self._task.states)]

    def move(
        self, actions: Float32[np.ndarray, "B 2"]
    ) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """One step of all worlds: rewards, terminated, truncated."""
        task, config = self._running(), self.world.config
        if actions.shape != (self.num_envs, 2) or not np.isfinite(actions).all():
            raise InputError(
                f"actions must be finite displacements (dx, dy) of shape ({self.num_envs}, 2); got shape "
                f"{actions.shape}: {actions.tolist()}"
            )
        cut = torch.from_numpy(actions).clamp(-config.step_max, config.step_max)
        moved = self.world.step(task.states, cut, self._generator)
        again = self._done
        task = task.at(moved)
        if bool(again.any()):
            task = task.where(~again, begin(self.world, self.num_envs, {}, self._generator))
        self._task = task
        self._steps = torch.where(again, 0, self._steps + 1)
        terminated = self.world.reached(task.states, task.goals) & ~again
        truncated = (self._steps >= config.episode_steps) & ~terminated
        self._done = terminated | truncated
        if self.render_mode is not None:
            self._path = [*self._path[-config.episode_steps :], self.world.positions(task.states)]
        return (-(~terminated & ~again).double()).numpy(), terminated.numpy(), truncated.numpy()

    def pixels(self) -> PixelsOfMany:
        """What is seen of every world."""
        task = self._running()
        return self.world.observe(task.states).frames.numpy()

    def info(self) -> dict[str, Any]:
        """Goals and true states; every entry is there for every world."""
        task = self._running()
        entries = {
            "goal_observation": self.world.observe(task.goals).frames.numpy(),
            "state": task.states.numpy().copy(),
            "goal_state": task.goals.numpy().copy(),
            "is_success": self.world.reached(task.states, task.goals).numpy(),
        }
        present = np.ones(self.num_envs, bool)
        return entries | {f"_{name}": present for name in entries}

    def _running(self) -> Task:
        if self._task is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step or picture")
        return self._task


def _only(info: dict[str, Any]) -> dict[str, Any]:
    """The entries of the only world."""
    first = {name: value[0] for name, value in info.items() if not name.startswith("_")}
    return first | {"is_success": bool(first["is_success"])}


for _name, _config in CONFIGS.items():
    gymnasium.register(
        id=f"jepaplan/{_name}-v0",
        entry_point="jepaplan.envs.gym_adapters:WallEnv",
        vector_entry_point="jepaplan.envs.gym_adapters:WallVectorEnv",
        kwargs={"config": _config},
    )
