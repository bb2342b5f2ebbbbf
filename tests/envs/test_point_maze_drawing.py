"""Pictures of the mazes: what MuJoCo's own camera sees, in place to a part of a pixel."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from jepaplan.envs.maze_drawing import RADIUS, SIZE, VIEW, draw, to_pixels
from jepaplan.envs.maze_layouts import maze_sets
from jepaplan.envs.point_maze import maze_world

WORLD = maze_world("Maze")
OPEN = 0xFFFF

# Prints why it cannot, or writes MuJoCo's pictures of the states in a file. A process of its own, because
# the OpenGL platform is chosen when MuJoCo is imported, and a broken driver ends the process.
CAMERA = """
import sys
import numpy as np
import mujoco
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

states, cells, view, size = np.load(sys.argv[1]), np.load(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
frames = []
for (x, y), free in zip(states, cells):
    walls = np.ones((6, 6), int)
    walls[1:5, 1:5] = ~free
    point = PointMazeEnv(maze_map=walls.tolist()).point_env
    point.set_state(np.array([x, y]), np.zeros(2))
    point.model.site("target").rgba[3] = 0
    point.model.vis.global_.fovy = view
    renderer = mujoco.Renderer(point.model, size, size)
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance, camera.elevation, camera.azimuth = 0, 8, -90, 90
    camera.orthographic = 1
    renderer.update_scene(point.data, camera)
    frames.append(renderer.render().copy())
    renderer.close()
np.save(sys.argv[5], np.stack(frames))
"""


def test_mujocos_own_camera_sees_the_same(tmp_path):
    for package in ("mujoco", "gymnasium_robotics"):
        pytest.importorskip(package, reason="compares with it (extra `maze`)")
    generator = torch.Generator().manual_seed(0)
    like = WORLD.sample_tasks(6, generator)[0]
    states = WORLD.sample_states(like, generator)
    from jepaplan.envs.maze_layouts import open_cells

    np.save(tmp_path / "states.npy", states[:, :2].numpy())
    np.save(tmp_path / "cells.npy", open_cells(states[:, 4]).numpy())
    scale = 4  # larger than ours, then averaged: its own pictures are cut, not smoothed
    files = [str(tmp_path / name) for name in ("states.npy", "cells.npy")]
    arguments = [*files, str(VIEW), str(scale * SIZE), str(tmp_path / "frames.npy")]
    camera = subprocess.run(
        [sys.executable, "-c", CAMERA, *arguments],
        env={"MUJOCO_GL": "egl", **os.environ},
        capture_output=True,
        text=True,
    )
    if camera.returncode:
        pytest.skip(f"no OpenGL to draw with: {camera.stderr.strip().splitlines()[-1:]}")
    theirs = np.load(tmp_path / "frames.npy").astype(float)
    theirs = theirs.reshape(6, SIZE, scale, SIZE, scale, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    ours = WORLD.observe(states).frames.numpy().astype(float)
    assert np.abs(ours - theirs).mean() < 2.0
    # Edges differ by their smoothing; nothing is somewhere else.
    assert (np.abs(ours - theirs).max(1) > 40).mean() < 0.001


def test_the_ball_is_where_it_is_to_a_part_of_a_pixel():
    generator = torch.Generator().manual_seed(1)
    places = 3 * torch.rand(300, 2, generator=generator) - 1.5
    empty = draw(torch.full((300,), OPEN), torch.full((300, 2), 9.0)).double()
    drawn = draw(torch.full((300,), OPEN), places).double()
    green = (drawn - empty)[:, 1]
    pixel = torch.arange(SIZE, dtype=torch.float64)
    inside = (torch.cdist(to_pixels(places).double()[:, None], torch.cartesian_prod(pixel, pixel)) < 5).view(
        -1, 64, 64
    )
    assert (green[~inside.transpose(1, 2)] == 0).all()
    mass = (drawn - empty).abs().sum(1)
    x = (mass.sum(1) * pixel).sum(-1) / mass.sum((1, 2))
    y = (mass.sum(2) * pixel).sum(-1) / mass.sum((1, 2))
    # The floor's tiles have two colours, which shifts this mean a little where the ball lies on both.
    assert (torch.stack([x, y], dim=-1) - to_pixels(places)).abs().mean() < 0.05
    assert (torch.stack([x, y], dim=-1) - to_pixels(places)).abs().max() < 0.4


def test_the_middle_and_the_corners_of_the_picture():
    edge = VIEW / 2
    corners = to_pixels(torch.tensor([[0.0, 0.0], [-edge, edge], [edge, -edge]]))
    torch.testing.assert_close(corners, torch.tensor([[31.5, 31.5], [-0.5, -0.5], [63.5, 63.5]]))


def test_walls_hide_what_is_under_them():
    layout = maze_sets().training[0]
    wall = draw(torch.tensor([layout]), torch.tensor([[9.0, 9.0]]))
    for place in ([-1.5, 1.5], [2.4, 2.4], [float("nan"), 0.0], [float("inf"), 0.0]):
        drawn = draw(torch.tensor([layout]), torch.tensor([place]))
        if place[0] == place[0] and abs(place[0]) < 9:
            assert torch.equal(drawn, wall)
        assert drawn.shape == (1, 3, 64, 64)


def test_pictures_do_not_depend_on_their_neighbours():
    generator = torch.Generator().manual_seed(2)
    states = WORLD.sample_tasks(40, generator)[0]
    together = WORLD.observe(states).frames
    alone = torch.cat([WORLD.observe(state[None]).frames for state in states])
    assert torch.equal(together, alone)
    assert len(together.flatten(1).unique(dim=0)) == 40
    assert WORLD.observe(states[:0]).frames.shape == (0, 3, 64, 64)


def test_proprioception_is_the_velocity():
    state = torch.tensor([[0.5, 0.5, 1.0, -2.0, float(OPEN)]])
    seen = WORLD.observe(state)
    assert seen.proprioception is not None
    assert seen.proprioception.tolist() == [[1.0, -2.0]]
    state[0, 2] = 3.0
    assert seen.proprioception.tolist() == [[1.0, -2.0]]
    assert pytest.approx(2.19, abs=0.01) == RADIUS
