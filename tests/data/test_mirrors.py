"""Mirror images of recordings are recordings of the mirrored world."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from jepaplan.data.collect import record_world
from jepaplan.data.episodes import Earned, EpisodeWriter, open_episodes
from jepaplan.data.mirrors import mirrored
from jepaplan.envs.worlds import find_world
from jepaplan.recipes.experiment import RecordingConfig
from jepaplan.types import InputError

BOTH = ("left-right", "upside-down")


@pytest.fixture(scope="module", params=["WallBig", "Maze"])
def recording(request, tmp_path_factory):
    if request.param == "Maze":
        pytest.importorskip("mujoco")
    path = tmp_path_factory.mktemp("mirrors") / "recording.h5"
    config = RecordingConfig(world=request.param, trajectories=3, states=9)
    record_world(path, request.param, config, 0, lambda done, total: None)
    return open_episodes(path)


def test_images_of_an_episode_follow_it_and_two_mirrors_are_one_turn(recording):
    found = mirrored(recording, BOTH)
    assert len(found) == 4 * len(recording)
    assert found.lengths.tolist() == [8] * 12
    for episode, (right, down) in product(range(3), product((False, True), repeat=2)):
        number = 4 * episode + right + 2 * down
        frames = found.observations[found.starts[number] :][:9]
        original = recording.observations[recording.starts[episode] :][:9]
        flips = [-1] * right + [-2] * down
        assert torch.equal(frames, original.flip(flips) if flips else original)
        signs = torch.tensor([-1.0 if right else 1.0, -1.0 if down else 1.0])
        actions = found.actions[8 * number : 8 * number + 8]
        assert torch.equal(actions, recording.actions[8 * episode : 8 * episode + 8] * signs)
        if recording.proprioception is not None:
            felt = found.proprioception[found.starts[number] :][:9]
            assert torch.equal(felt, recording.proprioception[recording.starts[episode] :][:9] * signs)
    assert found.states is None
    assert mirrored(recording, ()) is recording
    assert len(mirrored(recording, ("upside-down",))) == 6


def test_images_earn_what_their_recording_earned(tmp_path):
    with EpisodeWriter(tmp_path / "a.h5", {}) as writer:
        for steps in (2, 3):
            frames = torch.randint(0, 9, (steps + 1, 1, 4, 4), dtype=torch.uint8)
            ends = torch.arange(steps) == steps - 1
            earned = Earned(
                rewards=torch.arange(steps) + 10.0 * steps, terminal=ends, success=torch.arange(steps + 1) > 1
            )
            writer.append(frames, torch.randn(steps, 2), earned=earned)
    found = mirrored(open_episodes(tmp_path / "a.h5"), ("left-right",)).earned
    assert found.rewards.tolist() == [20, 21] * 2 + [30, 31, 32] * 2
    assert found.terminal.tolist() == [False, True] * 2 + [False, False, True] * 2
    assert found.success.tolist() == [False, False, True] * 2 + [False, False, True, True] * 2


def test_the_mirrored_two_rooms_are_two_rooms(tmp_path):
    """Known answer: the world itself draws and walks what the mirror shows."""
    record_world(
        tmp_path / "rooms.h5", "WallBig", RecordingConfig(trajectories=2, states=30), 3, lambda *_: None
    )
    episodes, world = open_episodes(tmp_path / "rooms.h5"), find_world("WallBig")
    assert episodes.states is not None
    found = mirrored(episodes, BOTH)
    for number in range(8):
        states = episodes.states[30 * (number // 4) :][:30].clone()
        for mirror, columns in ((1, (0, 2)), (2, (1, 3))):
            if number % 4 & mirror:
                states[:, columns] = 63 - states[:, columns]
        seen = found.observations[found.starts[number] :][:30]
        drawn = world.observe(states).frames
        assert (seen.int() - drawn.int()).abs().max() <= 1  # rounding
        after = world.step(states[:-1], found.actions[29 * number : 29 * number + 29])
        torch.testing.assert_close(after, states[1:], atol=1e-4, rtol=0)


def test_the_mirrored_maze_is_a_maze(tmp_path):
    """Known answer, as above: velocities turn as actions do, and so do the cells of the layout."""
    pytest.importorskip("mujoco")
    from jepaplan.envs.maze_layouts import format_layout, parse_layout

    config = RecordingConfig(world="Maze", trajectories=2, states=30)
    record_world(tmp_path / "mazes.h5", "Maze", config, 3, lambda *_: None)
    episodes, world = open_episodes(tmp_path / "mazes.h5"), find_world("Maze")
    assert episodes.states is not None
    found = mirrored(episodes, BOTH)
    for number in range(8):
        states = episodes.states[30 * (number // 4) :][:30].clone()
        rows = format_layout(int(states[0, 4])).split("/")
        if number % 4 & 1:
            states[:, [0, 2]] *= -1
            rows = [row[::-1] for row in rows]
        if number % 4 & 2:
            states[:, [1, 3]] *= -1
            rows = rows[::-1]
        states[:, 4] = parse_layout("/".join(rows))
        seen = world.observe(states)
        apart = (found.observations[found.starts[number] :][:30].int() - seen.frames.int()).abs().max()
        # one mirror alone swaps the light and the dark quarters of the floor, 26 levels of grey apart
        assert apart <= (1 if number % 4 in (0, 3) else 26)
        assert torch.equal(found.proprioception[found.starts[number] :][:30], seen.proprioception)
        after = world.step(states[:-1], found.actions[29 * number : 29 * number + 29])
        torch.testing.assert_close(after, states[1:], atol=1e-4, rtol=0)


def test_actions_that_no_mirror_knows_are_refused(recording):
    three = replace(recording, actions=torch.zeros(len(recording.actions), 3))
    with pytest.raises(InputError, match="actions have 3 components, and mirror images are known of two"):
        mirrored(three, BOTH)
