"""The gymnasium faces of the point mazes."""

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from jepaplan.envs.check import check_world
from jepaplan.envs.maze_drawing import to_pixels
from jepaplan.envs.maze_layouts import maze_sets, parse_layout
from jepaplan.envs.point_maze import MAZE_HARD, maze_world
from jepaplan.types import InputError

pytest.importorskip("mujoco", reason="the point maze is simulated by MuJoCo (extra `maze`)")
import jepaplan.envs.maze_gym

NAMES = ["jepaplan/Maze-v0", "jepaplan/MazeHard-v0"]
MAZE = "..##/#.../..../..##"


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_own_checker_is_content(name):
    env = gymnasium.make(name, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are metres per second, not [-1, 1], on purpose.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env.unwrapped)


def test_it_can_be_recorded():
    interface = check_world(gymnasium.make(NAMES[0]))
    assert (interface.image_key, interface.proprioception_key) == ("pixels", "velocity")
    assert not interface.channels_last


def test_what_is_given_is_what_happens():
    env = gymnasium.make(NAMES[0])
    options = {"layout": MAZE, "start": (-1.5, 1.5), "goal": (1.5, 0.25)}
    seen, info = env.reset(seed=1, options=options)
    assert info["state"].tolist() == [-1.5, 1.5, 0, 0, parse_layout(MAZE)]
    assert info["goal_state"].tolist() == [1.5, 0.25, 0, 0, parse_layout(MAZE)]
    world = maze_world("Maze")
    pictures = world.observe(torch.from_numpy(np.stack([info["state"], info["goal_state"]]))).frames.numpy()
    assert np.array_equal(seen["pixels"], pictures[0])
    assert np.array_equal(info["goal_pixels"], pictures[1])
    action = np.array([2.0, -1.0], np.float32)
    expected = world.step(torch.from_numpy(info["state"])[None], torch.from_numpy(action)[None])
    seen, reward, terminated, truncated, info = env.step(action)
    assert np.array_equal(info["state"], expected[0].numpy())
    assert np.array_equal(seen["velocity"], expected[0, 2:4].numpy())
    assert (reward, terminated, truncated) == (-1.0, False, False)


def test_the_goal_ends_the_episode():
    env = gymnasium.make(NAMES[0])
    env.reset(options={"layout": MAZE, "start": (-1.5, 1.5), "goal": (-0.7, 1.5)})
    rewards = []
    for _ in range(40):
        _, reward, terminated, _, info = env.step(np.array([2.0, 0.0], np.float32))
        rewards.append(reward)
        if terminated:
            break
    assert rewards[-1] == 0
    assert set(rewards[:-1]) == {-1.0}
    assert info["is_success"] is True


def test_episodes_are_cut_at_the_papers_step_limit():
    assert gymnasium.make(NAMES[1]).unwrapped.world.episode_steps == 200
    env = jepaplan.envs.maze_gym.MazeEnv(replace(MAZE_HARD, episode_steps=9))
    env.reset(seed=0)
    for step in range(1, 10):
        *_, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        assert (terminated, truncated) == (False, step == 9)


def test_random_tasks_are_in_held_out_mazes_and_follow_the_seed():
    env = gymnasium.make(NAMES[0])
    first = [env.reset(seed=seed)[1]["state"] for seed in range(12)]
    again = [env.reset(seed=seed)[1]["state"] for seed in range(12)]
    assert np.array_equal(first, again)
    assert {int(state[4]) for state in first} <= set(maze_sets().held_out)
    assert len({int(state[4]) for state in first}) > 5


def test_ends_left_open_are_in_the_given_maze():
    env = gymnasium.make(NAMES[0])
    world = maze_world("Maze")
    for seed in range(10):
        _, info = env.reset(seed=seed, options={"layout": MAZE, "start": (0.5, 0.5)})
        assert bool(world.is_possible(torch.from_numpy(info["goal_state"])[None]))
        assert info["goal_state"][4] == parse_layout(MAZE)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": MAZE, "goal": (-1.5, 0.5)}, r"goal \(-1.5, 0.5\) is in a wall of \.\.##"),
        ({"layout": MAZE, "start": (-1.97, 1.5)}, "its ball of radius 0.1"),
        ({"layout": "..##"}, "4 rows of 4 cells"),
        ({"layout": ".###/####/####/###."}, "joined through their sides"),
        ({"layout": 0}, "joined through their sides"),
        ({"gaol": (0, 0)}, "did you mean 'goal'"),
        ({"goal": (1, 2, 3)}, r"two numbers \(x, y\)"),
        ({"goal": "here"}, r"two numbers \(x, y\)"),
    ],
)
def test_impossible_tasks_are_refused_in_words(options, message):
    env = gymnasium.make(NAMES[0])
    with pytest.raises(InputError, match=message):
        env.reset(options=options)


def test_actions_that_are_no_velocities_are_refused():
    env = gymnasium.make(NAMES[0]).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    for wrong in ([np.nan, 0], [1, 2, 3]):
        with pytest.raises(InputError, match="finite velocity"):
            env.step(np.array(wrong, np.float32))


def test_the_picture_for_people_shows_goal_and_path():
    env = gymnasium.make(NAMES[0], render_mode="rgb_array")
    env.reset(options={"layout": MAZE, "start": (-1.5, 1.5), "goal": (1.5, 0.25)})
    before = env.render()
    for _ in range(20):
        env.step(np.array([2.0, 0.0], np.float32))
    after = env.render()
    assert before.shape == (256, 256, 3)
    changed = np.argwhere((before != after).any(-1)).mean(0)
    middle = (to_pixels(torch.tensor([-1.0, 1.5])) + 0.5) * 4
    assert np.abs(changed[::-1] - middle.numpy()).max() < 20
