"""Random walks in the training mazes: a new velocity command at every step, wherever it leads.

Destrade et al. (arXiv:2601.00844): 1000 trajectories of 101 states over five mazes, commands of norm below 5;
first velocities as in PLDM (arXiv:2502.14819), of uniform direction and size.
"""

import torch

from jepaplan.data.walks import Walks
from jepaplan.envs.point_maze import MazeWorld
from jepaplan.types import InputError


def maze_walks(world: MazeWorld, count: int, steps: int, generator: torch.Generator, hold: int = 1) -> Walks:
    """`count` walks of `steps` actions, spread evenly over the training mazes.

    `hold` repeats each command that many times, which leads farther; the papers hold it once.
    """
    if min(count, steps, hold) < 1:
        raise InputError(f"need count, steps and hold of at least 1; got {count}, {steps} and {hold}")
    states = [world.sample_recording(count, generator)]
    commands = [world.sample_commands(count, generator) for _ in range(-(-steps // hold))]
    actions = [commands[step // hold] for step in range(steps)]
    for action in actions:
        states.append(world.step(states[-1], action))
    return Walks(torch.stack(states, dim=1), torch.stack(actions, dim=1))
