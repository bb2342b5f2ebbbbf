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

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.envs.episode_picture import FLOOR, SCALE, picture
from jepaplan.envs.tile_rooms import WORLDS, TileWorld, tile_world
from jepaplan.envs.tile_rooms_layouts import TILE, TILES
from jepaplan.envs.world_gym import (
    Face,
    PictureForPeople,
    Pixels,
    Task,
    WorldEnv,
    WorldVectorEnv,
    refuse_unknown_options,
)
from jepaplan.types import InputError

OPTIONS = ("layout", "start", "goal")
ATTEMPTS = 50  # draws of what options leave open before a goal that cannot be reached is accepted
SPECIAL = (226, 190, 120)  # pits, one-way doors and keys in the picture for people


def tile_env(world: str = "OpenRoom", render_mode: str | None = None) -> WorldEnv:
    """One room."""
    return WorldEnv(_face(world), render_mode)


def tile_vector_env(
    num_envs: int = 1, world: str = "OpenRoom", render_mode: str | None = None
) -> WorldVectorEnv:
    """Many rooms in one."""
    return WorldVectorEnv(_face(world), num_envs, render_mode)


def _face(name: str) -> Face:
    world = tile_world(name)
    return Face(world=world, longest=world.config.step_max, begin=partial(_begin, world), picture=_picture)


def _begin(world: TileWorld, count: int, options: Mapping[str, Any], generator: torch.Generator) -> Task:
    """Tasks as far as `options` says; what it leaves open is drawn, so that the goal can be reached."""
    refuse_unknown_options(options, OPTIONS)
    start, goal = world.sample_tasks(count, generator)
    if options.get("layout") is not None:
        start, goal = world.tasks_in(_layout(world, options["layout"], count), generator)
    given = {name: options[name] for name in ("start", "goal") if options.get(name) is not None}
    number = world.split(start)[2]
    for _ in range(ATTEMPTS):
        start = _placed(world, "start", given["start"], start) if "start" in given else start
        goal = _placed(world, "goal", given["goal"], start) if "goal" in given else goal
        if len(given) != 1:
            break
        hopeless = world.cost_to_go(start, goal).isinf()
        if not bool(hopeless.any()):
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


def _picture(seen: Pixels, path: Float[np.ndarray, "frames 2"], goal: list[float]) -> PictureForPeople:
    """RGB: what is special fills the floor beneath path, start and goal."""
    image = picture(seen[1], path, goal)
    level = (seen[2] / 255).repeat(SCALE, 0).repeat(SCALE, 1)[:, :, None]
    filled = ((1 - level) * np.array(FLOOR) + level * np.array(SPECIAL)).astype(np.uint8)
    return np.where((image == np.array(FLOOR, np.uint8)).all(-1, keepdims=True), filled, image)


for _name in WORLDS:
    gymnasium.register(
        id=f"jepaplan/{_name}-v0",
        entry_point="jepaplan.envs.tile_gym:tile_env",
        vector_entry_point="jepaplan.envs.tile_gym:tile_vector_env",
        kwargs={"world": _name},
    )
