import json
from importlib import resources

import pytest
import torch

from jepaplan.envs.maze_layouts import cell_distances, maze_sets
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.tasks import PACKAGED, instances_text, load_instances, make_packaged
from jepaplan.types import InputError

TILE_ROOMS = ("OpenRoom", "DeadEnd", "OneWayDoor", "Pits", "BreakingKeys", "Detour")


@pytest.fixture
def document():
    return json.loads(instances_text(load_instances("WallBig-demo").subset(3)))


def written(tmp_path, document):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_are_what_their_seeds_make(name):
    stored = resources.files("jepaplan.evaluation") / "instances" / f"{name}.json"
    assert stored.read_text(encoding="utf-8") == instances_text(make_packaged(name))


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_goals_can_be_reached_and_are_not_reached_yet(name):
    instances = load_instances(name)
    recipe, world = PACKAGED[name], find_world(instances.world)
    assert name == f"{recipe.world}-{recipe.split}" == f"{instances.world}-{instances.split}"
    assert len(instances) == recipe.count
    assert world.cost_to_go(instances.starts, instances.goals).isfinite().all()
    assert not world.reached(instances.starts, instances.goals).any()


@pytest.mark.parametrize("name", [name for name in PACKAGED if name.startswith("Wall")])
def test_goals_lie_in_the_other_room_and_can_be_reached_in_time(name):
    instances = load_instances(name)
    start_side = instances.starts[:, 0] < instances.starts[:, 2]
    goal_side = instances.goals[:, 0] < instances.goals[:, 2]
    assert (start_side != goal_side).all()
    # the coin that swaps the rooms is fair: 200 draws within five standard deviations
    assert abs(float(start_side.float().mean()) - 0.5) < 0.25
    world = find_world(instances.world)
    lengths = world.cost_to_go(instances.starts, instances.goals)
    # a perfect walker with the recorded mean step gets there in time
    assert (lengths / world.config.step_mean < world.config.episode_steps).all()


@pytest.mark.parametrize("name, cells", [("Maze", range(3, 8)), ("MazeHard", range(5, 8))])
@pytest.mark.parametrize("split", ["final", "tuning"])
def test_mazes_of_instances_are_the_held_out_ones_and_goals_some_cells_away(name, cells, split):
    """arXiv:2601.00844: 80 instances in mazes that nobody recorded in, three cells apart or more."""
    instances = load_instances(f"{name}-{split}")
    layouts = instances.starts[:, 4].long()
    assert torch.equal(instances.goals[:, 4].long(), layouts)
    used, times = layouts.unique(return_counts=True)
    assert set(used.tolist()) <= set(maze_sets().held_out)
    # Where cells so far apart exist in every maze, each is met twice.
    assert int(times.max()) - int(times.min()) <= 1
    assert name == "MazeHard" or times.tolist() == [2] * 40
    for start, goal, layout in zip(instances.starts, instances.goals, layouts.tolist(), strict=True):
        assert int(cell_distances(layout)[cell_of(start), cell_of(goal)]) in cells
        assert not start[2:4].any()


def cell_of(state):
    """Number of the cell, 4 * row + column, from metres right of and above the grid's middle."""
    return 4 * int((2 - state[1]).floor()) + int((state[0] + 2).floor())


@pytest.mark.parametrize("room", TILE_ROOMS)
def test_tile_rooms_are_met_with_their_map_and_its_mirror_image(room):
    instances = load_instances(f"{room}-final")
    world = find_world(room)
    numbers, times = world.split(instances.starts)[2].unique(return_counts=True)
    assert numbers.tolist() == list(range(world.layouts("cpu").count))
    assert int(times.min()) > 100 // (2 * len(numbers))


def test_splits_share_no_instance():
    seen = [(PACKAGED[name].world, *row) for name in PACKAGED for row in load_instances(name).starts.tolist()]
    assert len(set(seen)) == len(seen)
    seeds = [recipe.seed for recipe in PACKAGED.values()]
    assert len(set(seeds)) == len(seeds)


def test_a_file_survives_a_round_trip(tmp_path):
    instances = load_instances("WallSmall-final").subset(7)
    path = tmp_path / "mine.json"
    path.write_text(instances_text(instances))
    read = load_instances(path)
    torch.testing.assert_close(read.starts, instances.starts, rtol=0, atol=0)
    torch.testing.assert_close(read.goals, instances.goals, rtol=0, atol=0)
    assert read.name == "mine"


def test_a_subset_is_the_beginning():
    instances = load_instances("WallBig-final")
    torch.testing.assert_close(instances.subset(5).goals, instances.goals[:5])
    with pytest.raises(InputError, match="1 to 200"):
        instances.subset(201)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(InputError, match="WallSmall-final, WallSmall-tuning, WallBig-final"):
        load_instances("WallHuge-final")


def test_a_goal_in_the_wall_is_refused(tmp_path, document):
    row = document["instances"][2]
    row["goal"] = [row["wall_x"], row["door_y"] + 10]
    with pytest.raises(InputError, match=r"instance 2: the goal .* in a wall"):
        load_instances(written(tmp_path, document))


def test_a_start_outside_is_refused(tmp_path, document):
    document["instances"][1]["start"] = [2.0, 30.0]
    with pytest.raises(InputError, match="instance 1: the start \\(2, 30\\) is outside"):
        load_instances(written(tmp_path, document))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 99}, "format 99"),
        ({"world": "Mars"}, "unknown world 'Mars'; known are WallSmall"),
        ({"instances": []}, "at least one"),
        ({"note": "x"}, "fields format, world"),
        ({"instances": [{"wall_x": 32}]}, "expected the fields wall_x, door_y"),
        ({"instances": [{"wall_x": 32, "door_y": 30, "start": [1], "goal": [2, 3]}]}, "must be \\[x, y\\]"),
        ({"instances": [{"wall_x": "a", "door_y": 30, "start": [1, 2], "goal": [2, 3]}]}, "number of pixels"),
    ],
)
def test_damaged_files_are_refused(tmp_path, document, change, message):
    with pytest.raises(InputError, match=message):
        load_instances(written(tmp_path, {**document, **change}))
