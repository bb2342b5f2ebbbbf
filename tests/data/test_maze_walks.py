"""Recorded walks in the mazes are those of the paper, and true."""

from dataclasses import replace

import pytest
import torch

from jepaplan.data.maze_walks import maze_walks
from jepaplan.envs.maze_layouts import cell_of, maze_sets, open_cells
from jepaplan.envs.point_maze import MAZE, MazeWorld, maze_world
from jepaplan.types import InputError

pytest.importorskip("mujoco", reason="the point maze is simulated by MuJoCo (extra `maze`)")
WORLD = maze_world("Maze")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_walks_use_the_training_mazes_evenly_and_no_other():
    walks = maze_walks(WORLD, 50, 20, seeded(0))
    assert walks.states.shape == (50, 21, 5)
    assert walks.actions.shape == (50, 20, 2)
    layouts, counts = walks.states[:, :, 4].unique(return_counts=True)
    assert sorted(layouts.tolist()) == sorted(maze_sets().training)
    assert counts.tolist() == [10 * 21] * 5
    assert WORLD.is_possible(walks.states.flatten(0, 1)).all()


def test_every_state_follows_from_the_one_before():
    walks = maze_walks(WORLD, 10, 15, seeded(1))
    after = WORLD.step(walks.states[:, :-1].flatten(0, 1), walks.actions.flatten(0, 1))
    assert torch.equal(after, walks.states[:, 1:].flatten(0, 1))


def test_commands_are_below_the_papers_norm_of_five_and_new_at_every_step():
    walks = maze_walks(WORLD, 100, 30, seeded(2))
    norm = walks.actions.norm(dim=-1)
    assert float(norm.max()) <= 5
    assert abs(float(norm.mean()) - 2.5) < 0.1
    turned = (walks.actions[:, 1:] * walks.actions[:, :-1]).sum(-1) / (norm[:, 1:] * norm[:, :-1])
    assert abs(float(turned.mean())) < 0.05
    first = walks.states[:, 0, 2:4].norm(dim=-1)
    assert 1.9 < float(first.mean()) < 3.1


def test_recordings_cover_every_cell_of_every_training_maze():
    states = maze_walks(WORLD, 200, 30, seeded(3)).states.flatten(0, 1)
    for layout in maze_sets().training:
        cells = cell_of(states[states[:, 4] == layout, :2])
        assert torch.equal(cells.bincount(minlength=16).view(4, 4) > 0, open_cells(torch.tensor(layout)))


def test_held_commands_lead_farther():
    held = maze_walks(WORLD, 100, 25, seeded(4), hold=10)
    assert torch.equal(held.actions[:, 0], held.actions[:, 9])
    assert not torch.equal(held.actions[:, 9], held.actions[:, 10])
    once = maze_walks(WORLD, 100, 25, seeded(4))

    def way(walks) -> float:
        return float((walks.states[:, -1, :2] - walks.states[:, 0, :2]).norm(dim=-1).mean())

    assert way(held) > 1.2 * way(once)


def test_the_same_generator_walks_the_same_way_and_the_motor_matters():
    one, two = (maze_walks(WORLD, 5, 5, seeded(5)) for _ in range(2))
    assert torch.equal(one.states, two.states)
    free = maze_walks(MazeWorld(replace(MAZE, force_limit=None)), 5, 5, seeded(5))
    assert torch.equal(free.actions, one.actions)
    assert not torch.equal(free.states, one.states)


def test_no_walk_is_refused():
    for wrong in ((0, 5, 1), (5, 0, 1), (5, 5, 0)):
        with pytest.raises(InputError, match="at least 1"):
            maze_walks(WORLD, wrong[0], wrong[1], seeded(0), hold=wrong[2])
