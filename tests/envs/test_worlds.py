"""Worlds by name, imported when asked for."""

import subprocess
import sys

import pytest

from jepaplan.data.walks import FREE_WALKERS, WALKERS, find_walker, takes
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.envs.worlds import WORLDS, find_world, named, recorded_world
from jepaplan.evaluation.surveys import cost_unit
from jepaplan.interfaces import World
from jepaplan.types import InputError


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_are_found_by_name_and_say_what_their_cost_to_go_counts(name):
    world = find_world(name)
    assert isinstance(world, World)
    assert world.name == name
    assert cost_unit(world) == ("metres" if name.startswith("Maze") else "pixels")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no world 'wall-bug'. Did you mean WallBig"):
        find_world("wall-bug")
    with pytest.raises(InputError, match=r"Known: WallSmall, WallBig"):
        find_world("Mars")


def test_case_and_hyphens_do_not_matter_on_the_command_line():
    assert named("wall-big") == "WallBig"
    assert named("one-way-door") == "OneWayDoor"
    assert named("jepaplan/WallBig-v0") is None


def test_every_world_has_a_walker():
    assert set(WALKERS) == set(FREE_WALKERS) == set(WORLDS)
    assert takes(find_walker("WallBig"), "crossing_fraction")
    assert not takes(find_walker("WallBig", free=True), "crossing_fraction")
    with pytest.raises(InputError, match="nobody walks in a world named 'Mars'"):
        find_walker("Mars")


def test_a_world_is_imported_only_when_asked_for():
    lines = (
        "import sys",
        "from jepaplan.envs.worlds import find_world",
        "find_world('WallBig')",
        "print([name for name in sys.modules if 'maze' in name or 'tile' in name or 'mujoco' in name])",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_world_of_a_recording_is_found_by_its_name_or_by_its_whole_configuration():
    assert recorded_world({"world": "WallSmall"}, "a.h5").name == "WallSmall"
    wide = recorded_world({"world": {"name": "WallBig", "size": 96}}, "a.h5")
    assert isinstance(wide, WallWorld)
    assert wide.image == (2, 96, 96)
    assert wide.config.episode_steps != WALL_BIG.episode_steps
    assert recorded_world({"world": "CartPole-v1"}, "a.h5") is None
    assert recorded_world({}, "a.h5") is None
    with pytest.raises(InputError, match=r"a\.h5: its world was described by another version"):
        recorded_world({"world": {"name": "WallBig", "gravity": 9.81}}, "a.h5")
