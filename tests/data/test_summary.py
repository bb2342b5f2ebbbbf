"""The health card counts what is there and speaks up about what is wrong."""

import pytest
import torch

from jepaplan.data.episodes import EpisodeWriter, open_episodes
from jepaplan.data.summary import summarise
from jepaplan.data.wall_walks import collect_wall
from jepaplan.envs.wall import WALL_SMALL


def test_a_healthy_recording(tmp_path):
    collect_wall(tmp_path / "a", WALL_SMALL, trajectories=100, seed=1)
    summary = summarise(open_episodes(tmp_path / "a"))
    assert summary.warnings == ()
    assert (summary.episodes, summary.frames, summary.image_shape) == (100, 6400, (2, 64, 64))
    assert summary.norm_mean == pytest.approx(1, abs=0.05)
    assert summary.coverage > 0.9


def test_what_is_wrong_is_said(tmp_path):
    frames = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    frames[:3, 0, 0, 0] = torch.tensor([1, 2, 1], dtype=torch.uint8)
    actions = torch.zeros(11, 2)
    actions[0, 0] = 2.0
    with EpisodeWriter(tmp_path / "a", {}) as writer:
        writer.append(frames, actions)
    summary = summarise(open_episodes(tmp_path / "a"))
    assert summary.duplicate_frames == pytest.approx(9 / 12)  # three different pictures
    assert summary.still_frames == pytest.approx(8 / 11)
    assert summary.static_actions == pytest.approx(10 / 11)
    assert summary.norm_max == 2
    assert summary.coverage is None
    text = "\n".join(summary.warnings)
    for word in (
        "only 1 episodes",
        "axes [1] never change",
        "91% of the actions are zero",
        "75% of the frames",
    ):
        assert word in text


def test_steps_between_episodes_are_not_steps(tmp_path):
    frames = torch.full((2, 2, 1, 4, 4), 7, dtype=torch.uint8)
    frames[:, 1] = 9
    frames[1] = frames[1].flip(0)  # the second episode begins as the first ends
    with EpisodeWriter(tmp_path / "a", {}) as writer:
        writer.append(frames, torch.ones(2, 1, 1))
    assert summarise(open_episodes(tmp_path / "a")).still_frames == 0
