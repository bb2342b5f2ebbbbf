"""Pictures of the tile rooms show everything that a state holds."""

import pytest
import torch

from jepaplan.envs.tile_rooms import WORLDS, tile_world
from jepaplan.envs.tile_rooms_layouts import build_layouts, variants
from jepaplan.evaluation.pictures import ARROWS, scenery_shapes
from jepaplan.types import InputError

ROOMS = {name: tile_world(name) for name in WORLDS}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(WORLDS))
def test_walls_are_where_a_dot_cannot_be(name):
    """A pixel of channel 1 is bright exactly if its centre is in a wall, a closed door or the frame."""
    world = ROOMS[name]
    modes = 1 + len(world.flag_names)
    pixel = torch.arange(64.0)
    place = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1).reshape(-1, 2)
    for number in range(world.layouts("cpu").count):
        for mode in range(modes):
            states = world.join(place, torch.full((4096,), mode), torch.full((4096,), number))
            frame = world.observe(states[:1]).frames[0]
            for patch in world.scenery(states[0]):
                x0, y0, x1, y1 = (int(value + 0.5) for value in (*patch.low, *patch.high))
                in_frame = max(x1 - x0, y1 - y0) > 8
                lowest, highest = (0, 64) if in_frame else (2, 62)  # a tile at the edge is partly frame
                x0, y0, x1, y1 = (min(max(value, lowest), highest) for value in (x0, y0, x1, y1))
                shown = frame[1:, y0:y1, x0:x1]
                assert (shown[0] == 255).all() == (patch.kind in ("wall", "door"))
                assert (shown[1] > 0).any() == (mode == 1 if in_frame else patch.kind != "wall")
            walls = frame[1].flatten() == 255
            stuck = ~world.is_possible(states)
            if name not in ("Pits", "BreakingKeys"):  # where other things are impossible too
                assert torch.equal(walls, stuck)
            assert not (walls & ~stuck).any()


def test_the_dot_is_the_formula():
    world = ROOMS["Pits"]
    state = world.sample_states(world.sample_tasks(20, seeded(0))[0], seeded(1))
    frames = world.observe(state).frames
    row, column = torch.meshgrid(torch.arange(64.0).double(), torch.arange(64.0).double(), indexing="ij")
    for number in range(20):
        x, y = state[number, :2].double()
        square = (column - x) ** 2 + (row - y) ** 2
        dot = torch.floor(255 * torch.exp(-square / (2 * 1.3**2))).to(torch.uint8)
        assert torch.equal(frames[number, 0], dot)


@pytest.mark.parametrize("name", list(WORLDS))
def test_every_layout_and_mode_looks_different(name):
    world = ROOMS[name]
    states = torch.cat(
        [
            world.join(torch.full((1, 2), 5.0), torch.tensor([mode]), torch.tensor([number]))
            for number in range(world.layouts("cpu").count)
            for mode in range(1 + len(world.flag_names))
        ]
    )
    frames = world.observe(states).frames.flatten(1)
    assert len(frames.unique(dim=0)) == len(states)
    shuffled = torch.randperm(len(states), generator=seeded(0))
    assert torch.equal(world.observe(states[shuffled]).frames.flatten(1), frames[shuffled])


def test_arrows_are_mirrored_with_their_maps():
    one = ("........", "........", "...##...", "...>....", "...##...", "........", "........", "........")
    both = variants([one])
    assert [two[3] for two in both] == ["...>....", "....<..."]
    for two in both:
        build_layouts([two])  # walls stay beside the door


def test_one_way_doors_say_which_way_one_gets_through():
    world = ROOMS["OneWayDoor"]
    seen = set()
    for number in range(world.layouts("cpu").count):
        layout = world.join(torch.full((1, 2), 5.0), torch.zeros(1).long(), torch.tensor([number]))
        for patch in world.scenery(layout[0]):
            if patch.kind.startswith("one-way door"):
                seen.add(patch.kind)
                way = torch.tensor([ARROWS[patch.kind.split()[-1]]]) * 8
                middle = (torch.tensor([patch.low]) + torch.tensor([patch.high])) / 2
                before, behind = (
                    world.join(middle + side * way, *world.split(layout)[1:]) for side in (-1, 1)
                )
                assert torch.equal(world.step(before, 2 * way), behind)
                assert torch.equal(world.step(behind, -2 * way), behind)
            assert "stroke-dasharray" not in scenery_shapes([patch])  # a kind that pictures know
    assert {"one-way door left", "one-way door right", "one-way door down"} <= seen


def with_line(row: int, line: str) -> tuple[str, ...]:
    return tuple(line if number == row else "........" for number in range(8))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (with_line(3, "...>...."), "walls on both sides"),
        (with_line(3, "...x...."), "of the characters"),
        (("........",) * 7, "8 lines"),
        (("#.......", ".#......", *["........"] * 6), "meet only at a corner"),
        (with_line(3, "..k....."), "exactly one k"),
    ],
)
def test_maps_that_cannot_be_walked_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        build_layouts([wrong])
