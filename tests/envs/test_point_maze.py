"""The point mazes: layouts by rule, tasks that keep their distance, paths that lead to the goal."""

import subprocess
import sys
from dataclasses import replace
from importlib import resources

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.envs.maze_layouts import (
    cell_centre,
    cell_distances,
    cell_of,
    drawn_layouts,
    format_layout,
    maze_sets,
    open_cells,
    parse_layout,
)
from jepaplan.envs.point_maze import MAZE, MazeConfig, MazeWorld, maze_world
from jepaplan.interfaces import World
from jepaplan.types import InputError

WORLD = maze_world("Maze")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(layout: str, *places: tuple[float, ...]) -> torch.Tensor:
    """States at rest, or with the velocity that a place goes on with, in one maze."""
    number = float(parse_layout(layout))
    return torch.tensor([[*place, *[0.0] * (4 - len(place)), number] for place in places])


def test_the_file_of_mazes_is_what_its_rule_and_seed_make():
    written = resources.files("jepaplan.envs").joinpath("mazes/version_1.json").read_text(encoding="utf-8")
    assert written == drawn_layouts(0)


def test_every_maze_obeys_the_papers_rule_and_none_is_seen_twice():
    sets = maze_sets()
    assert (len(sets.training), len(sets.held_out)) == (5, 40)
    assert len({*sets.training, *sets.held_out}) == 45
    for layout in (*sets.training, *sets.held_out):
        cells = open_cells(torch.tensor(layout))
        assert 0.5 <= float(cells.float().mean()) <= 0.6
        reached = {int(cells.flatten().nonzero()[0])}  # flood from the first open cell
        grown = True
        while grown:
            beside = {
                4 * row + column
                for cell in reached
                for row, column in ((cell // 4 + 1, cell % 4), (cell // 4 - 1, cell % 4), *sideways(cell))
                if 0 <= row < 4 and 0 <= column < 4 and cells[row, column]
            }
            grown = not beside <= reached
            reached |= beside
        assert len(reached) == int(cells.sum())


def sideways(cell: int) -> list[tuple[int, int]]:
    return [(cell // 4, cell % 4 + 1), (cell // 4, cell % 4 - 1)]


def test_layouts_round_trip_and_nonsense_is_refused():
    for layout in maze_sets().held_out:
        assert parse_layout(format_layout(layout)) == layout
    for wrong in ("..../..../....", "...x/..../..../....", "................"):
        with pytest.raises(InputError, match="4 rows of 4 cells"):
            parse_layout(wrong)


def test_cells_are_where_their_middles_are():
    cells = torch.arange(16)
    assert torch.equal(cell_of(cell_centre(cells)), cells)
    assert cell_centre(torch.tensor([0, 15])).tolist() == [[-1.5, 1.5], [1.5, -1.5]]
    outside = torch.tensor([[2.0, 0.0], [0.0, -2.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    assert cell_of(outside).tolist() == [-1] * 4


def test_steps_between_cells_go_around_walls():
    steps = cell_distances(parse_layout("..##/#.../..../..##"))
    assert steps[0, 14].isinf()  # a wall
    assert steps[0, 7] == 4  # right, down, right, right
    assert steps[0, 12] == 5
    apart = cell_distances(parse_layout(".#../##../####/####"))
    assert apart[0, 2].isinf()


def test_it_is_a_world():
    assert isinstance(WORLD, World)
    with pytest.raises(InputError, match="did you mean 'MazeHard'"):
        maze_world("MazeHerd")


@pytest.mark.parametrize("name, nearest, farthest", [("Maze", 3, 15), ("MazeHard", 5, 7)])
def test_tasks_are_in_held_out_mazes_and_far_enough_apart(name, nearest, farthest):
    world = maze_world(name)
    start, goal = world.sample_tasks(400, seeded(0))
    assert torch.equal(start[:, 4], goal[:, 4])
    assert set(start[:, 4].tolist()) <= set(maze_sets().held_out)
    for end in (start, goal):
        assert world.is_possible(end).all()
        assert (end[:, 2:4] == 0).all()
        offset = end[:, :2] - cell_centre(cell_of(end[:, :2]))
        assert (offset.abs() <= 0.25).all()
    cells = cell_of(start[:, :2]), cell_of(goal[:, :2])
    steps = [
        float(cell_distances(int(layout))[a, b]) for layout, a, b in zip(start[:, 4], *cells, strict=True)
    ]
    assert nearest <= min(steps)
    assert max(steps) <= farthest
    assert world.cost_to_go(start, goal).isfinite().all()


def test_the_papers_eighty_tasks_use_every_held_out_maze_twice():
    start, _ = WORLD.sample_tasks(80, seeded(3))
    assert start[:, 4].unique(return_counts=True)[1].tolist() == [2] * 40


def test_the_same_generator_draws_the_same_tasks():
    for first, second in zip(WORLD.sample_tasks(9, seeded(5)), WORLD.sample_tasks(9, seeded(5)), strict=True):
        assert torch.equal(first, second)
    assert WORLD.sample_tasks(0, seeded(5))[0].shape == (0, 5)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_sampled_states_are_legal_and_in_the_same_maze(seed):
    like = WORLD.sample_recording(300, seeded(seed))
    drawn = WORLD.sample_states(like, seeded(seed + 1))
    assert torch.equal(drawn[:, 4], like[:, 4])
    assert set(like[:, 4].tolist()) == set(maze_sets().training)
    assert WORLD.is_possible(like).all()
    assert WORLD.is_possible(drawn).all()


def test_sampled_states_reach_every_open_cell():
    maze = rows("..##/#.../..../..##", (0.0, 0.5)).expand(3000, 5)
    cells = cell_of(WORLD.sample_states(maze, seeded(0))[:, :2])
    counts = cells.bincount(minlength=16).view(4, 4)
    assert torch.equal(counts > 0, open_cells(maze[0, 4]))
    assert int(counts[counts > 0].min()) > 150


def test_possible_states():
    maze = "..##/#.../..../..##"
    states = rows(
        maze,
        (-1.5, 1.5),
        (-1.5, 0.5),  # a wall
        (-1.94, 1.5),  # pressed into the ring by 4 cm
        (-1.98, 1.5),  # by 8
        (-0.5, 1.5, 5.0, -5.0),
        (-0.5, 1.5, 5.1, 0.0),
        (3.0, 0.0),
        (float("nan"), 0.0),
    )
    states = torch.cat([states, torch.tensor([[0.5, 0.5, 0, 0, 1.5], [0.5, 0.5, 0, 0, 65536.0]])])
    expected = [True, False, True, False, True, False, False, False, False, False]
    assert WORLD.is_possible(states).tolist() == expected


def test_success_is_half_a_metre_at_any_speed():
    goal = rows("..##/#.../..../..##", (0.5, 0.5)).expand(3, 5)
    state = rows("..##/#.../..../..##", (0.5, 0.0, 3.0, 0.0), (0.9, 0.799, 0.0, 5.0), (0.5, 0.5))
    assert WORLD.reached(state, goal).tolist() == [False, True, True]


def test_apart_is_what_the_straight_line_does_not_solve():
    maze = "..##/#.../..../..##"
    start = rows(maze, (-1.5, 1.5), (-1.5, -0.5), (-0.5, 1.5), (-1.5, 1.5), (-1.5, 0.5))
    goal = rows(maze, (-0.5, 1.5), (1.5, 0.5), (0.5, 0.5), (-1.5, -0.5), (1.5, 0.5))
    assert WORLD.apart(start, goal).tolist() == [False, False, True, True, True]


def test_pixels_and_walls_agree_with_the_picture():
    state = rows("..##/#.../..../..##", (-0.5, 0.5))
    frame = WORLD.observe(state).frames[0].float()
    patches = WORLD.scenery(state[0])
    # A pixel's centre is (column, row), so walls reach over whole pixels from the rounded edges on.
    wall = torch.zeros(64, 64, dtype=torch.bool)
    for patch in patches:
        assert patch.kind == "wall"
        (left, top), (right, bottom) = patch.low, patch.high
        assert -0.5 <= left < right <= 63.5
        assert -0.5 <= top < bottom <= 63.5
        pixel = torch.arange(64)
        inside = ((pixel > left) & (pixel < right))[None] & ((pixel > top) & (pixel < bottom))[:, None]
        wall |= inside
    assert torch.equal(frame[0] > 140, wall)
    column, row = WORLD.positions(state)[0].round().long().tolist()
    assert frame[1, row, column] > 150
    assert frame[0, row, column] < 110


def test_a_command_has_the_recorded_sizes_and_every_direction():
    actions = WORLD.typical_actions()
    assert actions.norm(dim=-1).max() <= 5
    torch.testing.assert_close(actions.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    drawn = WORLD.sample_commands(5000, seeded(0))
    assert abs(float(drawn.norm(dim=-1).mean()) - 2.5) < 0.06
    # The per-axis deviation of a uniform size M and direction is M / sqrt(6).
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 5 / 6**0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nearest_cells": 4, "farthest_cells": 3},
        {"goal_radius": 0.0},
        {"episode_steps": 0},
        {"highest_speed": 6.0},
        {"force_limit": 0.0},
        {"force_limit": -1.0},
        {"simulation_steps": 0},
    ],
)
def test_mazes_that_cannot_be_solved_are_refused(wrong):
    with pytest.raises(InputError):
        MazeConfig(**wrong)


def test_tasks_that_no_maze_has_are_refused():
    world = MazeWorld(replace(MAZE, nearest_cells=9))
    with pytest.raises(InputError, match="the longest path has 7"):
        world.sample_tasks(1, seeded(0))


def test_without_mujoco_only_steps_are_refused_in_words():
    program = """
import sys
sys.modules["mujoco"] = None
import torch
from jepaplan.envs.point_maze import maze_world
from jepaplan.types import InputError
world = maze_world("Maze")
start, goal = world.sample_tasks(2, torch.Generator().manual_seed(0))
world.observe(start), world.cost_to_go(start, goal)
try:
    world.step(start, torch.zeros(2, 2))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'jepaplan[maze]'" in done.stdout
