"""The picture is the formula, pixel by pixel."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.envs.wall import WALL_SMALL, WallLayouts, WallWorld

WORLD = WallWorld(WALL_SMALL)


def literal(x: float, y: float, wall_x: float, door_y: float, std: float = 1.3) -> torch.Tensor:
    """The definition, without any of the shortcuts."""
    row, column = torch.meshgrid(torch.arange(64.0).double(), torch.arange(64.0).double(), indexing="ij")
    square = (column - x) ** 2 + (row - y) ** 2
    dot = torch.floor(255 * torch.exp(-square / (2 * std**2)))
    walls = torch.zeros(64, 64)
    for line in range(64):
        for pixel in range(64):
            in_wall = abs(pixel - wall_x) <= 1 and abs(line - door_y) > 4
            if in_wall or line in (4, 59) or pixel in (4, 59):
                walls[line, pixel] = 255
    return torch.stack([dot, walls]).to(torch.uint8)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_pictures_equal_the_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    layouts = WORLD.sample_layouts(6, generator)
    positions = WORLD.sample_positions(layouts, generator)
    positions[0] = positions[0].round()  # a dot on a pixel's centre is its brightest
    frames = WORLD.render(positions, layouts)
    for row in range(6):
        place = (float(layouts.wall_x[row]), float(layouts.door_y[row]))
        assert torch.equal(frames[row], literal(*positions[row].tolist(), *place))


def test_dots_near_and_over_the_edge_of_the_picture():
    positions = torch.tensor([[0.2, 63.0], [62.7, 1.1], [-2.0, 30.0], [66.0, 66.0], [4.0, 59.0]])
    layouts = WallLayouts(torch.full((5,), 30.0), torch.full((5,), 20.0))
    frames = WORLD.render(positions, layouts)
    for row in range(5):
        assert torch.equal(frames[row], literal(*positions[row].tolist(), 30, 20))


def test_wide_dots_and_walls_between_pixels():
    world = WallWorld(replace(WALL_SMALL, dot_std=3.1))
    layouts = WallLayouts(torch.tensor([30.5]), torch.tensor([20.25]))
    frame = world.render(torch.tensor([[20.3, 40.9]]), layouts)[0]
    x, y = torch.tensor([20.3, 40.9]).tolist()  # as float32 holds them
    assert torch.equal(frame, literal(x, y, 30.5, 20.25, std=3.1))


def test_a_batch_is_its_pictures_one_by_one():
    generator = torch.Generator().manual_seed(3)
    layouts = WORLD.sample_layouts(40, generator)
    layouts = layouts.select(torch.randint(40, (200,), generator=generator))
    positions = WORLD.sample_positions(layouts, generator)
    frames = WORLD.render(positions, layouts)
    single = [WORLD.render(positions[k : k + 1], layouts.select(torch.tensor([k]))) for k in range(200)]
    assert torch.equal(frames, torch.cat(single))
