"""The tile rooms as gymnasium environments: `jepaplan/OpenRoom-v0`, `jepaplan/DeadEnd-v0` and the others.

Importing this module registers them, singly (`gymnasium.make`) and as one vectorised environment that steps
and draws all its worlds in one call (`gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`).

    observation   uint8 (3, 64, 64): the dot; walls; pits, one-way doors, key and locked doors
    action        displacement (dx, dy) in pixels, cut per axis to the longest recorded step
    reward        -1 for each step that does not end at the goal, 0 for the one that does
    terminated    the goal is reached, as `TileWorld.reached` defines it; in a pit an episode goes on
    truncated     the step limit of the world
    info          goal_observation, state and goal_state (`TileWorld.state_names`), is_success
    options       of `reset`: layout (a number), start (x, y), goal (x, y), each optional; key and doors are
                  as untouched as they can be where a dot is at such a place
"""

import difflib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from jepaplan.envs.episode_picture import FLOOR, SCALE, picture
from jepaplan.envs.tile_rooms import WORLDS, TileWorld, tile_world
from jepaplan.envs.tile_rooms_layouts import TILE, TILES
from jepaplan.types import InputError

OPTIONS = ("layout", "start", "goal")
ATTEMPTS = 50  # draws of what options leave open before a goal that cannot be reached is accepted
SPECIAL = (226, 190, 120)  # pits, one-way doors and keys in the picture for people
Pixels = UInt8[np.ndarray, "3 64 64"]
PixelsOfMany = UInt8[np.ndarray, "B 3 64 64"]
Task = tuple[Float[Tensor, "B W"], Float[Tensor, "B W"]]  # where the dots are, where they should go


class TileEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One room."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, gymnasium's own form

    def __init__(self, world: str = "OpenRoom", render_mode: str | None = None) -> None:
        self._many = TileVectorEnv(num_envs=1, world=world, render_mode=render_mode)
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

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The room, the start, the goal and the path so far."""
        pictures = self._many.render()
        return None if pictures is None else pictures[0]


class TileVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many rooms in one. A room that is done begins a new random task at the next step."""

    metadata: dict[str, Any] = {  # noqa: RUF012, gymnasium's own form
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, num_envs: int = 1, world: str = "OpenRoom", render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is None or 'rgb_array'; got {render_mode!r}")
        self.world, self.num_envs, self.render_mode = tile_world(world), num_envs, render_mode
        longest = self.world.config.step_max
        self.single_observation_space = spaces.Box(0, 255, self.world.image, np.uint8)
        self.single_action_space = spaces.Box(-longest, longest, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = torch.Generator()
        self._task: Task | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PixelsOfMany, dict[str, Any]]:
        """New tasks for all rooms; options hold one value for all or one per room."""
        if isinstance(seed, list):
            raise InputError("all rooms draw from one generator: give one seed, an integer")
        super().reset(seed=seed)
        self.begin_all(int(self.np_random.integers(2**62)), options)
        return self.pixels(), self.info()

    def step(
        self, actions: np.ndarray
    ) -> tuple[
        PixelsOfMany, Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"], dict[str, Any]
    ]:
        """Move in every room once; those that were done begin anew instead."""
        reward, terminated, truncated = self.move(np.asarray(actions, np.float32))
        return self.pixels(), reward, terminated, truncated, self.info()

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:
        """One picture per room: what is in it, the start, the goal and the path so far."""
        if self.render_mode is None:
            gymnasium.logger.warn("to render, make the environment with render_mode='rgb_array'")
            return None
        state, goal = self._running()
        seen = self.world.observe(state).frames.numpy()
        last, paths = self._steps.tolist(), torch.stack(self._path).numpy()
        return tuple(
            _picture(seen[room], paths[-1 - last[room] :, room, :2], goal[room, :2].tolist())
            for room in range(self.num_envs)
        )

    def begin_all(self, seed: int, options: dict[str, Any] | None) -> None:
        """Start every room anew."""
        self._generator.manual_seed(seed)
        self._task = _begin(self.world, self.num_envs, options or {}, self._generator)
        self._steps = torch.zeros(self.num_envs, dtype=torch.long)
        self._done = torch.zeros(self.num_envs, dtype=torch.bool)
        self._path = [self._task[0]]

    def move(
        self, actions: Float32[np.ndarray, "B 2"]
    ) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """One step in all rooms: rewards, terminated, truncated."""
        state, goal = self._running()
        if actions.shape != (self.num_envs, 2) or not np.isfinite(actions).all():
            raise InputError(
                f"actions must be finite displacements (dx, dy) of shape ({self.num_envs}, 2); got shape "
                f"{actions.shape}: {actions.tolist()}"
            )
        longest = self.world.config.step_max
        state = self.world.step(state, torch.from_numpy(actions).clamp(-longest, longest))
        again = self._done
        if bool(again.any()):
            fresh = self.world.sample_tasks(self.num_envs, self._generator)
            state = torch.where(again[:, None], fresh[0], state)
            goal = torch.where(again[:, None], fresh[1], goal)
        self._task = (state, goal)
        self._steps = torch.where(again, 0, self._steps + 1)
        terminated = self.world.reached(state, goal) & ~again
        truncated = (self._steps >= self.world.episode_steps) & ~terminated
        self._done = terminated | truncated
        if self.render_mode is not None:
            self._path = [*self._path[-self.world.episode_steps :], state]
        return (-(~terminated & ~again).double()).numpy(), terminated.numpy(), truncated.numpy()

    def pixels(self) -> PixelsOfMany:
        """What is seen of every room."""
        return self.world.observe(self._running()[0]).frames.numpy()

    def info(self) -> dict[str, Any]:
        """Goals and true states; every entry is there for every room."""
        state, goal = self._running()
        entries = {
            "goal_observation": self.world.observe(goal).frames.numpy(),
            "state": state.clone().numpy(),
            "goal_state": goal.clone().numpy(),
            "is_success": self.world.reached(state, goal).numpy(),
        }
        present = np.ones(self.num_envs, bool)
        return entries | {f"_{name}": present for name in entries}

    def _running(self) -> Task:
        if self._task is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step or picture")
        return self._task


def _begin(world: TileWorld, count: int, options: Mapping[str, Any], generator: torch.Generator) -> Task:
    """Tasks as far as `options` says; what it leaves open is drawn, so that the goal can be reached."""
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1, 0) or [OPTIONS[0]]
            raise InputError(
                f"reset has no option {name!r}; did you mean {near[0]!r}? There are {', '.join(OPTIONS)}"
            )
    start, goal = world.sample_tasks(count, generator)
    if options.get("layout") is not None:
        start, goal = world.tasks_in(_layout(world, options["layout"], count), generator)
    given = {name: options[name] for name in ("start", "goal") if options.get(name) is not None}
    number = world.split(start)[2]
    for _ in range(ATTEMPTS):
        start = _placed(world, "start", given["start"], start) if "start" in given else start
        goal = _placed(world, "goal", given["goal"], start) if "goal" in given else goal
        hopeless = world.cost_to_go(start, goal).isinf()
        if len(given) != 1 or not bool(hopeless.any()):
            break
        again = world.tasks_in(number, generator)
        start = torch.where(hopeless[:, None], again[0], start)
        goal = torch.where(hopeless[:, None], again[1], goal)
    return start, goal


