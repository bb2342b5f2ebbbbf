"""Recording by the command line: the file, its facts, and what is refused."""

import json

import pytest

from jepaplan import cli
from jepaplan.data.episodes import open_episodes


def collect(capsys, *arguments):
    code = cli.main(["collect", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("world", ["wall-small", "wall-big", "wall-small-fixed", "wall-big-fixed"])
def test_facts_are_those_of_the_file(tmp_path, capsys, world):
    path = tmp_path / "walks.h5"
    code, out, err = collect(capsys, world, "--out", path, "--trajectories", 6, "--states", 16, "--json")
    facts, episodes = json.loads(out), open_episodes(path)
    assert code == 0
    assert "recording: 6/6" in err
    assert (facts["episodes"], facts["frames"], facts["actions"]) == (6, 96, 90)
    assert facts["content_hash"] == episodes.content_hash
    assert facts["bytes"] == path.stat().st_size
    assert len(episodes) == 6


def test_words_name_size_frames_and_hash(tmp_path, capsys):
    path = tmp_path / "walks.h5"
    code, out, _ = collect(capsys, "wall-big", "--out", path, "--trajectories", 4, "--states", 8)
    assert code == 0
    flat = " ".join(out.split())
    assert "4 episodes, 32 frames" in flat
    assert open_episodes(path).content_hash in flat


def test_same_seed_same_content(tmp_path, capsys):
    hashes = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ("--trajectories", 4, "--states", 8, "--seed", seed, "--json")
        hashes.append(
            json.loads(collect(capsys, "wall-big", "--out", tmp_path / name, *arguments)[1])["content_hash"]
        )
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_existing_file_is_left_alone(tmp_path, capsys):
    path = tmp_path / "walks.h5"
    path.write_bytes(b"precious")
    code, _, err = collect(capsys, "wall-big", "--out", path)
    assert code == 2
    assert "exists and is left alone" in err
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("world", ["WallBig", "BreakingKeys", "Maze"])
def test_gymnasium_environment(tmp_path, capsys, world):
    if world == "Maze":
        pytest.importorskip("mujoco")
    path = tmp_path / "g.h5"
    arguments = ("--episodes", 2, "--steps", 5, "--json")
    code, out, _ = collect(capsys, f"jepaplan/{world}-v0", "--out", path, *arguments)
    assert code == 0
    assert json.loads(out)["frames"] == 12


def test_options_of_the_other_kind_are_refused(tmp_path, capsys):
    code, _, err = collect(capsys, "wall-big", "--out", tmp_path / "a.h5", "--episodes", 3)
    assert code == 2
    assert "--episodes does not belong to wall-big" in err
    code, _, err = collect(capsys, "jepaplan/WallBig-v0", "--out", tmp_path / "a.h5", "--states", 3)
    assert code == 2
    assert "--states does not belong to jepaplan/WallBig-v0" in err
    assert not list(tmp_path.iterdir())


def test_unknown_world_suggests_the_nearest(tmp_path, capsys):
    code, _, err = collect(capsys, "wall-bug", "--out", tmp_path / "a.h5")
    assert code == 2
    assert "Did you mean WallBig?" in err
    assert not list(tmp_path.iterdir())
