"""The gymnasium faces of the wall worlds."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import jepaplan.envs.gym_adapters  # noqa: F401  (registers the environments)
from jepaplan.envs.wall import WALL_SMALL, WallWorld
from jepaplan.types import InputError

NAMES = [f"jepaplan/{name}-v0" for name in ("WallSmall", "WallBig", "WallBigBounce", "WallBigSlips")]


def many(count: int = 4, **settings):
    return gymnasium.make_vec(NAMES[0], num_envs=count, vectorization_mode="vector_entry_point", **settings)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_own_checker_is_content(name):
    env = gymnasium.make(name, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Actions are pixels, not [-1, 1], on purpose.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env.unwrapped)
        env.reset(seed=1)
        env.step(env.action_space.sample())


@pytest.mark.parametrize("name, limit", [(NAMES[0], 200), (NAMES[1], 64)])
def test_episodes_are_cut_at_the_papers_step_limit(name, limit):
    env = gymnasium.make(name)
    env.reset(seed=0)
    for step in range(1, limit + 1):
        _, reward, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        assert (reward, terminated, truncated) == (-1.0, False, step == limit)


def test_the_goal_ends_the_episode():
    env = gymnasium.make(NAMES[0])
    _, info = env.reset(options={"layout": (32, 30), "start": (28, 30), "goal": (32, 30)})
    assert not info["is_success"]
    rewards = []
    for _ in range(3):
        _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], np.float32))
        rewards.append(reward)
    assert rewards == [-1, -1, 0]
    assert terminated
    assert info["is_success"] is True


def test_what_is_given_is_what_happens():
    env = gymnasium.make(NAMES[0])
    seen, info = env.reset(options={"layout": (25, 40), "start": (10.5, 12), "goal": (50, 50.25)})
    assert info["state"].tolist() == [10.5, 12, 25, 40]
    assert info["goal_state"].tolist() == [50, 50.25, 25, 40]
    world = WallWorld(WALL_SMALL)
    places, layouts = world.split_state(torch.from_numpy(np.stack([info["state"], info["goal_state"]])))
    drawn = world.render(places, layouts).numpy()
    assert np.array_equal(seen, drawn[0])
    assert np.array_equal(info["goal_observation"], drawn[1])


def test_what_is_left_open_is_in_the_other_room():
    env = gymnasium.make(NAMES[0])
    for seed in range(20):
        for option, other in (("start", "goal_state"), ("goal", "state")):
            _, info = env.reset(seed=seed, options={"layout": (30, 30), option: (10, 10)})
            assert info[other][0] > 31


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": (32, 30), "goal": (32, 50)}, r"goal \(32, 50\) is in a wall"),
        ({"start": (4, 30)}, r"start \(4, 30\) is in a wall or outside the box"),
        ({"layout": (6, 30)}, "wall_x must be in"),
        ({"layout": (32, 60)}, "door_y in"),
        ({"gaol": (10, 10)}, "did you mean 'goal'"),
        ({"goal": (1, 2, 3)}, r"two finite numbers \(x, y\)"),
        ({"goal": "here"}, r"two finite numbers \(x, y\)"),
        ({"goal": (float("nan"), 2)}, r"two finite numbers \(x, y\)"),
    ],
)
def test_impossible_tasks_are_refused_in_words(options, message):
    env = gymnasium.make(NAMES[0])
    with pytest.raises(InputError, match=message):
        env.reset(options=options)


def test_actions_that_are_not_moves_are_refused_and_long_ones_cut():
    env = gymnasium.make(NAMES[0]).unwrapped
    _, before = env.reset(options={"layout": (32, 30), "start": (10, 10), "goal": (50, 50)})
    with pytest.raises(InputError, match="finite displacements"):
        env.step(np.array([np.nan, 0], np.float32))
    *_, after = env.step(np.array([100.0, 0.5], np.float32))
    np.testing.assert_allclose(after["state"][:2] - before["state"][:2], [1.8, 0.5], atol=1e-5)


def test_the_picture_for_people_shows_the_path():
    env = gymnasium.make(NAMES[0], render_mode="rgb_array")
    env.reset(options={"layout": (32, 30), "start": (10, 10), "goal": (50, 50)})
    before = env.render()
    for _ in range(5):
        env.step(np.array([1.0, 0.5], np.float32))
    after = env.render()
    assert before.shape == (256, 256, 3)
    assert before.dtype == np.uint8
    changed = np.argwhere((before != after).any(-1)) / 4
    assert (changed >= 8).all()
    assert (changed <= 18).all()
    assert len(changed) > 5


def test_many_worlds_behave_as_one_by_one():
    env = many(3)
    options = {
        "layout": (32, 30),
        "start": [(10, 10), (28, 30), (40, 50)],
        "goal": [(50, 50), (33, 30), (10, 9)],
    }
    env.reset(seed=0, options=options)
    actions = np.array([[1, 0.5], [1.5, 0], [1, -1]], np.float32)
    for step in range(5):
        seen, reward, terminated, truncated, info = env.step(actions)
        if step == 2:
            break
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    assert reward.tolist() == [-1, 0, -1]
    for number in range(3):
        single = gymnasium.make(NAMES[0])
        single.reset(
            options={
                key: np.array(value)[number] if key != "layout" else value for key, value in options.items()
            }
        )
        for _ in range(3):
            alone, *_, alone_info = single.step(actions[number])
        assert np.array_equal(alone, seen[number])
        assert np.array_equal(alone_info["state"], info["state"][number])


def test_finished_worlds_begin_anew_at_the_next_step():
    env = many(2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env.reset(
        seed=0, options={"layout": (32, 30), "start": [(30, 30), (10, 10)], "goal": [(33, 30), (50, 50)]}
    )
    _, _, terminated, _, info = env.step(np.array([[1.7, 0], [1, 0]], np.float32))
    assert terminated.tolist() == [True, False]
    assert info["is_success"].tolist() == [True, False]
    _, reward, terminated, _, info = env.step(np.array([[1.7, 0], [1, 0]], np.float32))
    assert reward.tolist() == [0, -1]
    assert not terminated.any()
    assert not info["is_success"].any()
    np.testing.assert_allclose(info["state"][1][:2], [12, 10])


def test_the_same_seed_is_the_same_episode():
    one, two = many(5, render_mode="rgb_array"), many(5, render_mode="rgb_array")
    for env in (one, two):
        env.reset(seed=7)
        env.action_space.seed(3)
    for _ in range(250):  # past the first restart
        first, second = (env.step(env.action_space.sample()) for env in (one, two))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[4]["goal_state"], second[4]["goal_state"])
    assert not np.array_equal(first[0][0], first[0][1])
    assert np.array_equal(one.render()[0], two.render()[0])
    assert one.observation_space.contains(first[0])
