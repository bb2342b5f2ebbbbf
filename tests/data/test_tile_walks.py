"""Walks in the tile rooms are what the world does, and they use its doors, keys and pits."""

import pytest
import torch

from jepaplan.data.tile_walks import free_tile_walks, led_walks, tile_walks
from jepaplan.envs.tile_rooms import WORLDS, tile_world
from jepaplan.types import InputError

ROOMS = {name: tile_world(name) for name in WORLDS}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(WORLDS))
def test_walks_obey_the_world(name):
    world = ROOMS[name]
    walks = tile_walks(world, 41, 20, seeded(0))
    assert walks.states.shape == (41, 21, world.state_width)
    assert walks.actions.shape == (41, 20, 2)
    assert world.is_possible(walks.states.flatten(0, 1)).all()
    moved = world.step(walks.states[:, :-1].flatten(0, 1), walks.actions.flatten(0, 1))
    assert torch.equal(moved, walks.states[:, 1:].flatten(0, 1))
    lengths = walks.actions.norm(dim=-1)
    assert 0.4 - 1e-4 <= float(lengths.min()) <= float(lengths.max()) <= 3.6 + 1e-4
    assert float(lengths.mean()) == pytest.approx(2, abs=0.3)
    again = tile_walks(world, 41, 20, seeded(0))
    assert torch.equal(again.states, walks.states)
    assert len(walks.states[:, 0, -1].unique()) >= min(8, world.layouts("cpu").count)


def test_keys_are_fetched_and_both_doors_opened():
    world = ROOMS["BreakingKeys"]
    states = tile_walks(world, 150, 64, seeded(1)).states
    mode = world.split(states.flatten(0, 1))[1].view(150, 65)
    for before, after, least in ((0, 1, 20), (1, 2, 8), (1, 3, 8)):
        happens = ((mode[:, :-1] == before) & (mode[:, 1:] == after)).any(1)
        assert int(happens.sum()) >= least
    for one in range(4):
        assert float((mode == one).float().mean()) > 0.1


def test_where_there_is_a_key_most_recordings_show_what_it_does():
    world = ROOMS["BreakingKeys"]
    walks = tile_walks(world, 200, 63, torch.Generator().manual_seed(0))
    mode = world.split(walks.states.flatten(0, 1))[1].view(200, 64)
    before, after = mode[:, :-1], mode[:, 1:]
    assert float((before != after).any(1).float().mean()) > 0.6
    # taken, and either door opened: each often enough to be learned
    for was, becomes in ((0, 1), (1, 2), (1, 3)):
        assert int(((before == was) & (after == becomes)).sum()) > 30


def test_one_way_doors_are_passed_and_never_backwards():
    world = ROOMS["OneWayDoor"]
    states = tile_walks(world, 150, 64, seeded(2)).states
    numbers = states[:, 0, -1].long()
    layouts = world.layouts("cpu")
    for door in range(2):
        from_door = states[..., :2] - layouts.one_ways.centre[numbers, None, door]
        way = layouts.directions[numbers, None, door]
        along = (from_door * way).sum(-1)
        inside = from_door.abs().amax(-1) < 4
        assert int(inside.any(1).sum()) > 20
        assert (along.diff(dim=1)[inside[:, :-1]] >= 0).all()


def test_some_walks_end_in_a_pit_and_most_frames_do_not_show_one():
    world = ROOMS["Pits"]
    states = tile_walks(world, 150, 64, seeded(3)).states
    middles = world.layouts("cpu").pits.centre[states[:, 0, -1].long()]
    fallen = (states[:, :, None, :2] == middles[:, None]).all(-1).any(-1)
    assert 0.1 < float(fallen[:, -1].float().mean()) < 0.6
    assert float(fallen.float().mean()) < 0.35
    assert not (fallen[:, :-1] & ~fallen[:, 1:]).any()


@pytest.mark.parametrize("name", ["DeadEnd", "Detour"])
def test_led_walks_get_nearer_to_far_places_than_free_ones(name):
    world = ROOMS[name]
    travelled = {}
    for walker in (free_tile_walks, led_walks):
        states = walker(world, 80, 40, seeded(4)).states
        ends = world.cost_to_go(states[:, 0], states[:, -1])
        travelled[walker] = float(ends.mean())
    assert travelled[led_walks] > travelled[free_tile_walks]


def test_walks_without_steps_are_refused():
    with pytest.raises(InputError, match="steps >= 1"):
        tile_walks(ROOMS["DeadEnd"], 3, 0, seeded(0))
