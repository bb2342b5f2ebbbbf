"""The ball of the point maze, pushed by MuJoCo in batches: gymnasium-robotics' numbers without its classes.

D4RL's point maze (arXiv:2004.07219) as gymnasium-robotics 1.4 ships it: a sphere on two slides, damped,
pushed by two motors, between unit boxes. Destrade et al. (arXiv:2601.00844) command velocities: the force is
what reaches the wanted velocity at the end of the control step, held over its simulation steps.

    symbol   here
    m        MASS             density times the volume of the ball
    d        DAMPING          newtons per metre per second
    h        TIMESTEP         seconds of one simulation step
    v*       wanted           velocity at the end of the control step

MuJoCo's Euler step is implicit in the damping, v <- (m v + h F) / (m + h d), so with r = m / (m + h d) and n
steps under a constant force v_n = r^n v + (1 - r^n) F / d, which `pushing_force` solves for F.
"""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jepaplan.envs.maze_layouts import SIDE
from jepaplan.types import InputError

RADIUS = 0.1  # metres; of the ball that collides, the drawn one is larger
DENSITY = 1000.0
MASS = DENSITY * 4 / 3 * math.pi * RADIUS**3
DAMPING = 1.0
TIMESTEP = 0.01
HIGHEST_SPEED = 5.0  # metres per second and axis; the simulator's state is cut to it
WALL_HEIGHT = 0.4
SUNK = -10.0  # where the boxes of open cells are: all mazes then have equally many, and share one batch


def pushing_force(
    velocity: Float[np.ndarray, "B 2"],
    wanted: Float[np.ndarray, "B 2"],
    steps: int,
    limit: float | None,
) -> Float[np.ndarray, "B 2"]:
    """Newtons that make `velocity` the `wanted` one after `steps` steps, cut per axis to `limit`."""
    kept = (MASS / (MASS + TIMESTEP * DAMPING)) ** steps
    force = DAMPING * (wanted - kept * velocity) / (1 - kept)
    return force if limit is None else np.clip(force, -limit, limit)


def push(
    body: Float[np.ndarray, "B 4"],
    force: Float[np.ndarray, "B 2"],
    layouts: Int[np.ndarray, " B"],
    steps: int,
) -> Float[np.ndarray, "B 4"]:
    """Places and velocities (x, y, vx, vy) after `steps` simulation steps under a constant force.

    A function of its arguments: each row starts from its own state, with a cold solver. Speeds are cut to the
    highest before every step.
    """
    if len(body) == 0:
        return body.copy()
    path = _path(body, force, layouts, steps)
    end = path[:, -1]
    # Cutting between steps means a call per step, so only the few rows go that way that became too fast.
    fast = (np.abs(path[:, :-1, 2:]) > HIGHEST_SPEED).any((1, 2))
    if fast.any():
        slow = body[fast]
        for _ in range(steps):
            slow = _path(slow, force[fast], layouts[fast], 1)[:, 0]
        end[fast] = slow
    return end


def _path(
    body: Float[np.ndarray, "B 4"],
    force: Float[np.ndarray, "B 2"],
    layouts: Int[np.ndarray, " B"],
    steps: int,
) -> Float[np.ndarray, "B steps 4"]:
    """Places and velocities after each step, all of them in one call; only the first speeds are cut."""
    mujoco, rollout = require_mujoco()
    numbers, which = np.unique(layouts, return_inverse=True)
    models = [_model(int(number)) for number in numbers]
    state = np.zeros((len(body), 5))  # the first number is time, on which nothing depends
    state[:, 1:3] = body[:, :2]
    state[:, 3:] = np.clip(body[:, 2:], -HIGHEST_SPEED, HIGHEST_SPEED)
    held = np.repeat(force[:, None], steps, axis=1)
    one_per_row = [models[number] for number in which.ravel()]
    path, _ = rollout.rollout(one_per_row, mujoco.MjData(models[0]), state, held)
    return path[:, :, 1:]


@functools.cache
def require_mujoco() -> tuple[Any, Any]:
    """MuJoCo and its batched simulation; says what to install where they are missing."""
    try:
        import mujoco
        from mujoco import rollout
    except ImportError as reason:
        raise InputError(
            f"the point maze is simulated by MuJoCo, which cannot be imported here ({reason}); "
            "install it: pip install 'jepaplan[maze]'"
        ) from reason
    return mujoco, rollout


def model_text(layout: int) -> str:
    """The maze in MuJoCo's own language: a box for each cell of the grid and its ring, and the ball."""
    boxes = []
    for row in range(-1, SIDE + 1):
        for column in range(-1, SIDE + 1):
            inside = 0 <= row < SIDE and 0 <= column < SIDE
            is_open = inside and bool(layout >> (SIDE * row + column) & 1)
            x, y = column - (SIDE - 1) / 2, (SIDE - 1) / 2 - row
            z = SUNK if is_open else WALL_HEIGHT / 2
            boxes.append(f'<geom type="box" pos="{x} {y} {z}" size="0.5 0.5 {WALL_HEIGHT / 2}"/>')
    return f"""<mujoco>
  <option timestep="{TIMESTEP}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint type="slide" damping="{DAMPING}"/>
    <geom density="{DENSITY}" margin="0.002" condim="1"/>
  </default>
  <worldbody>
    {"".join(boxes)}
    <body>
      <geom type="sphere" size="{RADIUS}"/>
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/>
    <motor joint="y"/>
  </actuator>
</mujoco>"""


@functools.lru_cache(maxsize=4096)
def _model(layout: int) -> Any:
    return require_mujoco()[0].MjModel.from_xml_string(model_text(layout))
