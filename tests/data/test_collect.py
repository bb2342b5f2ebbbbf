"""The recorded wall sets are those of the paper, and any world with pictures can be recorded."""

from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import jepaplan.envs.gym_adapters  # noqa: F401  (registers the wall worlds)
from jepaplan.data.collect import collect_gym, collect_world
from jepaplan.data.episodes import open_episodes
from jepaplan.data.step_laws import heading_turns, truncated_normal
from jepaplan.data.wall_walks import collect_wall, wall_walks
from jepaplan.envs.wall import WALL_BIG, WALL_SMALL, WallWorld
from jepaplan.envs.worlds import find_world
from jepaplan.types import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walls")
    recorded = {}
    for config in (WALL_SMALL, WALL_BIG):
        collect_wall(folder / config.name, config, trajectories=400, seed=3)
        recorded[config.name] = open_episodes(folder / config.name)
    return recorded


@pytest.mark.parametrize("config", [WALL_SMALL, WALL_BIG], ids=lambda config: config.name)
def test_the_papers_sets(walls, config):
    episodes = walls[config.name]
    assert len(episodes) == 400
    assert set(episodes.lengths.tolist()) == {63}
    states = episodes.states.view(400, 64, 4)
    from_wall = states[:, :, 0] - states[:, :, 2]
    crosses = (from_wall < -1).any(1) & (from_wall > 1).any(1)
    assert int(crosses.sum()) == 200
    to_right = from_wall[crosses, 0] < 0
    assert 60 < int(to_right.sum()) < 140
    assert 70 < int(crosses[:200].sum()) < 130  # not sorted by kind
    norms = episodes.actions.norm(dim=-1)
    assert config.step_min - 1e-4 <= float(norms.min()) <= float(norms.max()) <= config.step_max + 1e-4
    assert float(norms.mean()) == pytest.approx(config.step_mean, rel=0.01)
    # 25 200 actions that persist for about nine steps: 3 % is three standard errors
    pooled = float(episodes.actions.std())
    assert pooled == pytest.approx({"WallSmall": 0.750, "WallBig": 1.499}[config.name], rel=0.03)
    assert (episodes.states.view(400, 64, 4)[:, 1:, 2:] == states[:, :1, 2:]).all()
    assert len(states[:, 0, 2:].unique(dim=0)) > 250  # of 1056, so about 332 of 400 are distinct


def test_recorded_frames_and_moves_are_those_of_the_world(walls):
    episodes, world = walls["WallBig"], WallWorld(WALL_BIG)
    states = episodes.states[:640]
    assert torch.equal(world.observe(states).frames, episodes.observations[:640])
    before = torch.arange(640) % 64 != 63
    moved = world.step(states[before], episodes.actions[:630])
    assert torch.equal(moved, states[1:][before[:-1]])


def test_the_same_seed_is_the_same_file(tmp_path):
    seen = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        calls = []
        collect_wall(
            tmp_path / name,
            WALL_SMALL,
            trajectories=40,
            states=20,
            seed=seed,
            crossing_fraction=0.25,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )
        assert calls == sorted(calls)
        assert calls[-1] == (40, 40)
        seen.append((tmp_path / name).read_bytes())
    assert seen[0] == seen[1] != seen[2]
    assert open_episodes(tmp_path / "a").manifest["crossing"] == 10


@pytest.mark.parametrize(
    "name, digest",
    [
        ("WallSmall", "964585572d8dd30f"),
        ("WallBig", "e19d2d2d57ac6234"),
        ("WallSmallFixed", "ef3bc75125901516"),
        ("WallBigFixed", "15b5a1dc4b441ea2"),
    ],
)
def test_recordings_of_the_two_rooms_do_not_change(tmp_path, name, digest):
    """Content as of 2026-11-21, torch 2.13 on x86-64; runs and results stand on it. On purpose? CHANGELOG."""
    walker = partial(wall_walks, crossing_fraction=0.3)
    collect_world(tmp_path / "a", find_world(name), walker, trajectories=12, states=20, seed=5)
    assert open_episodes(tmp_path / "a").content_hash.startswith(digest)


