"""The gymnasium faces of the tile rooms."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import jepaplan.envs.tile_gym  # noqa: F401  (registers the environments)
from jepaplan.envs.check import check_world
from jepaplan.envs.tile_rooms import WORLDS, tile_world
from jepaplan.types import InputError


def many(name: str, count: int, **settings):
    return gymnasium.make_vec(
        f"jepaplan/{name}-v0", num_envs=count, vectorization_mode="vector_entry_point", **settings
    )


@pytest.mark.parametrize("name", list(WORLDS))
def test_gymnasiums_own_checker_is_content(name):
    env = gymnasium.make(f"jepaplan/{name}-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are pixels, not [-1, 1], on purpose.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env.unwrapped)
        env.reset(seed=1)
        env.step(env.action_space.sample())
    assert check_world(env).action_shape == (2,)


def test_episodes_are_cut_at_the_step_limit_and_end_at_the_goal():
    env = gymnasium.make("jepaplan/DeadEnd-v0")
    env.reset(seed=0, options={"layout": 0, "start": (28, 28), "goal": (55, 28)})
    for step in range(1, 81):
        *_, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        assert (terminated, truncated) == (False, step == 80)
    env.reset(options={"layout": 0, "start": (5, 5), "goal": (8, 5)})
    _, reward, terminated, _, info = env.step(np.array([2.5, 0], np.float32))
    assert (reward, terminated, info["is_success"]) == (0, True, True)


def test_what_is_given_is_what_happens_and_the_rest_is_solvable():
    env = gymnasium.make("jepaplan/BreakingKeys-v0")
    world = tile_world("BreakingKeys")
    _, info = env.reset(seed=0, options={"layout": 0, "start": (10, 20), "goal": (55, 12)})
    assert info["state"].tolist() == [10, 20, 0, 0, 0, 0]
    assert info["goal_state"].tolist() == [55, 12, 0, 1, 0, 0]  # behind the first door, which then is open
    for seed in range(10):
        _, info = env.reset(seed=seed, options={"layout": 0, "start": (55, 12)})
        state, goal = (torch.from_numpy(info[key])[None] for key in ("state", "goal_state"))
        assert world.cost_to_go(state, goal).isfinite().all()
        assert np.array_equal(info["goal_observation"], world.observe(goal).frames[0].numpy())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": 99}, "from 0 to"),
        ({"layout": 0.5}, "whole number"),
        ({"layout": 0, "start": (45, 30)}, "not free in layout 0 of DeadEnd"),
        ({"goal": (1, 1)}, "not free"),
        ({"goal": (float("nan"), 2)}, "not free"),
        ({"goal": (1, 2, 3)}, r"two numbers \(x, y\)"),
        ({"gaol": (10, 10)}, "did you mean 'goal'"),
    ],
)
def test_impossible_tasks_are_refused_in_words(options, message):
    env = gymnasium.make("jepaplan/DeadEnd-v0")
    with pytest.raises(InputError, match=message):
        env.reset(options=options)


def test_many_rooms_begin_anew_and_repeat_with_their_seed():
    runs = []
    for _ in range(2):
        env = many("Pits", 3, render_mode="rgb_array")
        env.reset(seed=3)
        env.action_space.seed(1)
        for _ in range(90):  # past the limit of 80
            seen, _, _, _, info = env.step(env.action_space.sample())
        runs.append((seen, info["state"], info["goal_state"], env.render()[0]))
    for one, two in zip(*runs, strict=True):
        assert np.array_equal(one, two)
    with pytest.raises(InputError, match="finite displacements"):
        env.step(np.full((3, 2), np.nan, np.float32))


def test_the_picture_for_people_shows_pits_and_the_path():
    env = gymnasium.make("jepaplan/Pits-v0", render_mode="rgb_array")
    env.reset(options={"layout": 0, "start": (8, 28), "goal": (55, 28)})
    before = env.render()
    for _ in range(4):
        env.step(np.array([2.0, 0.0], np.float32))
    after = env.render()
    assert before.shape == (256, 256, 3)
    assert (before[28 * 4, 30 * 4] != before[12 * 4, 12 * 4]).any()  # pit and floor
    changed = np.argwhere((before != after).any(-1)) / 4
    assert (changed[:, 0] > 25).all()
    assert (changed[:, 1] < 20).all()