def _layout(world: TileWorld, value: Any, count: int) -> Int[Tensor, " B"]:
    """One layout number per room, from one for all or one for each."""
    last = world.layouts("cpu").count - 1
    number = np.asarray(value)
    if (
        number.dtype.kind not in "iu"
        or number.shape not in ((), (count,))
        or not ((number >= 0) & (number <= last)).all()
    ):
        raise InputError(
            f"option 'layout' is a whole number from 0 to {last} for {world.name}, or one for each of the "
            f"{count} rooms; got {value!r}"
        )
    return torch.from_numpy(np.broadcast_to(number, (count,)).astype(np.int64))


def _placed(world: TileWorld, name: str, value: Any, like: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
    """States at the given places, in the layouts of `like` and the first mode in which a dot can be there."""
    try:
        place = torch.as_tensor(np.asarray(value, np.float32))
        wrong = place.shape not in ((2,), (len(like), 2))
    except (TypeError, ValueError):
        wrong, place = True, torch.empty(0)
    if wrong:
        raise InputError(
            f"option {name!r} is two numbers (x, y) in pixels, or one such pair for each of the {len(like)} "
            f"rooms; got {value!r}"
        )
    place, number, layouts = place.expand(len(like), 2), world.split(like)[2], world.layouts("cpu")
    tile = ((place + 0.5) / TILE).nan_to_num().long().clamp(0, TILES - 1)
    occurs = layouts.occurs[number, :, tile[:, 1] * TILES + tile[:, 0]]
    state = world.join(place, occurs.long().argmax(1), number)
    possible = world.is_possible(state)
    if not bool(possible.all()):
        bad = int((~possible).nonzero()[0])
        x, y = state[bad, :2].tolist()
        drawn = "\n".join(layouts.maps[int(number[bad])])
        raise InputError(
            f"{name} ({x:g}, {y:g}) is not free in layout {int(number[bad])} of {world.name}, which is, in "
            f"tiles of 8 pixels:\n{drawn}"
        )
    return state


def _picture(
    seen: Pixels, path: Float[np.ndarray, "frames 2"], goal: list[float]
) -> UInt8[np.ndarray, "height width 3"]:
    """RGB: what is special fills the floor beneath path, start and goal."""
    image = picture(seen[1], path, goal)
    level = (seen[2] / 255).repeat(SCALE, 0).repeat(SCALE, 1)[:, :, None]
    filled = ((1 - level) * np.array(FLOOR) + level * np.array(SPECIAL)).astype(np.uint8)
    return np.where((image == np.array(FLOOR, np.uint8)).all(-1, keepdims=True), filled, image)


def _only(info: dict[str, Any]) -> dict[str, Any]:
    """The entries of the only room."""
    first = {name: value[0] for name, value in info.items() if not name.startswith("_")}
    return first | {"is_success": bool(first["is_success"])}


for _name in WORLDS:
    gymnasium.register(
        id=f"jepaplan/{_name}-v0",
        entry_point="jepaplan.envs.tile_gym:TileEnv",
        vector_entry_point="jepaplan.envs.tile_gym:TileVectorEnv",
        kwargs={"world": _name},
    )
