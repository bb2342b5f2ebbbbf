"""The ball is gymnasium-robotics' ball, obeys its commands, and never passes a wall."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jepaplan.envs.maze_geodesic import clearance
from jepaplan.envs.maze_layouts import cell_distances, cell_of, maze_sets, open_cells
from jepaplan.envs.maze_physics import MASS, RADIUS, push, pushing_force
from jepaplan.envs.point_maze import MAZE, MazeWorld, maze_world

mujoco = pytest.importorskip("mujoco", reason="the point maze is simulated by MuJoCo (extra `maze`)")
WORLD = maze_world("Maze")
FREE_MOTOR = MazeWorld(replace(MAZE, force_limit=None))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def point_env(layout: int):
    """The environment whose physics ours repeats, in the same maze."""
    robotics = pytest.importorskip("gymnasium_robotics", reason="compares with it (extra `maze`)")
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    assert robotics
    walls = np.ones((6, 6), int)
    walls[1:5, 1:5] = ~open_cells(torch.tensor(layout)).numpy()
    return PointMazeEnv(maze_map=walls.tolist()).point_env


@pytest.mark.parametrize("layout", [maze_sets().training[0], maze_sets().held_out[7]])
def test_each_step_is_that_of_gymnasium_robotics(layout):
    point = point_env(layout)
    np.testing.assert_allclose(point.model.body_mass.sum(), MASS, rtol=1e-12)
    like = torch.tensor([[0.0, 0, 0, 0, layout]]).expand(150, 5)
    body = WORLD.sample_states(like, seeded(0))[:, :4].double().numpy()
    body[:, 2:] = np.random.default_rng(0).uniform(-5, 5, (150, 2))
    force = np.random.default_rng(1).uniform(-100, 100, (150, 2))
    pushed = push(body, force, np.full(150, layout), 4)
    for row in range(150):
        point.set_state(body[row, :2], body[row, 2:])
        for _ in range(4):
            point.step(force[row] / 100)
        theirs = np.concatenate([point.data.qpos, point.data.qvel])
        np.testing.assert_allclose(pushed[row], theirs, rtol=0, atol=1e-12)
    point.close()
    hit = np.abs(pushed[:, 2:] - body[:, 2:]).max(1) > 1.0  # more than the motors can do
    assert 10 < hit.sum() < 140


@given(seed=st.integers(0, 2**31), size=st.sampled_from([0.1, 5.0, 50.0, 1e30, float("inf")]))
@example(seed=0, size=float("nan"))
@settings(max_examples=8, deadline=None)
def test_no_command_passes_a_wall_or_exceeds_the_speed(seed, size):
    generator = seeded(seed)
    for world in (WORLD, FREE_MOTOR):
        state = world.sample_recording(32, generator)
        for _ in range(10):
            moved = world.step(state, size * torch.randn(32, 2, generator=generator))
            assert world.is_possible(moved).all()
            assert torch.equal(moved[:, 4], state[:, 4])
            # Even the fastest ball stays in its cell or enters one beside it, or around one free corner.
            cells = cell_of(state[:, :2]), cell_of(moved[:, :2])
            for layout, before, after in zip(state[:, 4].tolist(), *cells, strict=True):
                assert cell_distances(int(layout))[before, after] <= 2
            state = moved


def test_a_free_ball_reaches_its_command():
    layout = 0xFFFF
    force = pushing_force(np.array([[1.0, -2.0]]), np.array([[3.0, 0.5]]), 4, None)
    pushed = push(np.array([[0.0, 0.0, 1.0, -2.0]]), force, np.array([layout]), 4)
    np.testing.assert_allclose(pushed[0, 2:], [3.0, 0.5], rtol=1e-9)


def test_motors_are_weak_so_the_ball_keeps_its_inertia():
    state = torch.tensor([[-1.5, 0.0, 0.0, 0.0, 65535.0]], dtype=torch.float64)
    speeds = []
    for _ in range(7):
        state = WORLD.step(state, torch.tensor([[4.0, 0.0]], dtype=torch.float64))
        speeds.append(float(state[0, 2]))
    # v <- r v + (1 - r) F / d, four times per action, until the command is within reach.
    kept = (MASS / (MASS + 0.01)) ** 4
    expected, speed = [], 0.0
    for _ in range(7):
        speed = min(kept * speed + (1 - kept) * 100, 4.0)
        expected.append(speed)
    np.testing.assert_allclose(speeds, expected, rtol=1e-9)
    assert expected[0] == pytest.approx(0.95, abs=0.005)
    assert expected[3] < 4.0 == expected[4]
    free = FREE_MOTOR.step(torch.tensor([[-1.5, 0, 0, 0, 65535.0]]), torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(free[0, 2:4], torch.tensor([0.0, 4.0]))


def test_a_row_moves_alike_alone_and_among_others_and_again():
    state, actions = WORLD.sample_recording(50, seeded(0)), WORLD.sample_commands(50, seeded(1))
    for _ in range(20):
        state = WORLD.step(state, actions)
    together = WORLD.step(state, actions)
    assert torch.equal(together, WORLD.step(state, actions))
    alone = torch.cat([WORLD.step(state[row : row + 1], actions[row : row + 1]) for row in range(50)])
    assert torch.equal(together, alone)
    assert WORLD.step(state[:0], actions[:0]).shape == (0, 5)


def test_a_ball_driven_at_a_wall_comes_to_rest_beside_it():
    state = torch.tensor([[1.0, 0.3, 5.0, 0.0, 65535.0]])
    for _ in range(100):
        state = WORLD.step(state, torch.tensor([[5.0, 0.0]]))
        assert float(clearance(state[:, :2], state[:, 4])) > RADIUS - 0.05
    assert abs(float(state[0, 2])) < 0.01
    assert float(clearance(state[:, :2], state[:, 4])) == pytest.approx(RADIUS, abs=0.01)
    assert float(state[0, 1]) == pytest.approx(0.3)


def test_impossible_states_and_commands_that_are_no_numbers():
    states = torch.tensor(
        [
            [5.0, 0.0, 1.0, 0.0, 65535.0],
            [0.5, 0.5, 1.0, 0.0, 0.0],
            [0.5, 0.5, float("nan"), 0.0, 65535.0],
            [0.5, 0.5, 0.0, 0.0, 70000.0],
        ]
    )
    moved = WORLD.step(states, torch.ones(4, 2))
    torch.testing.assert_close(moved, states, rtol=0, atol=0, equal_nan=True)
    rolling = torch.tensor([[0.0, 0.0, 0.5, 0.0, 65535.0]])
    braked = WORLD.step(rolling, torch.tensor([[float("nan"), float("nan")]]))
    assert torch.equal(braked, WORLD.step(rolling, torch.zeros(1, 2)))


def follow(world: MazeWorld, geodesic: bool, count: int) -> torch.Tensor:
    """Walk towards where the straight line, or the exact shortest path, is shortest; which tasks succeed?"""
    state, goal = world.sample_tasks(count, seeded(17))
    angle = 2 * torch.pi * torch.arange(12) / 12
    heading = torch.stack([angle.cos(), angle.sin()], dim=-1)
    reached = world.reached(state, goal)
    for step in range(world.episode_steps):
        left = (~reached).nonzero()[:, 0]
        if not len(left):
            break
        if step % 4 == 0:
            ahead = state[left].repeat_interleave(12, 0)
            ahead[:, :2] += 0.25 * heading.repeat(len(left), 1)
            ends = goal[left].repeat_interleave(12, 0)
            straight = (ahead[:, :2] - ends[:, :2]).norm(dim=-1)
            cost = world.cost_to_go(ahead, ends) if geodesic else straight
            chosen = torch.zeros(count, dtype=torch.long)
            chosen[left] = cost.view(-1, 12).argmin(1)
        state[left] = world.step(state[left], 2.5 * heading[chosen[left]])
        reached |= world.reached(state, goal)
    return reached


@pytest.mark.parametrize("name, most", [pytest.param("Maze", 0.8, marks=pytest.mark.slow), ("MazeHard", 0.5)])
def test_the_shortest_path_leads_to_every_goal_and_the_straight_line_does_not(name, most):
    world = maze_world(name)
    assert follow(world, geodesic=True, count=20).all()
    assert float(follow(world, geodesic=False, count=20).float().mean()) < most
