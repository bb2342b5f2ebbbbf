"""Sprites: their areas, how they move and turn, and that every frame of a motion looks like any other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.envs.sprites import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scenes,
    bouncing_path,
    direction_vectors,
    draw_grounds,
    draw_scenes,
    torus_path,
    turn_signs,
)

SIZE = 64


def scenes(centre, heading=0.0, shapes=SHAPES, radius=8.0, colour=0, level=0.0):
    """One clip per shape, a frame per place and heading, on a flat ground; stripes are off centre."""
    count = len(shapes)
    centre = torch.as_tensor(centre, dtype=torch.float32).view(-1, 2)
    heading = torch.as_tensor(heading, dtype=torch.float32).flatten()
    frames = max(len(centre), len(heading))
    return Scenes(
        centre=centre.expand(frames, 2)[None, None].repeat(count, 1, 1, 1),
        heading=heading.expand(frames)[None, None].repeat(count, 1, 1),
        present=torch.ones(count, 1, dtype=torch.bool),
        shape=torch.tensor([SHAPES.index(shape) for shape in shapes]),
        colour=torch.full((count,), colour),
        radius=torch.full((count,), radius),
        stripes=torch.tensor([0.6, 1.0]).repeat(count, 1),
        ground=torch.full((count, 3, SIZE, SIZE), level),
    )


def covered(pictures):
    """How much of each pixel the sprite covers, from a black sprite-free and a white sprite-free ground."""
    return (255 - (pictures(255.0).float() - pictures(0.0).float()))[:, :, 0] / 255


@pytest.mark.parametrize("centre", [(31.5, 31.5), (20.3, 40.8), (1.0, 62.5)])
def test_all_shapes_have_the_area_of_the_disc(centre):
    cover = covered(lambda level: draw_scenes(scenes(centre, 0.4, level=level)))
    assert cover.sum((-1, -2)).flatten().tolist() == pytest.approx([math.pi * 64] * len(SHAPES), rel=0.02)


@settings(deadline=None, max_examples=30)
@given(x=st.floats(0, 63.9), y=st.floats(0, 63.9), dx=st.integers(-70, 70), dy=st.integers(-70, 70))
def test_the_picture_is_a_torus(x, y, dx, dy):
    here, there = draw_scenes(scenes([[x, y], [(x + dx) % SIZE, (y + dy) % SIZE]], 0.7)).unbind(1)
    # A place is kept in float32, so a level may round the other way.
    difference = (here.roll((dy, dx), (-2, -1)).float() - there.float()).abs()
    assert difference.max() <= 2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_quarter_turn_clockwise_turns_the_picture_clockwise(shape):
    before, after = draw_scenes(scenes((31.5, 31.5), [0.3, 0.3 + math.pi / 2], [shape]))[0].float()
    assert (before.rot90(-1, (-2, -1)) - after).abs().max() <= 1
    assert (before - after).abs().max() > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_full_turn_brings_the_picture_back(shape):
    turns = torch.arange(1, 24) * (2 * math.pi / 24)
    first, *others, last = draw_scenes(scenes((31.5, 31.5), [0.0, *turns.tolist(), 2 * math.pi], [shape]))[
        0
    ].float()
    assert (first - last).abs().max() <= 1
    assert all((first - other).abs().max() > 15 for other in others)


@pytest.mark.parametrize("number,name", list(enumerate(DIRECTIONS)))
def test_directions_lead_where_they_say(number, name):
    step = direction_vectors(torch.tensor([number]))
    path = torus_path(torch.tensor([[[31.5, 31.5]]]), 10 * step, torch.tensor([0.0, 1.0]), SIZE)
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    cover = covered(lambda level: draw_scenes(scenes(path[0, 0], level=level, shapes=["disc"])))[0]
    x, y = ((cover * axis).sum((-1, -2)) / cover.sum((-1, -2)) for axis in (column, row))
    right, down = float(x[1] - x[0]), float(y[1] - y[0])
    assert math.hypot(right, down) == pytest.approx(10, abs=0.1)
    assert ("right" in name, "left" in name) == (right > 1, right < -1)
    assert ("down" in name, "up" in name) == (down > 1, down < -1)
    assert turn_signs(torch.tensor([number])) == 0


def test_turns_stay_in_place():
    numbers = torch.tensor([len(DIRECTIONS), len(DIRECTIONS) + 1])
    assert (direction_vectors(numbers) == 0).all()
    assert turn_signs(numbers).tolist() == [1, -1]


def test_colours_are_what_they_are_called():
    red, green, blue, yellow = (
        draw_scenes(scenes((31.5, 31.5), shapes=["disc"], colour=number))[0, 0].float().sum((-1, -2))
        for number in range(len(COLOURS))
    )
    assert red.argmax() == 0
    assert green.argmax() == 1
    assert blue.argmax() == 2
    assert yellow[:2].min() > 2 * yellow[2]


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 999), box=st.sampled_from([(0.0, 1.0), (10.5, 52.5)]))
def test_bouncing_is_stepping_and_turning_round_at_the_walls(seed, box):
    generator = torch.Generator().manual_seed(seed)
    low, high = box
    start = low + (high - low) * torch.rand(3, 2, generator=generator, dtype=torch.float64)
    velocity = 3 * (high - low) * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    times = torch.arange(60, dtype=torch.float64) / 30
    place, speed = bouncing_path(start, velocity, times, box)
    here, going = start.clone(), velocity.clone()
    for step in range(1, 60):
        here = here + going / 30
        over, under = here > high, here < low
        here = torch.where(over, 2 * high - here, torch.where(under, 2 * low - here, here))
        going = torch.where(over | under, -going, going)
        torch.testing.assert_close(place[:, step], here, rtol=0, atol=1e-9)
        torch.testing.assert_close(speed[:, step], going)


def test_grounds_differ_and_use_the_range():
    ground = draw_grounds(64, SIZE, torch.Generator().manual_seed(0))
    assert ground.min() >= 10
    assert ground.max() <= 235
    assert ground.std((-1, -2)).min() > 10
    assert (ground.flatten(1).unsqueeze(0) - ground.flatten(1).unsqueeze(1)).abs().amax(-1).add(
        300 * torch.eye(64)
    ).min() > 20