def test_walks_that_cannot_cross_are_refused(tmp_path):
    short = replace(WALL_SMALL, step_mean=0.5, step_max=0.8)
    with pytest.raises(InputError, match="do not change room"):
        collect_wall(tmp_path / "a", short, trajectories=5, states=3, crossing_fraction=1.0)
    with pytest.raises(InputError, match="crossing_fraction"):
        collect_wall(tmp_path / "a", WALL_SMALL, crossing_fraction=1.5)
    assert list(tmp_path.iterdir()) == []


def test_headings_are_von_mises():
    turns = heading_turns((200_000,), 5.0, seeded(0)).double()
    resultant = torch.special.i1(torch.tensor(5.0)) / torch.special.i0(torch.tensor(5.0))
    assert float(turns.cos().mean()) == pytest.approx(float(resultant), abs=2e-3)
    assert float(turns.sin().mean()) == pytest.approx(0, abs=4e-3)
    second = 1 - 2 / 5 * resultant  # I2 / I0, by the recurrence of Bessel functions
    assert float((2 * turns).cos().mean()) == pytest.approx(float(second), abs=5e-3)


def test_lengths_are_truncated_not_clipped():
    lengths = truncated_normal((200_000,), (1.0, 0.4, 0.2, 1.8), seeded(0)).double()
    assert float(((lengths < 0.201) | (lengths > 1.799)).double().mean()) < 1e-3
    # variance of a normal law cut at two deviations: 1 - 4 phi(2) / (2 Phi(2) - 1)
    assert float(lengths.std()) == pytest.approx(0.4 * 0.8796, abs=2e-3)


