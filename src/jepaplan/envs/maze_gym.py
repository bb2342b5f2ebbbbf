"""The point mazes as gymnasium environments: `jepaplan/Maze-v0` and `jepaplan/MazeHard-v0`.

Importing this module registers them.

    observation   pixels uint8 (3, 64, 64), and velocity (vx, vy) in metres per second
    action        wanted velocity, metres per second, cut to a norm of 5
    reward        -1 for each step that does not end at the goal, 0 for the one that does
    terminated    the goal is reached, as `MazeWorld.reached` defines it
    truncated     the step limit of the configuration (200)
    info          goal_pixels, state and goal_state (x, y, vx, vy, layout), is_success
    options       of `reset`, each optional: layout ('..##/#.../..../..##', or its number), start (x, y) and
                  goal (x, y) in metres from the middle of the maze; both ends are then at rest
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from jepaplan.envs.maze_drawing import SIZE, VIEW
from jepaplan.envs.maze_layouts import ALL_OPEN, format_layout, joined, parse_layout
from jepaplan.envs.maze_physics import HIGHEST_SPEED, require_mujoco
from jepaplan.envs.point_maze import CONFIGS, MAZE, MazeConfig, MazeWorld
from jepaplan.envs.world_gym import refuse_unknown_options
from jepaplan.types import InputError

OPTIONS = ("layout", "start", "goal")
SCALE = 4  # screen pixels per pixel of the picture for people
PATH, GOAL = (235, 235, 235), (200, 60, 60)
Seen = dict[str, Any]


class MazeEnv(gymnasium.Env[Seen, np.ndarray]):
    """One maze."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012, gymnasium's own form

    def __init__(self, config: MazeConfig = MAZE, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is None or 'rgb_array'; got {render_mode!r}")
        require_mujoco()
        self.world, self.render_mode = MazeWorld(config), render_mode
        fastest = np.float32(config.highest_speed)
        self.action_space = spaces.Box(-fastest, fastest, (2,), np.float32)
        felt = spaces.Box(-HIGHEST_SPEED, HIGHEST_SPEED, (2,), np.float32)
        pixels = spaces.Box(0, 255, self.world.image, np.uint8)
        self.observation_space = spaces.Dict({"pixels": pixels, "velocity": felt})
        self._path: list[Float[Tensor, "1 5"]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """A new task: random, or as far as `options` says."""
        super().reset(seed=seed)
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
        start, self._goal = begin(self.world, options or {}, generator)
        self._path = [start]
        return self._seen(), self._info()

    def step(self, action: np.ndarray) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """Aim at a velocity for 0.04 seconds."""
        if not self._path:
            raise gymnasium.error.ResetNeeded("call reset() before the first step")
        wanted = torch.from_numpy(np.array(action, np.float32))
        if wanted.shape != (2,) or not bool(wanted.isfinite().all()):
            raise InputError(f"an action is a finite velocity (vx, vy); got {np.asarray(action).tolist()}")
        self._path.append(self.world.step(self._path[-1], wanted[None]))
        reached = bool(self.world.reached(self._path[-1], self._goal))
        late = len(self._path) > self.world.episode_steps and not reached
        return self._seen(), 0.0 if reached else -1.0, reached, late, self._info()

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The maze, enlarged, with the path so far and a ring around the goal."""
        if self.render_mode is None or not self._path:
            return None
        frame = self._seen()["pixels"].transpose(1, 2, 0)
        image = Image.fromarray(frame.repeat(SCALE, 0).repeat(SCALE, 1))
        path = (self.world.positions(torch.cat(self._path)) + 0.5) * SCALE
        goal = (self.world.positions(self._goal)[0] + 0.5) * SCALE
        radius = self.world.config.goal_radius / VIEW * SIZE * SCALE
        draw = ImageDraw.Draw(image)
        draw.line([(float(x), float(y)) for x, y in path], fill=PATH, width=1)
        draw.ellipse([*(goal - radius).tolist(), *(goal + radius).tolist()], outline=GOAL, width=2)
        return np.asarray(image)

    def _seen(self) -> Seen:
        return _observed(self.world, self._path[-1])

    def _info(self) -> dict[str, Any]:
        return {
            "goal_pixels": _observed(self.world, self._goal)["pixels"],
            "state": self._path[-1][0].numpy().copy(),
            "goal_state": self._goal[0].numpy().copy(),
            "is_success": bool(self.world.reached(self._path[-1], self._goal)),
        }


def begin(
    world: MazeWorld, options: Mapping[str, Any], generator: torch.Generator
) -> tuple[Float[Tensor, "1 5"], Float[Tensor, "1 5"]]:
    """One task as far as `options` says; what it leaves open is drawn."""
    refuse_unknown_options(options, OPTIONS)
    start, goal = world.sample_tasks(1, generator)
    if options.get("layout") is not None:
        start[:, 4] = goal[:, 4] = _layout(options["layout"])
    ends = {"start": start, "goal": goal}
    for name, end in ends.items():
        place = options.get(name)
        # A given maze has other cells than the drawn one: ends left open are drawn anew in it.
        row = world.sample_states(end, generator) if options.get("layout") is not None else end
        ends[name] = _placed(world, name, place, row) if place is not None else row
    return ends["start"], ends["goal"]


def _layout(given: Any) -> int:
    """A layout in words or as a number, whose open cells must hang together."""
    layout = parse_layout(given) if isinstance(given, str) else int(given)
    if not 0 < layout <= ALL_OPEN or not joined(layout):
        raise InputError(
            f"layout is rows such as '..##/#.../..../..##', or their number from 1 to {ALL_OPEN}, with open "
            f"cells joined through their sides; got {given!r}"
        )
    return layout


def _placed(world: MazeWorld, name: str, place: Any, row: Float[Tensor, "1 5"]) -> Float[Tensor, "1 5"]:
    """`row` moved to a given place, which must be free."""
    try:
        there = torch.as_tensor(place, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        there = torch.empty(0)
    if there.shape != (2,):
        raise InputError(f"option {name!r} is two numbers (x, y) in metres from the middle; got {place!r}")
    moved = torch.cat([there[None], row[:, 2:]], dim=-1)
    if not bool(world.is_possible(moved)):
        raise InputError(
            f"{name} {tuple(there.tolist())} is in a wall of {format_layout(int(row[0, 4]))}, or its ball of "
            "radius 0.1 is; x points right, y up, the middle of the maze is (0, 0)"
        )
    return moved


def _observed(world: MazeWorld, state: Float[Tensor, "1 5"]) -> Seen:
    """What is seen and felt in one state."""
    return {
        "pixels": world.observe(state).frames[0].numpy(),
        "velocity": state[0, 2:4].numpy().copy(),
    }


for _name, _config in CONFIGS.items():
    gymnasium.register(
        id=f"jepaplan/{_name}-v0",
        entry_point="jepaplan.envs.maze_gym:MazeEnv",
        kwargs={"config": _config},
    )
