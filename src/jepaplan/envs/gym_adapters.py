"""The wall worlds as gymnasium environments, such as `jepaplan/WallBig-v0`: all names of `CONFIGS`.

Importing this module registers them, singly (`gymnasium.make`) and as one vectorised environment that steps
and draws all its worlds in one call (`gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`).

    observation   uint8 (2, 64, 64): the dot, the walls
    action        displacement (dx, dy) in pixels, cut per axis to the longest recorded step
    reward        -1 for each step that does not end at the goal, 0 for the one that does
    terminated    the goal is reached, as `WallWorld.reached` defines it
    truncated     the step limit of the configuration (200 for WallSmall, 64 for the others)
    info          goal_observation, state and goal_state (x, y, wall_x, door_y), is_success
    options       of `reset`: layout (wall_x, door_y), start (x, y), goal (x, y), each optional, in pixels
"""

from functools import partial

import gymnasium

from jepaplan.envs.episode_picture import picture
from jepaplan.envs.tasks import begin
from jepaplan.envs.wall import WALL_BIG, WALL_BIG_BOUNCE, WALL_BIG_SLIPS, WALL_SMALL, WallConfig, WallWorld
from jepaplan.envs.world_gym import Face, WorldEnv, WorldVectorEnv

CONFIGS = {config.name: config for config in (WALL_SMALL, WALL_BIG, WALL_BIG_BOUNCE, WALL_BIG_SLIPS)}


def wall_env(config: WallConfig = WALL_SMALL, render_mode: str | None = None) -> WorldEnv:
    """One wall world."""
    return WorldEnv(_face(config), render_mode)


def wall_vector_env(
    num_envs: int = 1, config: WallConfig = WALL_SMALL, render_mode: str | None = None
) -> WorldVectorEnv:
    """Many wall worlds in one."""
    return WorldVectorEnv(_face(config), num_envs, render_mode)


def _face(config: WallConfig) -> Face:
    world = WallWorld(config)
    return Face(
        world=world,
        longest=config.step_max,
        begin=partial(begin, world),
        picture=lambda seen, path, goal: picture(seen[1], path, goal),  # channel 1 shows the walls
    )


for _name, _config in CONFIGS.items():
    gymnasium.register(
        id=f"jepaplan/{_name}-v0",
        entry_point="jepaplan.envs.gym_adapters:wall_env",
        vector_entry_point="jepaplan.envs.gym_adapters:wall_vector_env",
        kwargs={"config": _config},
    )