class Drifter(gymnasium.Env):
    """A body in a plane, seen as a picture; ends early in every third episode."""

    def __init__(self, layout="last", dictionary=False, action=None, image=None):
        shape = {"last": (12, 10, 3), "first": (3, 12, 10)}[layout]
        picture = image or spaces.Box(0, 255, shape, np.uint8)
        self.layout, self.shape, self.episode = layout, shape, -1
        self.dictionary = dictionary
        self.action_space = action or spaces.Box(-1, 1, (2,), np.float32)
        body = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.observation_space = spaces.Dict({"camera": picture, "body": body}) if dictionary else picture

    def _see(self):
        picture = self.np_random.integers(0, 255, self.shape, np.uint8)
        picture[0, 0, :] = self.clock
        return {"camera": picture, "body": np.full(4, self.clock / 2)} if self.dictionary else picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.episode = 0, self.episode + 1
        return self._see(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.clock += 1
        return self._see(), (self.clock - 1) / 4, self.clock == 5 and self.episode % 3 == 2, False, {}


gymnasium.register("jepaplan-tests/Drifter-v0", entry_point=Drifter, max_episode_steps=8)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_any_world_with_pictures(tmp_path, layout):
    env = gymnasium.make("jepaplan-tests/Drifter-v0", layout=layout, dictionary=True)
    collect_gym(tmp_path / "a", env, episodes=6, seed=5)
    episodes = open_episodes(tmp_path / "a")
    assert episodes.lengths.tolist() == [8, 8, 5, 8, 8, 5]
    assert episodes.observations.shape[1:] == (3, 12, 10)
    clock = torch.cat([torch.arange(n + 1) for n in episodes.lengths.tolist()])
    assert torch.equal(episodes.observations[:, 0, 0, 0].long(), clock)
    assert torch.equal(episodes.proprioception, (clock / 2)[:, None].expand(-1, 4))
    assert len(episodes.actions.unique(dim=0)) == 42
    earned = episodes.earned
    assert torch.equal(earned.rewards, torch.cat([torch.arange(n) / 4 for n in episodes.lengths.tolist()]))
    # the clock ends an episode; the number of steps only stops looking
    assert earned.terminal.nonzero()[:, 0].tolist() == [8 + 8 + 5 - 1, 42 - 1]
    assert earned.success is None


def test_worlds_by_name_are_repeatable_and_take_a_policy(tmp_path):
    for name in ("a", "b"):
        collect_gym(tmp_path / name, "jepaplan-tests/Drifter-v0", episodes=3, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def still(_):
        return np.zeros(2, np.float32)

    collect_gym(tmp_path / "c", "jepaplan/WallBig-v0", episodes=2, steps=10, policy=still)
    recorded = open_episodes(tmp_path / "c")
    assert recorded.lengths.tolist() == [10, 10]
    assert not recorded.actions.any()
    assert recorded.manifest["policy"] == "still"
    assert recorded.earned.success.shape == (22,)
    assert not recorded.earned.success.any()
    assert (recorded.earned.rewards == recorded.earned.rewards[0]).all()


class Taciturn(Drifter):
    """Says of some steps that they are a success, and of the others nothing."""

    def __init__(self, tells, **settings):
        super().__init__(**settings)
        self.tells = tells  # by episode and step: what info says of success

    def step(self, action):
        *seen, info = super().step(action)
        said = self.tells.get((self.episode, self.clock))
        return *seen, info if said is None else {"success": said}


@pytest.mark.parametrize("first", [0, 2])
def test_who_is_not_called_a_success_is_none_if_anybody_is(tmp_path, first):
    """Whether the first episode says so or another, and whether the others stay silent before or after."""
    env = gymnasium.wrappers.TimeLimit(Taciturn({(first, 4): True, (1, 2): False}), 5)
    collect_gym(tmp_path / "a", env, episodes=4, seed=5)
    recorded = open_episodes(tmp_path / "a")
    assert recorded.lengths.tolist() == [5, 5, 5, 5]
    due = torch.zeros(4, 6, dtype=torch.bool)
    due[first, 4] = True
    assert torch.equal(recorded.earned.success.view(4, 6), due)


def test_worlds_that_never_speak_of_success_are_recorded_without_it(tmp_path):
    silent, plain = (gymnasium.wrappers.TimeLimit(env, 5) for env in (Taciturn({}), Drifter()))
    for name, env in (("silent", silent), ("plain", plain)):
        collect_gym(tmp_path / name, env, episodes=2, seed=5)
    silent, plain = (open_episodes(tmp_path / name) for name in ("silent", "plain"))
    assert silent.earned.success is None
    assert silent.content_hash == plain.content_hash
    said = gymnasium.wrappers.TimeLimit(Taciturn({(0, 1): False}), 5)
    collect_gym(tmp_path / "failed", said, episodes=2, seed=5)
    # to be called a failure once is more than nothing
    assert not open_episodes(tmp_path / "failed").earned.success.any()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"action": spaces.Discrete(4)},
            r"Drifter-v0 takes actions Discrete\(4\); planning needs continuous",
        ),
        ({"image": spaces.Box(-1, 1, (5,), np.float32)}, "a picture is a uint8 Box.*AddRenderObservation"),
        ({"image": spaces.Box(0, 1, (12, 10, 3), np.float32)}, "a picture is a uint8 Box"),
        ({"image": spaces.Box(0, 255, (12, 10, 9), np.uint8)}, "with 1 to 4 channels"),
        ({"image": spaces.Box(0, 1, (5,), np.float32), "dictionary": True}, "FilterObservation"),
    ],
)
def test_worlds_that_cannot_be_recorded_are_refused_in_words(tmp_path, settings, message):
    env = gymnasium.make("jepaplan-tests/Drifter-v0", **settings)
    with pytest.raises(InputError, match=message):
        collect_gym(tmp_path / "a", env, episodes=1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_worlds_are_refused(tmp_path):
    with pytest.raises(InputError, match="gymnasium cannot make 'jepaplan/Nowhere-v0'"):
        collect_gym(tmp_path / "a", "jepaplan/Nowhere-v0", episodes=1)
