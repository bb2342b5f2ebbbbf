"""From recording to report in worlds that are not the two rooms."""

from dataclasses import replace
from functools import partial

import pytest

from jepaplan import cli
from jepaplan.envs.worlds import WORLDS, find_world
from jepaplan.evaluation.position_probe import ProbeConfig
from jepaplan.evaluation.results import read_rows
from jepaplan.evaluation.tasks import instances_text, make_instances
from jepaplan.interfaces import World
from jepaplan.models.encoders import CompactConfig
from jepaplan.recipes import story, study
from jepaplan.recipes.experiment import RecordingConfig
from jepaplan.recipes.run import train
from tiny_runs import tiny_experiment

FRESH_WALKS = story.fresh_walks
OTHERS = [name for name in WORLDS if not name.startswith("Wall")]


def short(name):
    """The world with a few steps per episode."""
    world = find_world(name)
    world.episode_steps = 5
    return world


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(study, "find_world", short)
    monkeypatch.setattr(story, "_PROBE_FRAMES", 240)
    monkeypatch.setattr(story, "ProbeConfig", partial(ProbeConfig, updates=20, batch=64))
    monkeypatch.setattr(story, "rank_correlations", partial(story.rank_correlations, layouts=3))
    monkeypatch.setattr(
        story, "fresh_walks", lambda world, count, steps, noise: FRESH_WALKS(world, 10, 16, noise)
    )
    monkeypatch.setattr(story, "_GREEDY_TASKS", 1)


@pytest.mark.parametrize("name", OTHERS)
def test_every_world_can_be_recorded_by_its_name(name, tmp_path, capsys):
    pytest.importorskip("mujoco") if name.startswith("Maze") else None
    assert isinstance(find_world(name), World)
    out = tmp_path / "walks.h5"
    assert cli.main(["collect", name, "--out", str(out), "--trajectories", "4", "--states", "6"]) == 0
    assert cli.main(["inspect", str(out), "--out", str(tmp_path / "sheet.svg")]) == 0
    assert (tmp_path / "sheet.svg").read_text().count("<polyline") == 4
    assert name in capsys.readouterr().out
    refused = ["collect", name, "--out", str(tmp_path / "b.h5"), "--crossing-fraction", "0.5"]
    assert cli.main(refused) == 2


@pytest.mark.parametrize("name", ["OneWayDoor", "Maze"])
@pytest.mark.usefixtures("_small")
def test_from_a_recording_to_a_report(name, tmp_path):
    pytest.importorskip("mujoco") if name == "Maze" else None
    world, run = find_world(name), tmp_path / "run"
    recipe = tiny_experiment("wall_big_value_quasimetric_cpu", updates=2)
    channels, felt = world.image[0], 2 * (name == "Maze")
    recipe = replace(
        recipe,
        recording=RecordingConfig(world=name, trajectories=12, states=20),
        encoder=CompactConfig(
            image_channels=channels, latent_width=16, channels=(4, 4, 4), proprioception_dim=felt
        ),
        distance=replace(recipe.distance, components=4),
    )
    train(recipe, run)
    instances = tmp_path / "mine.json"
    instances.write_text(instances_text(make_instances(world, "test", 0, 2)))
    small = ["--instances", str(instances), "--threads", "1"]
    assert cli.main(["evaluate", str(run), *small]) == 0
    rows = read_rows(run / "results.json")
    assert len(rows) == 6
    assert all(row.task == name for row in rows)
    page = (run / "report.html").read_text()
    for section in ("result", "episodes", "maps", "failures", "probes"):
        assert f'id="{section}"' in page, section
