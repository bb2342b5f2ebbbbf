"""Looking at recordings and runs: numbers, pictures, and what is refused."""

import json
import shutil
import xml.etree.ElementTree as ET

import pytest
import torch

from jepaplan import cli
from jepaplan.data.collect import collect_gym
from jepaplan.data.episodes import open_episodes
from jepaplan.data.frames import picture_to_frame
from jepaplan.data.wall_walks import collect_wall
from jepaplan.envs import gym_adapters
from jepaplan.envs.wall import WALL_BIG

assert gym_adapters  # registers the environments


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "walks.h5"
    collect_wall(path, WALL_BIG, trajectories=8, states=16, seed=1)
    return path


def inspect(capsys, *arguments):
    code = cli.main(["inspect", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_health_card(walks, capsys):
    code, out, _ = inspect(capsys, walks)
    assert code == 0
    assert "WallBig" in out
    assert "2 channels, 64 x 64" in out
    assert "warning: only 8 episodes" in out


def test_json_is_all_there_is_on_standard_output(walks, capsys):
    code, out, _ = inspect(capsys, walks, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["summary"]["frames"] == 128
    assert facts["content_hash"] == open_episodes(walks).content_hash


@pytest.mark.parametrize("name", ["sheet.svg", "sheet.html"])
def test_contact_sheet_shows_as_many_as_asked_for(walks, tmp_path, capsys, name):
    path = tmp_path / name
    assert inspect(capsys, walks, "--out", path, "--trajectories", 5)[0] == 0
    text = path.read_text()
    assert text.count("<polyline") == 5
    assert text.count("http") == 1  # the name of the SVG format: nothing is fetched
    if path.suffix == ".svg":
        ET.fromstring(text)


def test_frames_come_back_to_the_bit(walks, tmp_path, capsys):
    assert inspect(capsys, walks, "--frames", tmp_path, "--count", 3)[0] == 0
    episodes = open_episodes(walks)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"episode_{episode:05d}_{end}.png" for episode in (0, 4, 7) for end in ("first", "last")]
    for episode in (0, 4, 7):
        first = int(episodes.starts[episode])
        for end, row in (("first", first), ("last", first + int(episodes.lengths[episode]))):
            frame = picture_to_frame(tmp_path / f"episode_{episode:05d}_{end}.png", 2, 64)
            assert torch.equal(frame, episodes.observations[row])


def test_refusals(walks, tmp_path, capsys):
    for arguments, words in (
        ((tmp_path / "none.h5",), "there is no such file"),
        ((walks, "--out", tmp_path / "sheet.png"), "a contact sheet is an .svg or an .html file"),
        ((walks, "--frames", tmp_path, "--count", 0), "--trajectories and --count are at least 1"),
        ((tmp_path,), "Is"),
        ((tmp_path, "--frames", tmp_path / "f"), "need a recording"),
    ):
        code, out, err = inspect(capsys, *arguments)
        assert code == 2
        assert out == ""
        assert words in err
    assert not list(tmp_path.iterdir())


def test_recordings_of_other_worlds_have_no_contact_sheet(tmp_path, capsys):
    path = tmp_path / "g.h5"
    collect_gym(path, "jepaplan/WallBig-v0", episodes=2, steps=4)
    code, _, err = inspect(capsys, path, "--out", tmp_path / "s.svg")
    assert code == 2
    assert "look at its frames instead" in " ".join(err.split())


def test_a_run_is_told_in_words(tmp_path, capsys):
    card = {
        "recipe": "wall_big_paths",
        "seed": 3,
        "commit": "abc",
        "version": "0.1.0",
        "data": "d4ta",
        "hardware": {"cores": 2},
        "configuration": {"description": "what it does", "stages": [{"name": "one"}, {"name": "two"}]},
        "stages": {"one": {"updates": 7, "seconds": 12.0, "metrics": {"loss": 0.5}}},
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    code, out, _ = inspect(capsys, tmp_path)
    assert code == 0
    for words in (
        "wall_big_paths",
        "seed 3",
        "what it does",
        "commit abc",
        "d4ta",
        "loss 0.5",
        "not finished: two",
    ):
        assert words in out
    code, out, _ = inspect(capsys, tmp_path, "--json")
    assert json.loads(out) == card


def test_a_video_run_says_what_it_is(tiny_video_run, capsys):
    code, out, _ = inspect(capsys, tiny_video_run)
    assert code == 0
    assert "recipe video_nano, seed 0" in out
    assert "masked video pretraining on generated sprites" in out
    assert f"a video encoder; `jepaplan probe {tiny_video_run} --data VIDEOS`" in out
    assert "pretraining" in out


def test_an_unfinished_video_run_says_what_is_left(tiny_video_run, tmp_path, capsys):
    run = shutil.copytree(tiny_video_run, tmp_path / "run")
    card = json.loads((run / "card.json").read_text())
    card["configuration"]["phases"].append({**card["configuration"]["phases"][0], "name": "cooldown"})
    (run / "card.json").write_text(json.dumps(card))
    _, out, _ = inspect(capsys, run)
    assert "not finished: cooldown still to be trained" in out
    assert "jepaplan probe" not in out
